"""The numbers of a training, each against an independent computation."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from kdx.chain.chain import run_chain
from kdx.chain.context import load_dataset, make_run_context
from kdx.chain.optimizer import build_optimizer, build_schedule
from kdx.chain.parts import build_parts
from kdx.data.batches import Batches, Preprocessing
from kdx.data.labelled import labelled_images
from kdx.errors import KdxError
from kdx.losses.distillation import Distillation, Weight
from kdx.losses.hard import HardLoss, balanced_weights
from kdx.losses.objective import Lesson
from kdx.training.learner import Learner
from kdx.training.runtime import choose_precision
from kdx.training.schedules import Schedule, Span, cosine, step
from tests import tiny
from tests.conftest import settings_of
from tests.training import make_training

CPU = torch.device("cpu")


def lesson(labels: torch.Tensor, known: torch.Tensor | None = None) -> Lesson:
    return Lesson(labels, torch.arange(len(labels)), known=known)


def rates(schedule_of: Any, updates: int, every: int = 0, **options: Any) -> list[float]:
    """The learning rate of each update of a schedule; `every` updates are an epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = Schedule(optimizer, schedule_of(optimizer), **options)
    used = []
    for update in range(updates):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.after_update()
        if every and (update + 1) % every == 0:
            schedule.after_epoch(0.0)
    return used


def test_label_smoothing_gives_its_share_to_all_classes_alike() -> None:
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    shares = F.one_hot(labels, 4) * 0.9 + 0.1 / 4
    expected = -(shares * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(HardLoss("multi-class", 0.1)(logits, lesson(labels)), expected)
    several = torch.tensor([[1, 0, 1, 0]] * 6)
    p, shares = logits.sigmoid(), several * 0.9 + 0.05
    expected = -(shares * p.log() + (1 - shares) * (1 - p).log()).mean()
    torch.testing.assert_close(HardLoss("multi-label", 0.1)(logits, lesson(several)), expected)


def test_balanced_weights_are_scikit_learns_and_weigh_the_loss() -> None:
    labels = torch.tensor([0] * 12 + [1] * 3 + [2] * 5)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    weights = balanced_weights(labels, "multi-class", 3)
    assert weights == pytest.approx(expected.tolist())
    logits = torch.randn(20, 3)
    each = torch.tensor(weights)[labels]
    expected_loss = (each * F.cross_entropy(logits, labels, reduction="none")).sum() / each.sum()
    loss = HardLoss("multi-class", class_weights=weights)(logits, lesson(labels))
    torch.testing.assert_close(loss, expected_loss)
    several = torch.tensor([[1, 0], [1, 1], [1, 0], [0, 0]])
    assert balanced_weights(several, "multi-label", 2) == [1 / 3, 3.0]


@pytest.mark.parametrize(("given", "counted"), [("balanced", None), ("[1,2,3]", [1.0, 2.0, 3.0])])
def test_class_weights_reach_the_loss_of_a_stage(given: str, counted: list[float] | None) -> None:
    settings = settings_of(f"class_weights={given}", "label_smoothing=0.2", "stage.student.label_smoothing=0.3")
    context = make_run_context(settings, load_dataset(settings))
    labels = context.dataset.train.labels
    expected = counted or compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy()).tolist()
    for role, smoothing in (("teacher", 0.2), ("student", 0.3)):
        stage = settings.stage(role)
        teachers = {name: tiny.network(3, 1) for name in stage.teachers}
        loss = build_parts(context, stage, teachers).learner.objective.hard_loss
        assert loss.weights is not None and loss.weights.tolist() == pytest.approx(expected)
        assert loss.label_smoothing == smoothing
    wrong = settings_of("class_weights=[1,2]")
    with pytest.raises(KdxError, match=r"class_weights=\[1, 2\]: 2 numbers for 3 classes"):
        build_parts(make_run_context(wrong, context.dataset), wrong.stage("teacher"), {})


