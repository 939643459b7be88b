"""The loop with plain objects: no config, tiny networks."""

import csv
import io
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdx.checkpoint import load_checkpoint, write_checkpoint
from kdx.epoch_log import COLUMNS, EpochLogger
from kdx.errors import KdxError
from kdx.losses.hinton import KnowledgeDistillationLoss
from kdx.training.evaluation import evaluate
from kdx.training.runtime import choose_device
from kdx.training.schedules import Span, step
from tests import tiny
from tests.conftest import same_weights
from tests.training import make_training


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def test_learns_and_leaves_what_the_contract_lists(tmp_path: Path) -> None:
    training = make_training(tmp_path, epochs=8)
    best = training.fit()
    assert best.value > 60
    rows = rows_of(tmp_path / "log.csv")
    assert tuple(rows[0]) == COLUMNS and [row["epoch"] for row in rows] == [str(n) for n in range(1, 9)]
    assert [p.name for p in tmp_path.glob("best_acc_*.pth")] == [f"best_acc_{best.value:.2f}.pth"]
    latest = load_checkpoint(tmp_path / "latest.pth")
    assert latest["epoch"] == 8 and {"optimizer", "schedule", "scaler", "random", "progress", "objective"} <= set(
        latest
    )


def test_best_is_the_highest_validation_accuracy(tmp_path: Path) -> None:
    """pitfall(1), pitfall(6): chosen by number on the validation split; 100.00 does not sort before 9.50."""
    training = make_training(tmp_path, epochs=8)
    best = training.fit()
    history = training.history
    top = max(row["val_accuracy"] for row in history)
    chosen = min((row for row in history if row["val_accuracy"] == top), key=lambda row: row["val_loss"])
    content = load_checkpoint(tmp_path / best.file)
    assert content["epoch"] == chosen["epoch"] == best.epoch
    assert content["validation"]["accuracy"] == top


def test_a_weight_that_no_output_depends_on_is_sound_or_the_epoch_is_not_saved(tmp_path: Path) -> None:
    """Kernels leave what they like in the gradient of taps that only ever see padding: the loss stays finite."""
    training = make_training(tmp_path, epochs=3)
    network = training.network
    network.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    steps = []

    def spoil(*_: Any) -> None:
        steps.append(1)
        if len(steps) == 5:  # the second epoch's first
            network.get_parameter("unused").data.fill_(math.nan)

    training.trainer.optimizer.register_step_post_hook(spoil)
    with pytest.raises(KdxError, match=r"student: a weight is nan in epoch 2, step 4 .* set amp=off"):
        training.fit()
    assert load_checkpoint(tmp_path / "latest.pth")["epoch"] == 1


