"""A network's logits on a whole split, and its scores there."""

from typing import Any

import torch
from torch import Tensor, nn

from kdx.data.batches import Batches
from kdx.losses.hard import HardLoss
from kdx.losses.objective import Lesson
from kdx.metrics.agreement import agreement
from kdx.metrics.classification import full_scores
from kdx.metrics.logits import require_numbers
from kdx.training.runtime import Precision


def logits_of(network: nn.Module, batches: Batches, precision: Precision) -> Tensor:
    """float32 logits (N, C) of a whole split in its own order, in eval mode and without gradient."""
    network.eval()
    with precision.no_gradient(), precision.autocast():
        parts = [network(batch.images).float().clone() for batch in batches.epoch(0)]  # CUDA graphs reuse their memory
    return torch.cat(parts)  # out of inference mode: a plain tensor, which may enter a loss


def evaluate(
    network: nn.Module,
    batches: Batches,
    precision: Precision,
    task: str,
    num_classes: int,
    teacher_logits: Tensor | None = None,
) -> dict[str, Any]:
    """Loss by the labels alone, all scores, and the agreement with a teacher's logits (N, C), of a network on a split.

    `KdxError` where its logits are no numbers: it has no scores.
    """
    logits = logits_of(network, batches, precision)
    require_numbers(logits, f"the {batches.name or 'network'}")
    loss = float(HardLoss(task)(logits, Lesson(batches.labels, torch.arange(len(batches.labels)))))
    scores = {
        "loss": loss,
        **full_scores(logits, batches.labels, task, num_classes),
        "num_samples": len(batches.labels),
    }
    if teacher_logits is not None:
        scores["guide_agreement"] = agreement(logits, teacher_logits, task)
    return scores