def test_clipping_cuts_the_gradients_norm_before_the_update(tmp_path: Path) -> None:
    def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0)

    moved = []
    for folder, options in (("free", {}), ("clipped", {"clip_norm": 0.01})):
        training = make_training(tmp_path / folder, optimizer=sgd, **options)
        before = [parameter.detach().clone() for parameter in training.network.parameters()]
        training.trainer.train_step(next(training.trainer.train.epoch(1)), 1, 1)
        after = training.network.parameters()
        moved.append([(new - old).detach() for new, old in zip(after, before, strict=True)])
    free, clipped = moved
    norm = torch.sqrt(sum((step**2).sum() for step in free))
    assert norm > 0.02
    for one, other in zip(free, clipped, strict=True):
        torch.testing.assert_close(other, one * 0.01 / norm, rtol=1e-4, atol=1e-7)


def test_the_average_of_the_weights_is_what_is_validated_kept_and_shipped(tmp_path: Path) -> None:
    plain = make_training(tmp_path / "plain", epochs=1)
    seen = []
    plain.trainer.optimizer.register_step_post_hook(
        lambda *_: seen.append([parameter.detach().clone() for parameter in plain.network.parameters()])
    )
    average = [parameter.detach().clone() for parameter in plain.network.parameters()]
    plain.fit()
    for weights in seen:
        average = [0.7 * old + 0.3 * new for old, new in zip(average, weights, strict=True)]
    averaging = make_training(tmp_path / "average", epochs=1, ema=0.7)
    best = averaging.fit()
    kept = torch.load(tmp_path / "average" / best.file, weights_only=True)["model"]
    for (name, _), expected in zip(plain.network.named_parameters(), average, strict=True):
        torch.testing.assert_close(kept[name], expected)
    assert averaging.history[0]["val_loss"] != plain.history[0]["val_loss"]
    assert averaging.history[0]["train_loss"] == plain.history[0]["train_loss"]


@pytest.mark.parametrize("select", ["accuracy", "auc", "f1", "loss"])
def test_what_selects_names_the_best_epoch_and_its_file(tmp_path: Path, select: str) -> None:
    training = make_training(tmp_path, epochs=6, select=select)
    best = training.fit()
    column = {"accuracy": "val_accuracy", "auc": "val_auc", "f1": "val_f1_score", "loss": "val_loss"}[select]
    sign = 1 if select == "loss" else -1
    values = [(sign * row[column], row["val_loss"], row["epoch"]) for row in training.history]
    assert best.epoch == min(values)[2]
    short = {"accuracy": "acc", "f1": "f1", "auc": "auc", "loss": "loss"}[select]
    assert best.file.startswith(f"best_{short}_") and [p.name for p in tmp_path.glob("best_*.pth")] == [best.file]
    assert ("val_auc" in training.history[0]) == (select == "auc")


def test_patience_ends_a_training_also_one_that_was_resumed(tmp_path: Path) -> None:
    def frozen(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1e-30)  # nothing is learnt: the first epoch stays the best

    whole = make_training(tmp_path / "whole", epochs=50, patience=3, optimizer=frozen)
    whole.network.norm.momentum = 0.0  # type: ignore[union-attr]  # statistics stay, too
    assert whole.fit().epoch == 1 and len(whole.history) == 4
    parts = make_training(tmp_path / "parts", epochs=50, patience=3, optimizer=frozen)
    parts.network.norm.momentum = 0.0  # type: ignore[union-attr]
    parts.fit(epochs=2)
    again = make_training(tmp_path / "parts", epochs=50, patience=3, optimizer=frozen)
    again.network.norm.momentum = 0.0  # type: ignore[union-attr]
    again.resume(tmp_path / "parts")
    again.fit()
    assert len(again.history) == 4


def test_cosine_is_torchs_at_every_update() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs, expected = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20), []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(lambda o: cosine(o, Span(4, 5)), 20) == pytest.approx(expected)


