"""A network's logits on a whole split, and its scores there."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdx.data.batches import Batches
from kdx.losses.distillation import averaged
from kdx.losses.hard import HardLoss
from kdx.losses.objective import Lesson
from kdx.metrics.agreement import agreement
from kdx.metrics.classification import full_scores
from kdx.metrics.logits import require_numbers
from kdx.models.features import Outputs
from kdx.tasks import MULTI_LABEL
from kdx.training.distributed import Ranks
from kdx.training.runtime import Precision


def logits_of(network: nn.Module, batches: Batches, precision: Precision) -> Tensor:
    """float32 logits (N, C) of a whole split in its own order, in eval mode and without gradient."""
    return torch.cat(_logits(network, batches, precision))  # out of inference mode: it may enter a loss


def logits_by_ranks(
    network: nn.Module, batches: Batches, precision: Precision, ranks: Ranks, num_classes: int
) -> Tensor:
    """`logits_of` on every rank, each of which computes its turn of whole batches: the bits are those of one rank."""
    if ranks.world == 1:
        return logits_of(network, batches, precision)
    logits = torch.zeros(len(batches.labels), num_classes, device=precision.device)
    places = logits.split(batches.batch_size)[ranks.rank :: ranks.world]
    for place, part in zip(places, _logits(network, batches, precision, ranks.rank, ranks.world), strict=True):
        place.copy_(part)
    return ranks.sum(logits)


def _logits(network: nn.Module, batches: Batches, precision: Precision, start: int = 0, every: int = 1) -> list[Tensor]:
    network.eval()
    with precision.no_gradient(), precision.autocast():
        found = batches.epoch(0, start, every)
        return [network(batch.images).float().clone() for batch in found]  # CUDA graphs reuse their memory


def evaluate(
    network: nn.Module,
    batches: Batches,
    precision: Precision,
    task: str,
    num_classes: int,
    teacher_logits: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Loss by the labels alone, all scores, the agreement with teachers' logits (N, C), of a network on a split.

    Of several teachers, the agreement with what they say together (the mean of their probabilities) and with each.

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
    if teacher_logits:
        together = averaged([Outputs(known) for known in teacher_logits.values()], task == MULTI_LABEL).logits
        scores["guide_agreement"] = agreement(logits, together, task)
    if teacher_logits and len(teacher_logits) > 1:
        each = {role: agreement(logits, known, task) for role, known in teacher_logits.items()}
        scores["guide_agreements"] = each
    return scores
