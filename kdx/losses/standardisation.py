"""Logit standardisation (2403.01427): both networks' logits as z-scores, so that a student need not match a scale."""

from torch import Tensor

from kdx.models.features import Outputs
from kdx.tasks import MULTI_LABEL

EPS = 1e-7


def standardise(logits: Tensor) -> Tensor:
    """(z - mean) / (std + 1e-7) of each row of logits (N, C), the deviation with C - 1.

    The temperature comes after it. Constant logits give 0, with a gradient of up to 1e7.
    """
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + EPS)


def compared_logits(student: Outputs, teacher: Outputs, standardised: bool) -> tuple[Tensor, Tensor]:
    """The logits (N, C) that a loss compares, the teacher's without gradient; `standardised`: as z-scores."""
    by, under = student.logits, teacher.logits.detach()
    return (standardise(by), standardise(under)) if standardised else (by, under)


def refusal_of_standardised(standardised: bool, task: str, num_classes: int) -> str | None:
    """Why standardised logits cannot teach in a task: of two classes every z-score is -0.71 or 0.71."""
    if not standardised:
        return None
    if task == MULTI_LABEL:
        return "is not defined for multi-label sets with standardise=true; choose standardise=false"
    if num_classes < 3:
        return "teaches nothing with 2 classes where standardise=true, 3 are needed; choose standardise=false"
    return None
