"""The area under the ROC curve, class by class, by torchmetrics."""

from collections.abc import Iterator

import torch
from torch import Tensor

from kdx.metrics.logits import probabilities
from kdx.reproducibility import one_thread
from kdx.tasks import BINARY, MULTI_LABEL

ROWS = 4096  # images whose probabilities are computed at once
TABLE = 2**23  # probabilities that are held in float64 at once: 64 MB


def auc_of_logits(logits: Tensor, labels: Tensor, task: str) -> float | None:
    """The mean AUC of the classes' probabilities from logits (N, C); None where no class has both kinds of images.

    torchmetrics' sort needs O(N) a class, and the probabilities are not held in float64 all at once.
    """
    import torchmetrics.functional.classification as tmf  # seconds, and needed at a stage's end only

    areas = []
    with one_thread():  # in thousands of short operations threads would mostly wait for each other
        for number, column in enumerate(_columns(logits, task)):
            if task == BINARY and number != 1:
                continue
            truth = _truth(labels, task, number)
            if 0 < int(truth.sum()) < len(truth):
                areas.append(float(tmf.binary_auroc(column, truth, validate_args=False)))
    return min(1.0, sum(areas) / len(areas)) if areas else None  # float32 sums end a little above 1, too


def has_auc(labels: Tensor, task: str, num_classes: int) -> bool:
    """Whether some class that counts has both positive and negative images."""
    classes = [1] if task == BINARY else range(num_classes)
    positives = (int(_truth(labels, task, number).sum()) for number in classes)
    return any(0 < count < len(labels) for count in positives)


def _truth(labels: Tensor, task: str, number: int) -> Tensor:
    """0 or 1 for each image: whether it is of a class, or has a label."""
    return (labels[:, number] == 1 if task == MULTI_LABEL else labels == number).long()


def _columns(logits: Tensor, task: str) -> Iterator[Tensor]:
    """`probabilities` class by class; where they need more than one table, the softmax is taken again for each."""
    images, classes = logits.shape
    width = max(1, min(classes, TABLE // max(1, images)))
    for first in range(0, classes, width):
        table = torch.empty(min(width, classes - first), images, dtype=torch.float64)
        for row in range(0, images, ROWS):
            part = probabilities(logits[row : row + ROWS], task)
            table[:, row : row + ROWS] = part[:, first : first + width].T
        yield from table
