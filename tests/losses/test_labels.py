"""Hidden labels teach nothing, whatever stands there, and mixed images have shares: of every option of conf/kd."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from kdx import losses
from kdx.data.batches import Batch
from kdx.losses.distillation import Distillation, Term, Weight, as_objective
from kdx.losses.hard import HardLoss
from kdx.losses.objective import Facts, Lesson
from kdx.tasks import TASKS
from kdx.training.distributed import parts_of
from kdx.training.trainer import lesson_of
from tests.losses.examples import Option, options, outputs, tracked

IMAGES = 6
EACH = options(*TASKS)
each_option = pytest.mark.parametrize("option", EACH, ids=lambda option: f"{option.name}-{option.task}")
KNOWN = torch.tensor([True, False, True, False, True, True])


class Whole(Option):
    """A user's own loss, and the one that earlier configs name."""

    def terms(self) -> tuple[Weight, dict[str, Term]]:
        loss = losses.KnowledgeDistillationLoss()
        return Weight.of(0), {"kd": Term(as_objective(loss), Weight.of(1))}


WHOLE = [Whole("own", task) for task in TASKS]


def objective_of(option: Option) -> Distillation:
    torch.manual_seed(1)
    student, teacher = (outputs(of, 2, option.classes) for of in ("student", "teacher"))
    objective = Distillation(HardLoss(option.task), *option.terms())
    objective.prepare([Facts(option.task, option.classes, 30, student, teacher)])
    return objective


def targets_of(option: Option, shift: int = 0) -> Tensor:
    numbers = torch.arange(IMAGES) + shift
    if option.task == "multi-label":
        return ((numbers[:, None] + torch.arange(option.classes)) % 3 != 0).long()
    return numbers % option.classes


def step(option: Option, lesson: Lesson) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parts, and all that a training step changes or goes by: gradients, and the state that is left."""
    objective = objective_of(option)
    student, leaves = tracked(outputs("student", IMAGES, option.classes))
    parts = objective(student, [outputs("teacher", IMAGES, option.classes)], lesson)
    trained = dict(objective.named_parameters())
    found = torch.autograd.grad(parts["loss"], [*leaves, *trained.values()], allow_unused=True, materialize_grads=True)
    return {key: part.detach() for key, part in parts.items()}, dict(enumerate(found)) | objective.state_dict()


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("option", [*EACH, *WHOLE], ids=lambda option: f"{option.name}-{option.task}")
def test_a_hidden_label_changes_nothing(option: Option) -> None:
    """Not the loss or a part of it, no gradient and no memory; not even where it is no label at all."""
    targets = targets_of(option)
    plain = step(option, Lesson(targets, torch.arange(IMAGES), 0.5, KNOWN))
    for other in (targets_of(option, 1), torch.full_like(targets, -1), torch.full_like(targets, 10**6)):
        hidden = targets.where(KNOWN if targets.ndim == 1 else KNOWN[:, None], other)
        changed = step(option, Lesson(hidden, torch.arange(IMAGES), 0.5, KNOWN))
        assert same(plain[0], changed[0]) and same(plain[1], changed[1])
    all_known = step(option, Lesson(targets, torch.arange(IMAGES), 0.5, torch.ones(IMAGES, dtype=torch.bool)))
    assert same(all_known[0], step(option, Lesson(targets, torch.arange(IMAGES), 0.5))[0])
    assert not torch.equal(all_known[0]["loss"], plain[0]["loss"])


@each_option
def test_without_any_label_the_teacher_alone_teaches(option: Option) -> None:
    nobody = torch.zeros(IMAGES, dtype=torch.bool)
    parts, gradients = step(option, Lesson(targets_of(option), torch.arange(IMAGES), 0.5, nobody))
    terms = option.terms()[1]
    assert float(parts["hard_loss"]) == 0
    weighed = {
        key: terms[key.split("_")[0] if len(terms) > 1 else "kd"].weight.at(0.5) * float(part)
        for key, part in parts.items()
        if key.endswith(("soft_loss", "feature_loss"))
    }
    assert float(parts["loss"]) == pytest.approx(sum(weighed.values()), rel=1e-5)
    assert all(torch.isfinite(value).all() for value in gradients.values())
    assert any(gradients[number].abs().sum() > 0 for number in gradients if isinstance(number, int))


@each_option
def test_mixed_images_are_compared_with_their_shares(option: Option) -> None:
    """The hard loss is that of the shares; the methods take the larger one, or what is present by more than half."""
    one, two = targets_of(option), targets_of(option, 1)
    if one.ndim == 1:
        one, two = (torch.nn.functional.one_hot(labels, option.classes) for labels in (one, two))
    parts, gradients = step(option, Lesson(0.7 * one + 0.3 * two, torch.arange(IMAGES), 0.5))
    pure = [step(option, Lesson(targets_of(option, shift), torch.arange(IMAGES), 0.5))[0] for shift in (0, 1)]
    expected = 0.7 * pure[0]["hard_loss"] + 0.3 * pure[1]["hard_loss"]  # both losses are linear in their targets
    assert float(parts["hard_loss"]) == pytest.approx(float(expected), rel=1e-5)
    for key in parts.keys() - {"hard_loss", "loss"}:
        assert torch.equal(parts[key], pure[0][key])
    assert all(torch.isfinite(value).all() for value in gradients.values())


@pytest.mark.parametrize("option", WHOLE[:3], ids=lambda option: option.task)
def test_ones_own_loss_gets_class_numbers_of_mixed_images(option: Option) -> None:
    """Shares (B, C) would look like the labels of a multi-label set to it."""
    targets = torch.nn.functional.one_hot(targets_of(option), option.classes) * 0.7 + 0.3 / option.classes
    parts = step(option, Lesson(targets, torch.arange(IMAGES), 0.5))[0]
    assert torch.equal(parts["loss"], step(option, Lesson(targets_of(option), torch.arange(IMAGES), 0.5))[0]["loss"])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("weights", [None, [3.0, 0.0, 0.5]])
@pytest.mark.parametrize("known", [[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 0], [1, 0, 0, 1, 0, 1, 1], [0] * 7])
def test_a_batch_in_parts_weighs_its_labels_as_a_whole_one_does(
    task: str, known: list[int], weights: list[float] | None
) -> None:
    """A part that holds all of a batch's few labels, or those that weigh most, must not count less for it."""
    classes = 2 if task == "binary-class" else 3
    labels = targets_of(Option("hinton", task)).roll(1, 0)
    labels = torch.cat([labels, labels[:1]])
    batch = Batch(torch.zeros(7, 1, 2, 2), labels, torch.arange(7), labels, torch.tensor(known).bool())
    logits = outputs("student", 7, classes).logits.double().requires_grad_()
    hard, found = HardLoss(task, class_weights=weights and weights[:classes]).double(), {}
    for count in (1, 2, 3):
        parts = zip(parts_of(batch, count), logits.tensor_split(count), strict=True)
        loss = sum(len(part.labels) / 7 * hard(says, lesson_of(part, batch, 0.0, hard.counts)) for part, says in parts)
        found[count] = [loss.detach(), *torch.autograd.grad(loss, logits)]
    for count in (2, 3):
        assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(found[1], found[count], strict=True))
    whole = hard(logits.detach(), Lesson(labels, torch.arange(7), 0.0, batch.known))
    assert float(found[1][0]) == pytest.approx(float(whole))