def test_warm_up_rises_on_a_line_and_then_the_cosine_begins() -> None:
    span = Span(4, 5, warmup=2)
    used = rates(lambda o: cosine(o, span), 20, warmup_updates=span.warmup_updates)
    assert used[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert used[10:] == pytest.approx([(1 + math.cos(math.pi * k / 10)) / 2 for k in range(10)])


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_scheduler_of_torchs_steps_by_epochs_under_the_same_warm_up(warmup: int) -> None:
    def theirs(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.ExponentialLR(
            optimizer, 0.5
        )  # from the rate before: the warm-up must not enter

    ramp = [(k + 1) / 3 if k < warmup else 1.0 for k in range(8)]
    expected = [0.5 ** (k // 2) * ramp[k] for k in range(8)]
    assert rates(theirs, 8, every=2, warmup_updates=warmup) == pytest.approx(expected)
    by_updates = [0.5**k * ramp[k] for k in range(8)]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, used = Schedule(optimizer, theirs(optimizer), warmup, "update"), []
    for _ in range(8):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.after_update()
    assert used == pytest.approx(by_updates)


def test_one_cycle_steps_by_updates_as_torch_documents_it() -> None:
    def theirs(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=8)

    assert len(set(rates(theirs, 8, every=4))) == 8


def test_milestones_below_one_are_shares_and_from_one_on_epochs() -> None:
    used = rates(lambda o: step(o, Span(8, 2), [0.5, 6], 0.1), 16)
    assert used == pytest.approx([1.0] * 8 + [0.1] * 4 + [0.01] * 4)


def test_a_milestone_after_the_end_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(KdxError, match=r"scheduler.milestones=\[0.5, 9\]: the stage has 8 epochs"):
        step(optimizer, Span(8, 2), [0.5, 9], 0.1)


@pytest.mark.parametrize(("select", "reduced"), [("accuracy", False), ("loss", True)])
def test_a_plateau_is_one_of_what_selects(tmp_path: Path, select: str, reduced: bool) -> None:
    """The loss grows and the accuracy with it: only by the loss there is nothing to wait for."""
    stage = settings_of(f"select={select}", "scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau",
                        "+scheduler.patience=0", "scheduler._partial_=true").stage("teacher")  # fmt: skip
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = build_schedule(stage, optimizer, Span(4, 2), "multi-class")
    for score in (1.0, 2.0, 3.0):
        schedule.after_epoch(score)
    assert (optimizer.param_groups[0]["lr"] < 1) is reduced


def test_a_plateau_in_the_wrong_direction_is_refused() -> None:
    stage = settings_of("scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", "+scheduler.mode=min",
                        "scheduler._partial_=true").stage("teacher")  # fmt: skip
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(
        KdxError, match="ReduceLROnPlateau steps once an epoch by what select chooses; its mode must be max"
    ):
        build_schedule(stage, optimizer, Span(4, 2), "multi-class")


def learner_of(network: torch.nn.Module) -> Learner:
    return Learner(network, Distillation(HardLoss("multi-class"), Weight.of(1)), choose_precision("off", CPU))


def test_only_weights_decay_where_that_is_asked_for() -> None:
    stage = settings_of("optimizer=sgd", "optimizer.decay=weights", "optimizer.weight_decay=0.5", "optimizer.lr=1",
                        "optimizer.momentum=0").stage("teacher")  # fmt: skip
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten())
    for parameter in network.parameters():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(stage, learner_of(network)).step()
    after = {name: float(parameter.detach().mean()) for name, parameter in network.named_parameters()}
    assert after == {"0.weight": 0.5, "0.bias": 1.0, "1.weight": 1.0, "1.bias": 1.0}


def test_decay_of_an_optimizer_without_one_is_refused() -> None:
    stage = settings_of("optimizer._target_=torch.optim.LBFGS", "optimizer.decay=weights", "~optimizer.weight_decay",
                        "~optimizer.fused").stage("teacher")  # fmt: skip
    with pytest.raises(KdxError, match="optimizer"):
        build_optimizer(stage, learner_of(torch.nn.Linear(2, 2)))


def test_a_learning_rate_for_a_method_that_trains_nothing_is_refused() -> None:
    with pytest.raises(KdxError, match="kd.lr=0.5: this method trains nothing of its own"):
        build_optimizer(settings_of("kd=dkd", "kd.lr=0.5").stage("student"), learner_of(torch.nn.Linear(2, 2)))


@pytest.mark.parametrize(
    "scheduler",
    [
        {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.01, "total_steps": 100},
        {"_target_": "torch.optim.lr_scheduler.CyclicLR", "base_lr": 0.01, "max_lr": 0.1},
        {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": [0.01, 0.1], "total_steps": 100},
        {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 3},
    ],
)
def test_a_schedule_with_one_rate_for_all_is_refused_beside_a_rate_of_the_methods_own(scheduler: dict) -> None:
    stage = settings_of("kd=ctkd", "kd.lr=0.5", "optimizer=sgd").stage("student")
    stage = replace(stage, scheduler=scheduler | {"_partial_": True})
    learner = learner_of(torch.nn.Linear(2, 2))
    learner.objective.register_parameter("own", torch.nn.Parameter(torch.ones(1)))
    optimizer = build_optimizer(stage, learner)
    if "Cy" in scheduler["_target_"] and not isinstance(scheduler["max_lr"], list):
        with pytest.raises(KdxError, match="kd.lr=0.5: torch.optim.lr_scheduler.*LR gives all that is trained one"):
            build_schedule(stage, optimizer, Span(1, 100, 0.0), "multi-class")
    else:
        build_schedule(stage, optimizer, Span(1, 100, 0.0), "multi-class")
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates[1] / rates[0] == pytest.approx(50 if "step_size" in scheduler else 10)


@pytest.mark.parametrize("key", ["stage.student.label_smoothing=0.3", "class_weights=[1,5,9]"])
@pytest.mark.parametrize("loss", ["kd._target_=kdx.losses.KnowledgeDistillationLoss", "kd.alpha=1", "kd.alpha=0.5"])
def test_a_key_of_the_loss_by_the_labels_that_does_nothing_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, loss: str, key: str
) -> None:
    run_chain(settings_of("stage=student", "stage.student.guide=teacher", loss, key, "plan=true"), tmp_path)
    told = [message for message in caplog.messages if "does nothing: the loss by the labels" in message]
    assert len(told) == (loss != "kd.alpha=0.5") and all(m.startswith("warning: stage.student: ") for m in told)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["stage.teacher.kd=dkd"], ["warning: stage.teacher.kd does nothing: stage.teacher.guide=null"]),
        (["stage.student.guide=null", "stage.student.kd.alpha=0.3"], ["warning: stage.student.kd does nothing: stage.student.guide=null"]),
        (["kd=none", "stage.student.kd.alpha=0.3"], ["warning: stage.student.kd does nothing: kd=none"]),
        (["stage.student.kd=none"], []),
        (["kd=none", "stage.student.kd=dkd"], []),
    ],
)  # fmt: skip
def test_a_method_of_a_stage_without_a_teacher_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, given: list[str], told: list[str]
) -> None:
    run_chain(settings_of("stage=all", *given, "plan=true"), tmp_path)
    assert [message for message in caplog.messages if "does nothing" in message] == told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["ema=0.999"], "ema=0.999: after 8 updates 99% of the average that is kept are the first weights; at most ema=0.687 fits"),
        (["ema=0.6"], None),
        (["scheduler.warmup=5"], "scheduler.warmup=5: the learning rate rises during all 2 epochs"),
        (["scheduler.warmup=1"], None),
    ],
)  # fmt: skip
def test_an_average_or_a_warm_up_that_is_too_long_for_the_training_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, given: list[str], told: str | None
) -> None:
    run_chain(settings_of("stage=student", "kd=none", *given, "plan=true"), tmp_path)
    assert [message for message in caplog.messages if "fits" in message or "rises" in message] == (
        [f"warning: stage.student: {told}"] if told else []
    )


