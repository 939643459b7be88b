"""Weighted soft labels (2102.00650): an image teaches softly where the student is worse at it than the teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx.losses.objective import Lesson, Objective
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs
from kdx.tasks import SINGLE_LABEL

EPS = 1e-7


def image_weights(student: Tensor, teacher: Tensor, classes: Tensor) -> Tensor:
    """1 - exp(-CE(student) / CE(teacher)) of each image (N,), without gradient; logits (N, C), classes (N,)."""
    with torch.no_grad():
        by, under = (F.cross_entropy(logits, classes, reduction="none") for logits in (student, teacher))
        return 1 - torch.exp(-by / (under + EPS))


def weighted_soft_labels(student: Tensor, teacher: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """T^2 times the mean over images of weight times cross-entropy of softmax(student/T) with softmax(teacher/T)."""
    soft = F.cross_entropy(student / temperature, (teacher / temperature).softmax(dim=1), reduction="none")
    return temperature**2 * (image_weights(student, teacher, classes) * soft).mean()


class WSLD(Objective):
    """Soft cross-entropy, every image weighted by how far the student is behind the teacher at T = 1.

    As published: cross-entropy with weight 1, this with 2.5 at T 2 (ImageNet), 2.25 at T 4 (CIFAR). Not published for
    multi-label sets.
    """

    relates = False
    tasks = SINGLE_LABEL
    instead = "hinton, wttm or ctkd"

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        check_numbers(temperature=temperature)
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        classes = lesson.classes(teacher.logits)
        return {"loss": weighted_soft_labels(student.logits, teacher.logits.detach(), classes, self.temperature)}
