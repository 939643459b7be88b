"""What a network's logits say: predictions, probabilities, and whether they say anything."""

import math

import torch
from torch import Tensor

from kdx.errors import KdxError
from kdx.tasks import MULTI_LABEL


def predict(logits: Tensor, task: str) -> Tensor:
    """Class numbers (N,) from logits (N, C), or 0/1 (N, L) from the logits of a multi-label set; on their device."""
    return (logits > 0).to(torch.uint8) if task == MULTI_LABEL else logits.argmax(dim=1)


def probabilities(logits: Tensor, task: str) -> Tensor:
    """Sigmoid for a multi-label set, else softmax; float64, so that rounding makes no ties."""
    return logits.double().sigmoid() if task == MULTI_LABEL else logits.double().softmax(dim=1)


def require_numbers(logits: Tensor, who: str) -> None:
    """`KdxError` where logits (N, C) are NaN or +inf, which have no probabilities. -inf is a class ruled out."""
    if logits.numel() and not float(logits.max()) < math.inf:  # the maximum of anything with a NaN is NaN
        bad = int((~(logits.amax(dim=1) < math.inf)).sum())
        raise KdxError(
            f"{who} gives no numbers (NaN or inf) for {bad} of {len(logits)} images: its weights are unsound"
        )