@pytest.mark.parametrize(("wanted", "number"), [(0.1, 20), (0.5, 100), (30, 30)])
def test_a_part_of_the_labels_has_every_class_in_its_share_and_grows_without_change(wanted: float, number: int) -> None:
    labels = torch.tensor([0] * 100 + [1] * 60 + [2] * 40)[torch.randperm(200)]
    chosen = labelled_images(labels, wanted, "multi-class", seed=3)
    assert chosen is not None and int(chosen.sum()) == number
    counts = torch.bincount(labels[chosen], minlength=3) / number
    assert torch.allclose(counts, torch.tensor([0.5, 0.3, 0.2]), atol=2 / number)
    more = labelled_images(labels, 0.6, "multi-class", seed=3)
    assert more is not None and bool((more >= chosen).all())
    other = labelled_images(labels, wanted, "multi-class", seed=4)
    assert other is not None and not torch.equal(other, chosen)
    assert labelled_images(labels, 1.0, "multi-class", seed=3) is None


def test_a_rare_class_keeps_an_image_and_too_few_labels_are_refused() -> None:
    labels = torch.tensor([0] * 198 + [1] * 2)
    chosen = labelled_images(labels, 4, "multi-class", seed=0)
    assert chosen is not None and bool((labels[chosen] == 1).any())
    with pytest.raises(KdxError, match="labelled=0.001: 0 of 200 images for 2 classes"):
        labelled_images(labels, 0.001, "multi-class", seed=0)
    with pytest.raises(KdxError, match="labelled=300: the training split has 200 images"):
        labelled_images(labels, 300, "multi-class", seed=0)


