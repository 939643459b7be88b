"""Normalised knowledge distillation (2303.13005): the true class by its own probability, the rest as a softmax."""

from torch import Tensor

from kdx.losses.log_space import log_softmax_within, mask_of
from kdx.losses.objective import Lesson, Objective
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs
from kdx.tasks import SINGLE_LABEL


def normalised_losses(student: Tensor, teacher: Tensor, classes: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """-p_t log p_s of the true class at T = 1, and T^2 times the cross-entropy of the softmax over the other classes.

    Logits (N, C), classes (N,); means over images. Cross-entropies, not KL: equal networks do not give 0.
    """
    at = classes[:, None]
    target = -teacher.softmax(dim=1).gather(1, at) * student.log_softmax(dim=1).gather(1, at)
    others = ~mask_of(classes, student)
    log_s, log_t = (log_softmax_within(logits / temperature, others) for logits in (student, teacher))
    return target.mean(), -(temperature**2) * (log_t.exp() * log_s).sum(dim=1).mean()


class NKD(Objective):
    """The true class's loss plus gamma times that of the other classes.

    As published: cross-entropy with weight 1 beside it, gamma 1.5, T 1. Undefined for multi-label sets; with two
    classes only the first term is left, which is a cross-entropy weighted by the teacher.
    """

    relates = False
    tasks = SINGLE_LABEL
    min_classes = 3
    instead = "hinton, wttm or ctkd"

    def __init__(self, gamma: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__()
        check_numbers(gamma=gamma, temperature=temperature)
        self.gamma, self.temperature = gamma, temperature

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        classes = lesson.classes(teacher.logits)
        target, others = normalised_losses(student.logits, teacher.logits.detach(), classes, self.temperature)
        return {"loss": target + self.gamma * others, "target_loss": target, "others_loss": others}