def test_logged_learning_rate_is_the_one_used(tmp_path: Path) -> None:
    """pitfall(11)"""
    training = make_training(tmp_path, epochs=4)
    training.fit()
    expected = [0.01 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert [row["learning_rate"] for row in training.history] == pytest.approx(expected)


class Recorder(nn.Module):
    """Remembers in which mode it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.network(3, 1)
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.inner(images)


def test_student_trains_in_every_epoch_and_the_guide_never_does(tmp_path: Path) -> None:
    """pitfall(27): train() again after every validation."""
    student, guide = Recorder(), Recorder()
    before = {key: value.clone() for key, value in guide.state_dict().items()}
    make_training(
        tmp_path, epochs=2, network=student, teachers={"teacher": guide}, objective=KnowledgeDistillationLoss()
    ).fit()
    per_epoch = [(True, True)] * 4 + [(False, False)] * 2
    assert student.modes == per_epoch * 2
    assert set(guide.modes) == {(False, False)}
    assert all(torch.equal(value, before[key]) for key, value in guide.state_dict().items())


@pytest.mark.parametrize("task", ["multi-class", "multi-label"])
def test_train_and_validation_losses_are_the_same_quantity(tmp_path: Path, task: str) -> None:
    """pitfall(8): both are the distillation loss, and their parts stand in columns of their own."""
    guide = tiny.wide(3, 1)
    make_training(tmp_path, task=task, teachers={"teacher": guide}, objective=KnowledgeDistillationLoss(2.0, 0.6)).fit()
    rows = rows_of(tmp_path / "log.csv")
    extra = ("train_hard_loss", "train_soft_loss", "val_hard_loss", "val_soft_loss")
    assert tuple(rows[0]) == COLUMNS + extra + (("val_auc",) if task == "multi-label" else ())
    for row in rows:
        for split in ("train", "val"):
            total = 0.6 * float(row[f"{split}_soft_loss"]) + 0.4 * float(row[f"{split}_hard_loss"])
            assert float(row[f"{split}_loss"]) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("task", ["multi-class", "multi-label"])
def test_line_of_an_epoch_has_the_auc_where_it_chooses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, task: str
) -> None:
    caplog.set_level("INFO", logger="kdx.epoch_log")
    training = make_training(tmp_path, task=task, epochs=1)
    training.fit()
    (line,) = caplog.messages
    (row,) = training.history
    assert ("val_auc" in row) == (task == "multi-label")
    assert f" auc {row['val_auc']:.4f}  lr " in line if task == "multi-label" else " auc " not in line


def test_epoch_loss_weighs_batches_by_their_size(tmp_path: Path) -> None:
    """pitfall(8): 30 images in batches of 8 leave a last one of 6."""

    def labels_seen(logits: torch.Tensor, guide_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return labels.float().mean() + 0 * logits.sum()

    training = make_training(tmp_path, epochs=1, teachers={"teacher": tiny.wide(3, 1)}, objective=labels_seen)
    training.fit()
    assert training.history[0]["train_loss"] == pytest.approx(1.0, abs=1e-6)  # labels are 0, 1, 2 in equal parts


def test_not_a_number_stops_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    calls = 0

    def breaks_in_epoch_two(logits: torch.Tensor, guide_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        factor = float("nan") if calls == 4 + 1 + 2 else 1.0  # 4 steps and a validation an epoch, then the second step
        return factor * nn.functional.cross_entropy(logits, labels)

    training = make_training(tmp_path, teachers={"teacher": tiny.wide(3, 1)}, objective=breaks_in_epoch_two)
    with pytest.raises(KdxError, match=r"student: loss is nan in epoch 2, step 2 \(lr .*\); lower optimizer.lr"):
        training.fit()
    content = load_checkpoint(tmp_path / "latest.pth")
    assert content["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in content["model"].values())
    assert all(torch.isfinite(value).all() for value in training.network.state_dict().values())  # no step was taken


def test_spoiled_weights_are_never_saved_inside_an_epoch(tmp_path: Path) -> None:
    """An infinite gradient with a finite loss: the step inside the epoch must not become latest.pth."""

    class Spoils(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, logits: torch.Tensor) -> torch.Tensor:
            return logits.clone()

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float("inf")

    def spoiling(logits: torch.Tensor, guide_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(Spoils.apply(logits), labels)

    loss = {"teachers": {"teacher": tiny.wide(3, 1)}, "objective": spoiling}
    training = make_training(tmp_path, checkpoint_every_steps=1, **loss)
    with pytest.raises(KdxError, match="a weight is nan in epoch 1, step 1"):
        training.fit()
    assert not (tmp_path / "latest.pth").exists()


def test_same_seed_gives_the_same_bits_another_seed_others(tmp_path: Path) -> None:
    """pitfall(13)"""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_training(tmp_path / name, seed=seed).fit()
    assert same_weights(tmp_path / "a" / "latest.pth", tmp_path / "b" / "latest.pth")
    assert not same_weights(tmp_path / "a" / "latest.pth", tmp_path / "c" / "latest.pth")


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("stop_after", [1, 2])
def test_resumed_run_ends_as_if_it_had_never_stopped(tmp_path: Path, amp: str, stop_after: int) -> None:
    """pitfall(4): everything needed to go on is saved."""
    make_training(tmp_path / "whole", amp=amp).fit()
    first = make_training(tmp_path / "parts", amp=amp)
    first.fit(stop_after)
    second = make_training(tmp_path / "parts", amp=amp)
    torch.rand(100)  # whatever was drawn before must not matter
    assert second.resume(tmp_path / "parts") and len(second.history) == stop_after
    second.fit()
    assert same_weights(tmp_path / "whole" / "latest.pth", tmp_path / "parts" / "latest.pth")
    untimed = [
        {k: v for k, v in row.items() if k != "epoch_time_sec"} for row in rows_of(tmp_path / "whole" / "log.csv")
    ]
    assert untimed == [
        {k: v for k, v in row.items() if k != "epoch_time_sec"} for row in rows_of(tmp_path / "parts" / "log.csv")
    ]


def test_resume_refuses_another_stages_checkpoint(tmp_path: Path) -> None:
    make_training(tmp_path, epochs=1).fit()
    with pytest.raises(KdxError, match="belongs to another stage"):
        make_training(tmp_path, seed=1).resume(tmp_path)


def test_snapshots_are_kept_at_the_interval(tmp_path: Path) -> None:
    make_training(tmp_path, epochs=4, save_interval=2).fit()
    assert sorted(p.name for p in tmp_path.glob("epoch_*.pth")) == ["epoch_0002.pth", "epoch_0004.pth"]


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_each_precision_learns_on_the_cpu(tmp_path: Path, amp: str) -> None:
    training = make_training(tmp_path, amp=amp, epochs=4)
    training.fit()
    assert training.history[-1]["train_loss"] < training.history[0]["train_loss"]
    assert training.trainer.scaler.is_enabled() == (amp == "fp16")
    assert all(value.dtype != torch.bfloat16 for value in training.network.state_dict().values())


def test_evaluation_counts_every_image(tmp_path: Path) -> None:
    training = make_training(tmp_path, task="binary-class")
    training.fit()
    scores = evaluate(training.network, training.trainer.val, training.trainer.precision, "binary-class", 2)
    assert scores["num_samples"] == 30 and sum(map(sum, scores["confusion_matrix"])) == 30
    assert 0 <= scores["auc"] <= 1


def test_finite_weights_that_give_nan_are_never_a_score(tmp_path: Path) -> None:
    training = make_training(tmp_path)
    training.network.get_buffer("norm.running_var").fill_(-1)
    with pytest.raises(KdxError, match=r"gives no numbers \(NaN or inf\) for 30 of 30 images"):
        evaluate(training.network, training.trainer.val, training.trainer.precision, "multi-class", 3)


@pytest.mark.parametrize("epochs", [1, 2, 3, 100])
def test_step_schedule_for_any_number_of_epochs(epochs: int) -> None:
    """pitfall(22): one epoch is enough."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = step(optimizer, Span(epochs, 1), [0.5, 0.75], 0.1)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == 1.0
    if epochs == 100:
        assert (rates[49], rates[50], rates[75]) == (1.0, pytest.approx(0.1), pytest.approx(0.01))


def test_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(KdxError, match="device=cuda:99"):
        choose_device("cuda:99")
    with pytest.raises(KdxError, match="device=tpu9"):
        choose_device("tpu9")


def test_log_takes_new_columns_and_rewrites_the_file(tmp_path: Path) -> None:
    """pitfall(23): rows with a new column neither fail nor stand under an old header."""
    logger = EpochLogger(tmp_path / "log.csv", "student", 2)
    row = dict.fromkeys(COLUMNS, 1)
    logger.write([row])
    logger.write([row, {**row, "epoch": 2, "train_soft_loss": 5}])
    rows = rows_of(tmp_path / "log.csv")
    assert [r["epoch"] for r in rows] == ["1", "2"]
    assert tuple(rows[0]) == (*COLUMNS, "train_soft_loss") and rows[1]["train_soft_loss"] == "5"


def test_the_next_epoch_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is written is the epoch that was to be saved, not what training has made of it since."""
    expected = make_training(tmp_path / "expected", epochs=2, save_interval=1)
    expected.fit()
    trained_on, seen = threading.Event(), []

    def slow(path: Path, buffer: io.BytesIO) -> None:
        if path.name.startswith("best") and not seen:  # the first epoch's first file
            seen.append(trained_on.wait(timeout=60))
        write_checkpoint(path, buffer)

    monkeypatch.setattr("kdx.training.keeper.write_checkpoint", slow)
    training = make_training(tmp_path / "slow", epochs=2, save_interval=1)
    steps = []

    def count(*_: Any) -> None:
        steps.append(1)
        if len(steps) > len(training.trainer.train):
            trained_on.set()

    training.trainer.optimizer.register_step_post_hook(count)
    training.fit()
    assert seen == [True]
    for name in ("epoch_0001.pth", "epoch_0002.pth"):
        assert same_weights(tmp_path / "expected" / name, tmp_path / "slow" / name)


def test_a_write_that_fails_ends_the_training_and_leaves_the_epochs_before(tmp_path: Path, monkeypatch) -> None:
    def full(path: Path, buffer: io.BytesIO) -> None:
        if path.name == "epoch_0002.pth":
            raise KdxError(f"cannot write {path}: No space left on device")
        write_checkpoint(path, buffer)

    monkeypatch.setattr("kdx.training.keeper.write_checkpoint", full)
    for epochs in (2, 4):  # the last epoch's write, and one that training has gone on from
        folder = tmp_path / str(epochs)
        training = make_training(folder, epochs=epochs, save_interval=1)
        with pytest.raises(KdxError, match="epoch_0002.pth: No space left"):
            training.fit()
        assert load_checkpoint(folder / "latest.pth")["epoch"] == 2 and len(training.history) < 4
