"""Hinton's distillation (1503.02531): the softened probabilities of the teacher, and those of every label by itself."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx.losses.objective import Lesson, Objective
from kdx.losses.standardisation import compared_logits, refusal_of_standardised
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs


def hard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (N, C) with labels (N,), or binary cross-entropy with labels (N, L) of 0 and 1.

    The mean over the batch (and over the labels of a multi-label set).
    """
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)) of logits (N, C), mean over the batch (1503.02531)."""
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def soft_loss_per_label(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """T^2 times the binary KL at temperature T of every label, for logits (N, L); mean over images and labels."""
    student, teacher = student_logits / temperature, teacher_logits / temperature
    probability = torch.sigmoid(teacher)
    present = probability * (F.logsigmoid(teacher) - F.logsigmoid(student))
    absent = (1 - probability) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return temperature**2 * (present + absent).mean()


class Hinton(Objective):
    """T^2 KL(softmax(teacher/T) || softmax(student/T)); the binary KL of every label for multi-label sets.

    Usual weights: cross-entropy 0.1 and this 0.9 at T 4 (CIFAR), 0.5 and 0.5 at T 1 (ImageNet). `standardise` (logit
    standardisation) was published with 0.1 and 9 at T 2; it teaches nothing with two classes.
    """

    relates = False

    def __init__(self, temperature: float = 4.0, standardise: bool = False) -> None:
        super().__init__()
        check_numbers(temperature=temperature)
        self.temperature, self.standardise = temperature, bool(standardise)

    def refusal(self, task: str, num_classes: int) -> str | None:
        refused = super().refusal(task, num_classes)
        return refused or refusal_of_standardised(self.standardise, task, num_classes)

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        by, under = compared_logits(student, teacher, self.standardise)
        soften = soft_loss_per_label if self.multi_label else soft_loss
        return {"loss": soften(by, under, self.temperature)}


class KnowledgeDistillationLoss(nn.Module):
    """alpha T^2 KL(teacher || student) + (1 - alpha) CE (1503.02531); per label for labels of shape (N, L).

    Raises `ValueError` unless temperature > 0 and 0 <= alpha <= 1.
    """

    def __init__(self, temperature: float = 4.0, alpha: float = 0.7) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature={temperature}: a finite number above 0 is needed")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha}: a number from 0 to 1 is needed")
        self.temperature = float(temperature)
        self.alpha = float(alpha)

    def terms(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The total as `loss`, and its unweighted parts `hard_loss` and `soft_loss`; no gradient to the teacher."""
        soften = soft_loss_per_label if labels.ndim == 2 else soft_loss
        soft = soften(student_logits, teacher_logits.detach(), self.temperature)
        hard = hard_loss(student_logits, labels)
        return {"loss": self.alpha * soft + (1 - self.alpha) * hard, "hard_loss": hard, "soft_loss": soft}

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """The total, a scalar."""
        return self.terms(student_logits, teacher_logits, labels)["loss"]