def test_hidden_labels_are_left_out_or_only_hidden() -> None:
    data = tiny.dataset("multi-class", classes=3, count=30)
    known = torch.arange(30) % 3 == 0
    options: dict[str, Any] = {"batch_size": 8, "device": CPU, "shuffle": True, "known": known}
    prepared = Preprocessing((0.5,), (0.5,))
    left_out = [batch for batch in Batches(data.train, prepared, known_only=True, **options).epoch(1)]
    seen = torch.cat([batch.indices for batch in left_out])
    assert sorted(seen.tolist()) == known.nonzero().flatten().tolist()
    assert all(batch.known is None for batch in left_out)
    hidden = list(Batches(data.train, prepared, **options).epoch(1))
    assert sum(len(batch.labels) for batch in hidden) == 30
    assert all(torch.equal(batch.known, known[batch.indices]) for batch in hidden if batch.known is not None)
    assert all(batch.known is not None for batch in hidden)


def test_a_hidden_label_changes_neither_weights_nor_scores(tiny_run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a part of the labels is used: what the others say must not matter."""
    more = ["stage=student", "stage.student.guide=teacher", "stage.student.labelled=0.5", "epochs=2"]
    known = torch.arange(len(tiny.dataset().train)) % 2 == 0
    monkeypatch.setattr("kdx.chain.batches.labelled_images", lambda *given: known if given[1] < 1 else None)
    first = tiny_run(*more, "stage.reuse=never")
    original = tiny.dataset

    def with_other_hidden_labels(*given: Any, **options: Any) -> Any:
        data = original(*given, **options)
        data.train.labels[~known] = (data.train.labels[~known] + 1) % 3
        return data

    monkeypatch.setattr(tiny, "dataset", with_other_hidden_labels)
    teacher = f"stage.teacher.checkpoint={first.checkpoint('teacher')}"
    second = tiny_run(*more, "stage.reuse=never", teacher)
    assert digest(first.checkpoint("student")) == digest(second.checkpoint("student"))


def digest(checkpoint: Path) -> dict[str, list[float]]:
    weights = torch.load(checkpoint, weights_only=True)["model"]
    return {name: value.flatten().tolist() for name, value in weights.items()}


@pytest.mark.parametrize(
    ("labelled", "told"), [("0.5", ", with 0.5 of the labels"), ("30", ", with 30 labels"), ("1.0", "")]
)
def test_the_plan_tells_of_labels_that_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, labelled: str, told: str
) -> None:
    caplog.set_level("INFO")
    run_chain(settings_of("stage=student", "kd=none", f"stage.student.labelled={labelled}", "plan=true"), tmp_path)
    (line,) = [line for line in caplog.text.splitlines() if line.startswith("  student ")]
    assert line.endswith(f"train 2 epochs{told}")
