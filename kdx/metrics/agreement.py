"""How often a network says what its guide says."""

from torch import Tensor

from kdx.metrics.counts import percent
from kdx.metrics.logits import predict


def agreement(logits: Tensor, guide_logits: Tensor, task: str) -> float:
    """On how many images (labels of a multi-label set) the network says what its guide says, in percent."""
    return percent((predict(logits.cpu(), task) == predict(guide_logits.cpu(), task)).double().mean())
