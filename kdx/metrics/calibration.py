"""Whether a network is right as often as its probabilities promise."""

from typing import Any

import torch
from torch import Tensor

from kdx.metrics.counts import percent
from kdx.metrics.logits import probabilities
from kdx.tasks import MULTI_LABEL

CALIBRATION_BINS = 15
ROWS = 4096  # images whose probabilities are held in float64 at once


def calibration(logits: Tensor, labels: Tensor, task: str) -> dict[str, Any]:
    """How far confidence is from accuracy: ECE over equal-width bins, in percent (1706.04599), and the bins.

    Confidence is the probability of the predicted class; for a multi-label set that of every label being present.
    """
    parts = zip(logits.cpu().split(ROWS), labels.cpu().split(ROWS), strict=True)
    pairs = [_confidence(probabilities(part, task), truth, task) for part, truth in parts]
    confidence, right = (torch.cat(values) for values in zip(*pairs, strict=True))
    where = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1  # bins are open below
    counts = torch.bincount(where, minlength=CALIBRATION_BINS)
    sums = [torch.bincount(where, weights=value, minlength=CALIBRATION_BINS) for value in (confidence, right)]
    gaps = (sums[0] - sums[1]).abs().sum() / counts.sum()
    means = [(total / counts.clamp(min=1)).tolist() for total in sums]
    return {"ece": percent(gaps), "confidence": means[0], "accuracy": means[1], "count": counts.tolist()}


def _confidence(shares: Tensor, labels: Tensor, task: str) -> tuple[Tensor, Tensor]:
    """What the network was sure of, 0-1, and whether it was so, 0 or 1."""
    if task == MULTI_LABEL:
        return shares.flatten(), labels.flatten().double()
    confidence, predicted = shares.max(dim=1)
    return confidence, (predicted == labels).double()
