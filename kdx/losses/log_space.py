"""Probabilities as logarithms: what the formulas share so that logits far apart stay finite in float32.

The logarithm of a softmax that has underflown is -inf, and its gradient no number; from the logits it is neither.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def kl(student_log: Tensor, teacher_log: Tensor) -> Tensor:
    """KL(teacher || student) of each row (N,) from log-probabilities (N, C)."""
    return F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim=1)


def binary_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(sigmoid(teacher) || sigmoid(student)) of each element."""
    present = torch.sigmoid(teacher) * (F.logsigmoid(teacher) - F.logsigmoid(student))
    absent = torch.sigmoid(-teacher) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return present + absent


def one_and_rest(logits: Tensor, classes: Tensor) -> Tensor:
    """log p and log(1 - p) of one class (N,) in each row of logits (N, C): (N, 2)."""
    log_p = logits.log_softmax(dim=1)
    chosen = mask_of(classes, logits)
    rest = log_p.masked_fill(chosen, -torch.inf).logsumexp(dim=1)
    return torch.stack([log_p.gather(1, classes[:, None]).squeeze(1), rest], dim=1)


def log_softmax_within(logits: Tensor, kept: Tensor) -> Tensor:
    """Log-softmax over the classes of each row that `kept` (N, C) marks.

    The others get 0, so that `kl` of two such results counts nothing for them; so does a row that keeps none.
    """
    dropped = ~kept & kept.any(dim=1, keepdim=True)  # a row of -inf alone would have no gradient
    return logits.masked_fill(dropped, -torch.inf).log_softmax(dim=1).masked_fill(~kept, 0.0)


def mask_of(classes: Tensor, like: Tensor) -> Tensor:
    """True at each row's class (N,), as (N, C)."""
    return torch.zeros_like(like, dtype=torch.bool).scatter_(1, classes[:, None], True)
