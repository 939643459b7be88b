"""How often a network says what its teacher says."""

from torch import Tensor

from kdx.metrics.counts import percent
from kdx.metrics.logits import predict


def agreement(logits: Tensor, teacher_logits: Tensor, task: str) -> float:
    """On how many images (labels of a multi-label set) the network says what its teacher says, in percent."""
    return percent((predict(logits.cpu(), task) == predict(teacher_logits.cpu(), task)).double().mean())
