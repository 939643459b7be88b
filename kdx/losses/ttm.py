"""Transformed teacher matching (2402.11148): the teacher to a power, the student as it is; WTTM weighs the images."""

import torch.nn.functional as F
from torch import Tensor

from kdx.losses.log_space import binary_kl, kl
from kdx.losses.objective import Lesson, Objective
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs


def transformed_kl(student: Tensor, teacher: Tensor, power: float) -> Tensor:
    """KL(softmax(power * teacher) || softmax(student)) of each image (N,), from logits (N, C)."""
    return kl(student.log_softmax(dim=1), (power * teacher).log_softmax(dim=1))


def power_sum(teacher: Tensor, power: float) -> Tensor:
    """The sum over classes of softmax(teacher)^power, of each image (N,): 1 where the teacher is certain, at most C."""
    return (power * teacher.log_softmax(dim=1)).logsumexp(dim=1).exp()


def power_sum_per_label(teacher: Tensor, power: float) -> Tensor:
    """p^power + (1 - p)^power of each label (N, L) with p = sigmoid(teacher)."""
    return (power * F.logsigmoid(teacher)).exp() + (power * F.logsigmoid(-teacher)).exp()


class TTM(Objective):
    """KL(teacher^power || student), both at temperature 1; mean over images.

    As published: cross-entropy with weight 1, power 0.1 (1 / T), and weights found for each pair of networks. For
    multi-label sets the same of every label, mean over labels (not published).
    """

    relates = False

    def __init__(self, power: float = 0.1) -> None:
        super().__init__()
        check_numbers(power=power)
        self.power = power

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        target = teacher.logits.detach()
        if self.multi_label:
            return {"loss": binary_kl(student.logits, self.power * target).mean()}
        return {"loss": transformed_kl(student.logits, target, self.power).mean()}


class WTTM(TTM):
    """TTM with every image (every label of a multi-label set) weighted by the teacher's sum of powers.

    As published: cross-entropy with weight 1, power 0.1 with weight 45 (vgg13 to vgg8), 0.2 with 4 beside CRD; other
    pairs' weights are in the paper.
    """

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        target = teacher.logits.detach()
        if self.multi_label:
            each = binary_kl(student.logits, self.power * target) * power_sum_per_label(target, self.power)
        else:
            each = transformed_kl(student.logits, target, self.power) * power_sum(target, self.power)
        return {"loss": each.mean()}
