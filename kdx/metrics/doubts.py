"""What a network's answers on a labelled split say against it: chance, another order of classes, no logits."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kdx.metrics.auc import auc_of_logits
from kdx.metrics.logits import predict
from kdx.tasks import MULTI_LABEL
from kdx.text import first_names

CLEARLY = 0.05  # share of images, or of the correlation, by which something must be better to be told
DEVIATIONS = 2  # standard deviations that luck is given
MOST_NAMES = 10


def chance(logits: Tensor, labels: Tensor, task: str) -> tuple[float, float, bool]:
    """How well logits (N, C) tell classes apart, what guessing reaches, both 0-1, and whether they differ by luck only.

    The mean recall of the classes that occur: a network that always says the commonest class is at chance too. Of a
    multi-label set the mean AUC.
    """
    if task == MULTI_LABEL:
        area = auc_of_logits(logits, labels, task)
        rarer = torch.minimum(labels.sum(0), len(labels) - labels.sum(0)).clamp(min=1).double()
        spread = float((1 / (12 * rarer)).sum().sqrt()) / labels.shape[1]
        return 0.5 if area is None else area, 0.5, area is None or area <= 0.5 + DEVIATIONS * spread
    images = torch.bincount(labels, minlength=logits.shape[1]).double()
    right = torch.bincount(labels[predict(logits, task) == labels], minlength=logits.shape[1]).double()
    occurs = images > 0
    reached, guessed = float((right[occurs] / images[occurs]).mean()), 1 / logits.shape[1]
    spread = float((guessed * (1 - guessed) / images[occurs]).sum().sqrt()) / int(occurs.sum())
    return reached, guessed, reached <= guessed + DEVIATIONS * spread


def are_probabilities(logits: Tensor, task: str) -> bool:
    """Whether what should be logits (N, C) are probabilities: a softmax's rows, or a sigmoid's numbers."""
    bounded = bool(((logits >= 0) & (logits <= 1)).all())
    return bounded and (task == MULTI_LABEL or bool(((logits.sum(dim=1) - 1).abs() < 1e-2).all()))


def other_order(logits: Tensor, labels: Tensor, task: str, class_names: Sequence[str]) -> str | None:
    """In which order of classes the answers would be clearly better; None where the order is right.

    The order is found on one half of the images and tried on the other, so that a network at chance has none.
    """
    fits = _correlations if task == MULTI_LABEL else _counts
    halves = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tensor_split(2)
    found, tried = (fits(logits[half], labels[half], task) for half in halves)
    own, order = list(range(len(class_names))), _best_order(found)
    whole = 1.0 if task == MULTI_LABEL else max(1.0, tried.sum() / len(own))
    here, there = (float(np.mean(tried[own, said])) / whole for said in (own, order))
    spread = 2 / len(own) if task == MULTI_LABEL else there * (1 - there)
    luck = DEVIATIONS * (spread / max(1, len(halves[1]))) ** 0.5
    if there - here <= max(CLEARLY, luck):
        return None
    moved = [f"{class_names[i]} is its output {order[i]}" for i in own if order[i] != i]
    told = first_names(moved, MOST_NAMES)
    kind = "correlation" if task == MULTI_LABEL else "share right"
    return f"its classes are in another order ({kind} {here:.2f} as it is, {there:.2f} where {told})"


def _counts(logits: Tensor, labels: Tensor, task: str) -> np.ndarray:
    """Images by (class, answer)."""
    classes = logits.shape[1]
    pairs = labels.long() * classes + predict(logits, task)
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).double().numpy()


def _correlations(logits: Tensor, labels: Tensor, task: str) -> np.ndarray:
    """The correlation over images by (label, answer)."""
    scaled = [(each - each.mean(0)) / each.std(0).clamp(min=1e-9) for each in (labels.double(), logits.double())]
    return (scaled[0].T @ scaled[1] / max(1, len(labels) - 1)).numpy()


def _best_order(fits: np.ndarray) -> list[int]:
    """The answer for each class such that the sum of fits is largest, an answer for one class."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(fits, maximize=True)[1].tolist()
