"""DIST (2205.10536): the correlation of probabilities with the teacher's, within an image and within a class."""

from torch import Tensor

from kdx.losses.objective import Lesson, Objective, no_loss, refusal_of_two_classes
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs
from kdx.tasks import SINGLE_LABEL

EPS = 1e-8


def correlation_losses(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 (1 - Pearson) of the rows (between classes) and of the columns (within a class) of softmax(z/T), meaned.

    Logits (N, C). Columns of one image have no correlation: 0 for them.
    """
    p_s, p_t = (student / temperature).softmax(dim=1), (teacher / temperature).softmax(dim=1)
    between = temperature**2 * (1 - _correlation(p_s, p_t).mean())
    if len(student) < 2:
        return between, no_loss(student)
    return between, temperature**2 * (1 - _correlation(p_s.T, p_t.T).mean())


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1) + EPS)


class DIST(Objective):
    """beta times the loss between classes plus gamma times the loss within classes.

    As published: cross-entropy with weight 1, this with weight 2, beta and gamma 1, T 1 on ImageNet and 4 on CIFAR.
    The second loss depends on what is together in a batch: with micro_batches, in each part. The correlation of two
    numbers is always 1 or -1: with two classes beta must be 0. Not published for multi-label sets. Constant logits (a
    classifier that starts at 0) have gradients of up to 1e6.
    """

    tasks = SINGLE_LABEL
    instead = "hinton, wttm or ctkd"

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        check_numbers(beta=beta, gamma=gamma, temperature=temperature)
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def refusal(self, task: str, num_classes: int) -> str | None:
        return super().refusal(task, num_classes) or refusal_of_two_classes(self.beta, num_classes)

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        between, within = correlation_losses(student.logits, teacher.logits.detach(), self.temperature)
        loss = self.beta * between + self.gamma * within
        return {"loss": loss, "between_loss": between, "within_loss": within}
