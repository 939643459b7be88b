"""Decoupled knowledge distillation (2203.08679): the true class against the rest, and the rest among themselves."""

from torch import Tensor

from kdx.losses.log_space import kl, log_softmax_within, mask_of, one_and_rest
from kdx.losses.objective import Lesson, Objective, refusal_of_two_classes
from kdx.losses.standardisation import compared_logits, refusal_of_standardised
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs
from kdx.tasks import SINGLE_LABEL


def decoupled_losses(student: Tensor, teacher: Tensor, classes: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 KL of (p, 1 - p) of the true class, and T^2 KL of the softmax over the other classes; means over images.

    Logits (N, C), classes (N,). Hinton's loss is the first plus (1 - the teacher's p) times the second, image by image.
    """
    student, teacher = student / temperature, teacher / temperature
    others = ~mask_of(classes, student)
    target = kl(one_and_rest(student, classes), one_and_rest(teacher, classes))
    rest = kl(log_softmax_within(student, others), log_softmax_within(teacher, others))
    return temperature**2 * target.mean(), temperature**2 * rest.mean()


class DKD(Objective):
    """alpha times the true class's loss plus beta times that of the other classes.

    As published: cross-entropy with weight 1 beside it, alpha 1, beta 8 (2 to 8 by pair; 0.5 on ImageNet), T 4
    (ImageNet 1), and the whole rising from 0 over 20 of 240 epochs; standardised T 2 and 9 times the weight.
    Undefined for multi-label sets. With two classes there is one other class, which teaches nothing.
    """

    relates = False
    tasks = SINGLE_LABEL
    instead = "hinton, wttm or ctkd"

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, standardise: bool = False
    ) -> None:
        super().__init__()
        check_numbers(alpha=alpha, beta=beta, temperature=temperature)
        self.alpha, self.beta, self.temperature, self.standardise = alpha, beta, temperature, standardise

    def refusal(self, task: str, num_classes: int) -> str | None:
        refused = super().refusal(task, num_classes) or refusal_of_standardised(self.standardise, task, num_classes)
        return refused or refusal_of_two_classes(self.beta, num_classes)

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        classes = lesson.classes(teacher.logits)
        by, under = compared_logits(student, teacher, self.standardise)
        target, others = decoupled_losses(by, under, classes, self.temperature)
        return {"loss": self.alpha * target + self.beta * others, "target_loss": target, "others_loss": others}
