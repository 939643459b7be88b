"""Refined logit distillation (2408.07703): a wrong teacher's confidence counts, its wrong ranking does not."""

from torch import Tensor

from kdx.losses.log_space import kl, log_softmax_within, one_and_rest
from kdx.losses.objective import Lesson, Objective, refusal_of_two_classes
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs
from kdx.tasks import SINGLE_LABEL


def confidence_loss(student: Tensor, teacher: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """T^2 KL of the teacher's (p of its choice, rest) from the student's (p of the true class, rest), mean."""
    student, teacher = student / temperature, teacher / temperature
    chosen = one_and_rest(teacher, teacher.argmax(dim=1))
    return temperature**2 * kl(one_and_rest(student, classes), chosen).mean()


def lower_classes_loss(student: Tensor, teacher: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """T^2 KL of the softmax over the classes that the teacher ranks below the true one, mean; 0 where there is none."""
    lower = teacher < teacher.gather(1, classes[:, None])
    log_s, log_t = (log_softmax_within(logits / temperature, lower) for logits in (student, teacher))
    return temperature**2 * kl(log_s, log_t).mean()


class RLD(Objective):
    """alpha times the confidence's loss plus beta times that of the classes below the true one.

    As published: cross-entropy with weight 1, alpha 1 at temperature 1, beta 8 at T 4, the whole rising from 0 over 20
    of 240 epochs. Undefined for multi-label sets. With two classes one class at most is below, which teaches nothing.
    """

    relates = False
    tasks = SINGLE_LABEL
    instead = "hinton, wttm or ctkd"

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, alpha_temperature: float = 1.0
    ) -> None:
        super().__init__()
        check_numbers(alpha=alpha, beta=beta, temperature=temperature, alpha_temperature=alpha_temperature)
        self.alpha, self.beta = alpha, beta
        self.temperature, self.alpha_temperature = temperature, alpha_temperature

    def refusal(self, task: str, num_classes: int) -> str | None:
        return super().refusal(task, num_classes) or refusal_of_two_classes(self.beta, num_classes)

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        by, under, classes = student.logits, teacher.logits.detach(), lesson.classes(teacher.logits)
        confidence = confidence_loss(by, under, classes, self.alpha_temperature)
        lower = lower_classes_loss(by, under, classes, self.temperature)
        loss = self.alpha * confidence + self.beta * lower
        return {"loss": loss, "confidence_loss": confidence, "lower_loss": lower}
