"""Hard-label distillation (DeiT, 2012.12877): the class that the teacher chooses is the label."""

import torch.nn.functional as F
from torch import Tensor

from kdx.errors import KdxError
from kdx.losses.objective import Facts, Lesson, Objective, Words
from kdx.models.features import Outputs
from kdx.tasks import SINGLE_LABEL


def hard_label_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of logits (N, C) with the teacher's choice, mean over images."""
    return F.cross_entropy(student, teacher.argmax(dim=1))


class HardLabel(Objective):
    """The cross-entropy with what the teacher chooses; as published half of the loss, the labels are the other half.

    It has no numbers. `layers` names a layer that gives logits, such as the head of a distillation token, which then
    learns from the teacher alone, and the labels teach the other one. Undefined for multi-label sets.
    """

    relates = False
    tasks = SINGLE_LABEL
    instead = "hinton, wttm or ctkd"

    def __init__(self, layers: Words | None = None) -> None:
        super().__init__()
        if layers is not None:
            self.look_at(layers)
        self.teacher_layers = ()

    @property
    def teaches_classes(self) -> bool:
        return True  # its layer gives logits

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        for name, (logits, *_) in facts.student.features.items():
            if name in self.layers and logits.shape[1:] != (facts.num_classes,):
                shape = tuple(logits.shape)
                raise KdxError(f"layers={name}: gives {shape}, logits of {facts.num_classes} classes are needed")

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        logits = student.features[self.layers[0]][0] if self.layers else student.logits
        return {"loss": hard_label_loss(logits, teacher.logits)}
