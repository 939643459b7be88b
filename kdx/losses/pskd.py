"""Partial softmax (L2D, 2308.06453): every label that an image has, against all that it has not."""

import torch
from torch import Tensor

from kdx.losses.log_space import binary_kl, kl, log_softmax_within
from kdx.losses.objective import Lesson, Objective
from kdx.models.features import Outputs
from kdx.tasks import MULTI_LABEL


def partial_softmax_loss(student: Tensor, teacher: Tensor, present: Tensor) -> Tensor:
    """KL of the softmax over {k} and all absent labels, summed over the present labels k, mean over images.

    Logits (N, L), present (N, L) bool. Split as in DKD, which costs N L instead of N L^2: the label against the absent
    ones together, and those among themselves. An image where none or all are present counts 0.
    """
    some_absent = ~present.all(dim=1, keepdim=True)
    dropped = present & some_absent  # a row of -inf alone would have no gradient
    by, under = (z - z.masked_fill(dropped, -torch.inf).logsumexp(dim=1, keepdim=True) for z in (student, teacher))
    among = kl(log_softmax_within(student, ~present), log_softmax_within(teacher, ~present))
    each = binary_kl(by, under) + torch.sigmoid(-under) * among[:, None]
    return each.masked_fill(~present | ~some_absent, 0.0).sum(dim=1).mean()


class PSKD(Objective):
    """The partial softmax at T = 1; labels that must not be used are replaced by the teacher's choice.

    As published beside a summed binary cross-entropy. Defined for multi-label sets only.
    """

    relates = False
    tasks = (MULTI_LABEL,)
    instead = "hinton, dkd or dist"

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        present = lesson.labels(teacher.logits) > 0.5
        return {"loss": partial_softmax_loss(student.logits, teacher.logits.detach(), present)}
