"""Multi-label logit distillation (L2D, 2308.06453): every label is a question with two answers."""

from torch import Tensor

from kdx.losses.log_space import binary_kl
from kdx.losses.objective import Lesson, Objective
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs
from kdx.tasks import MULTI_LABEL


def multi_label_loss(student: Tensor, teacher: Tensor, reduction: str) -> Tensor:
    """Binary KL(sigmoid(teacher) || sigmoid(student)) of logits (N, L), mean over images.

    Mean over labels too with reduction `mean`, the sum over labels with `batchmean`.
    """
    each = binary_kl(student, teacher)
    return each.mean() if reduction == "mean" else each.sum(dim=1).mean()


class MLD(Objective):
    """The binary KL of every label at T = 1; the loss of Hinton at T = 1 on multi-label sets.

    As published: `batchmean` with weight 10 beside a binary cross-entropy that is summed over images and labels. Beside
    the mean that kdx has, that is `mean` with weight 10 / batch size (0.16 at 64). Defined for multi-label sets only.
    """

    relates = False
    tasks = (MULTI_LABEL,)
    instead = "hinton, dkd or dist"

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        check_numbers(reduction=reduction)
        self.reduction = reduction

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        return {"loss": multi_label_loss(student.logits, teacher.logits.detach(), self.reduction)}
