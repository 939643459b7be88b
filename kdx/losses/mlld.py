"""Multi-level logit distillation (CVPR 2023): images, pairs of images and pairs of classes, at several temperatures."""

from collections.abc import Sequence

from torch import Tensor

from kdx.losses.hinton import soft_loss
from kdx.losses.objective import Lesson, Objective, total
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs
from kdx.tasks import SINGLE_LABEL

ROWS = 1024  # of the images' relations at once: a validation split is one batch of perhaps 20,000 images


def image_relation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """||P_s P_s^T - P_t P_t^T||_F^2 / N of P = softmax(z/T), logits (N, C)."""
    p_s, p_t = (student / temperature).softmax(dim=1), (teacher / temperature).softmax(dim=1)
    rows = zip(p_s.split(ROWS), p_t.split(ROWS), strict=True)
    return total((s @ p_s.T - t @ p_t.T).square().sum() for s, t in rows) / len(p_s)


def class_relation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """||P_s^T P_s - P_t^T P_t||_F^2 / C of P = softmax(z/T), logits (N, C)."""
    p_s, p_t = (student / temperature).softmax(dim=1), (teacher / temperature).softmax(dim=1)
    return (p_s.T @ p_s - p_t.T @ p_t).square().sum() / p_s.shape[1]


class MLLD(Objective):
    """Hinton's loss plus the relations of images and of classes, summed over temperatures.

    One view of each image: the published numbers are of two views, 480 epochs, and cross-entropy with weight 0.1
    beside 0.9; the author's code halves the parts by masks that were meant to choose images. Undefined for multi-label
    sets. The relations depend on what is together in a batch: with micro_batches, in each part.
    """

    tasks = SINGLE_LABEL
    instead = "hinton, wttm or ctkd"

    def __init__(self, temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0)) -> None:
        super().__init__()
        check_numbers(temperatures=temperatures)
        self.temperatures = tuple(temperatures)

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        by, under = student.logits, teacher.logits.detach()
        kd, images, classes = (
            total(loss(by, under, temperature) for temperature in self.temperatures)
            for loss in (soft_loss, image_relation_loss, class_relation_loss)
        )
        return {"loss": kd + images + classes, "kd_loss": kd, "images_loss": images, "classes_loss": classes}
