import numpy as np
import pytest
import torch

from kdx.losses.distillation import Distillation, Term, Weight, as_objective
from kdx.losses.hard import HardLoss
from kdx.losses.hinton import KnowledgeDistillationLoss, hard_loss, soft_loss, soft_loss_per_label
from kdx.losses.objective import Lesson
from kdx.models.features import Outputs


def logits(rows: int, columns: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_total_agrees_with_numpy(temperature: float, alpha: float) -> None:
    """pitfall(10): the KL is divided by the batch only, and T^2 is there for every alpha."""
    student, teacher = logits(7, 5, 0), logits(7, 5, 1)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    p, q = softmax(teacher.numpy() / temperature), softmax(student.numpy() / temperature)
    soft = temperature**2 * (p * np.log(p / q)).sum() / 7
    hard = -np.log(softmax(student.numpy())[np.arange(7), labels.numpy()]).mean()
    terms = KnowledgeDistillationLoss(temperature, alpha).terms(student, teacher, labels)
    assert float(terms["soft_loss"]) == pytest.approx(soft, abs=1e-12)
    assert float(terms["hard_loss"]) == pytest.approx(hard, abs=1e-12)
    assert float(terms["loss"]) == pytest.approx(alpha * soft + (1 - alpha) * hard, abs=1e-12)


def test_multi_label_agrees_with_numpy() -> None:
    student, teacher = logits(6, 4, 2), logits(6, 4, 3)
    labels = (logits(6, 4, 4) > 0).to(torch.uint8)
    temperature, alpha = 3.0, 0.6

    def sigmoid(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    p, q = sigmoid(teacher.numpy() / temperature), sigmoid(student.numpy() / temperature)
    soft = temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    s, y = sigmoid(student.numpy()), labels.numpy()
    hard = -(y * np.log(s) + (1 - y) * np.log(1 - s)).mean()
    total = KnowledgeDistillationLoss(temperature, alpha)(student, teacher, labels)
    assert float(total) == pytest.approx(alpha * soft + (1 - alpha) * hard, abs=1e-12)


@pytest.mark.parametrize("labels", [torch.tensor([0, 2, 1]), torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 0]])])
def test_gradients_reach_the_student_only(labels: torch.Tensor) -> None:
    student, teacher = logits(3, 3, 5).requires_grad_(), logits(3, 3, 6).requires_grad_()
    KnowledgeDistillationLoss()(student, teacher, labels).backward()
    assert teacher.grad is None
    assert student.grad is not None and bool(student.grad.abs().sum() > 0)


def test_gradient_is_the_derivative() -> None:
    student, teacher = logits(4, 3, 7).requires_grad_(), logits(4, 3, 8)
    assert torch.autograd.gradcheck(lambda z: soft_loss(z, teacher, 2.0), (student,))
    assert torch.autograd.gradcheck(lambda z: soft_loss_per_label(z, teacher, 2.0), (student,))


def test_equal_logits_cost_nothing_and_huge_ones_stay_finite() -> None:
    z = logits(4, 3, 9)
    assert float(soft_loss(z, z, 4.0)) == pytest.approx(0, abs=1e-12)
    assert float(soft_loss_per_label(z, z, 4.0)) == pytest.approx(0, abs=1e-12)
    huge = torch.tensor([[1e4, -1e4, 0.0]])
    assert torch.isfinite(soft_loss(huge, -huge, 1.0))
    assert torch.isfinite(soft_loss_per_label(huge, -huge, 1.0))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature="):
        KnowledgeDistillationLoss(temperature=temperature)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_bad_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha="):
        KnowledgeDistillationLoss(alpha=alpha)


def test_terms_of_a_users_callable_and_of_labels_alone() -> None:
    student, teacher, labels = logits(3, 3, 1), logits(3, 3, 2), torch.tensor([0, 1, 2])
    lesson = Lesson(labels, torch.arange(3))
    plain = Term(as_objective(lambda s, t, y: (s - t).square().mean()), Weight.of(1))
    terms = Distillation(HardLoss("multi-class"), Weight.of(0), {"kd": plain})(
        Outputs(student), [Outputs(teacher)], lesson
    )
    assert float(terms["loss"]) == pytest.approx(float((student - teacher).square().mean()))
    assert float(terms["hard_loss"]) == pytest.approx(float(hard_loss(student, labels)))
    assert set(Distillation(HardLoss("multi-class"), Weight.of(1))(Outputs(student), [], lesson)) == {"loss"}
