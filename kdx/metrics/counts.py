"""Counts of predictions against labels, and the scores that follow from them.

Counting takes O(N) memory at any `deterministic`, where torchmetrics' own count builds an (N, C^2) table. The scores
follow in float32, in the order of torchmetrics' operations, so that every digit is the one it gives.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdx.tasks import MULTI_LABEL

MATRIX_UP_TO = 100  # classes; of more, only the cells of the confusion matrix that are not 0 are kept


@dataclass(frozen=True)
class Counts:
    """Of each class (or label): images rightly predicted, images predicted and images labelled; and of all images."""

    right: Tensor
    predicted: Tensor
    labelled: Tensor
    images: int


def count(predictions: Tensor, labels: Tensor, task: str, num_classes: int) -> Counts:
    """Count class numbers (N,), or 0/1 (N, L) of a multi-label set, in O(N + C) memory."""
    predictions, labels = predictions.long().cpu(), labels.long().cpu()
    if task == MULTI_LABEL:
        return Counts((predictions * labels).sum(0), predictions.sum(0), labels.sum(0), len(labels))
    right, predicted, labelled = (
        torch.bincount(numbers, minlength=num_classes)
        for numbers in (labels[predictions == labels], predictions, labels)
    )
    return Counts(right, predicted, labelled, len(labels))


def averages(counts: Counts, task: str) -> dict[str, float]:
    right, images = counts.right, torch.tensor(counts.images)
    if task == MULTI_LABEL:
        occurs = torch.ones_like(right)
        agreed = images - counts.predicted - counts.labelled + 2 * right
        accuracy = _macro(_share(agreed, images), occurs)
    else:
        occurs = (counts.predicted + counts.labelled > 0).long()
        accuracy = _share(right.sum(), images)
    means = {name: percent(_macro(score, occurs)) for name, score in _by_class(counts).items()}
    return {"accuracy": percent(accuracy), **means}


def per_class(counts: Counts) -> dict[str, list[float]]:
    """Precision, recall, F1 in percent and the number of images, each by class number."""
    scores = {name: [percent(value) for value in values.tolist()] for name, values in _by_class(counts).items()}
    return {**scores, "support": counts.labelled.tolist()}


def confusions(predictions: Tensor, labels: Tensor, counts: Counts, task: str, num_classes: int) -> dict[str, Any]:
    """The confusion matrix by (label, prediction), as torchmetrics', one of 2x2 for each label of a multi-label set.

    Of more classes than `MATRIX_UP_TO` it would fill files with zeros: its other cells as [label, prediction, images].
    """
    if task == MULTI_LABEL:
        missed, invented = counts.labelled - counts.right, counts.predicted - counts.right
        absent = counts.images - counts.right - missed - invented
        cells = torch.stack([absent, invented, missed, counts.right], dim=1)
        return {"confusion_matrix": cells.view(-1, 2, 2).tolist()}
    pairs = (labels.long() * num_classes + predictions).numpy()
    if num_classes <= MATRIX_UP_TO:
        matrix = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
        return {"confusion_matrix": matrix.tolist()}
    kept, images = np.unique(pairs, return_counts=True)
    told = np.stack([kept // num_classes, kept % num_classes, images], axis=1).tolist()
    return {"confusion_matrix": None, "confusion_cells": told}


def percent(share: Tensor | float) -> float:
    """0 to 100. The scores are float32: more digits are noise, and a mean of ten times 1 may be a hair over 1."""
    return min(round(100 * float(share), 5), 100.0)


def _by_class(counts: Counts) -> dict[str, Tensor]:
    """Precision, recall and F1 of each class, 0-1; 0 where there is nothing to divide by."""
    return {
        "precision": _share(counts.right, counts.predicted),
        "recall": _share(counts.right, counts.labelled),
        "f1_score": _share(2 * counts.right, counts.predicted + counts.labelled),
    }


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part.float() / whole.float(), 0.0)


def _macro(scores: Tensor, weights: Tensor) -> Tensor:
    """The mean of the classes that occur: divided first, then summed, as torchmetrics does it."""
    return _share(weights * scores, weights.sum()).sum()
