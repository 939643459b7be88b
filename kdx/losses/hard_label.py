"""Hard-label distillation (DeiT, 2012.12877): the class that the teacher chooses is the label."""

import torch.nn.functional as F
from torch import Tensor

from kdx.losses.objective import Lesson, Objective
from kdx.models.features import Outputs
from kdx.tasks import SINGLE_LABEL


def hard_label_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of logits (N, C) with the teacher's choice, mean over images."""
    return F.cross_entropy(student, teacher.argmax(dim=1))


class HardLabel(Objective):
    """The cross-entropy with what the teacher chooses; as published half of the loss, the labels are the other half.

    It has no numbers. Undefined for multi-label sets. The distillation token of the paper is for transformers.
    """

    tasks = SINGLE_LABEL
    instead = "hinton, wttm or ctkd"

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        return {"loss": hard_label_loss(student.logits, teacher.logits)}
