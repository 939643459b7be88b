"""The area under the ROC curve, class by class, by torchmetrics."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from kdx.tasks import BINARY, MULTI_LABEL

ROWS = 4096  # images whose exponentials are held in float64 at once


def area_under_curve(scores: Tensor, labels: Tensor, task: str) -> float | None:
    """AUC of probabilities (N, C); None where no class has both positive and negative images."""
    return _mean_area(scores.cpu().unbind(dim=1), labels.cpu(), task)


def auc_of_logits(logits: Tensor, labels: Tensor, task: str) -> float | None:
    """`area_under_curve` of the probabilities of logits (N, C), of which there is never an (N, C) table in float64."""
    return _mean_area(_columns(logits, task), labels, task)


def _mean_area(columns: Iterable[Tensor], labels: Tensor, task: str) -> float | None:
    """The mean AUC of each class's scores (N,), of those that have one; torchmetrics' sort needs O(N) a class."""
    import torchmetrics.functional.classification as tmf  # seconds, and needed at a stage's end only

    areas = []
    for number, column in enumerate(columns):
        if task == BINARY and number != 1:
            continue
        truth = (labels[:, number] == 1 if task == MULTI_LABEL else labels == number).long()
        if 0 < int(truth.sum()) < len(truth):
            areas.append(float(tmf.binary_auroc(column, truth, validate_args=False)))
    return sum(areas) / len(areas) if areas else None


def _columns(logits: Tensor, task: str) -> Iterator[Tensor]:
    """`probabilities` class by class, so that there is never an (N, C) table in float64."""
    if task == MULTI_LABEL:
        yield from (column.double().sigmoid() for column in logits.unbind(dim=1))
        return
    top = logits.amax(dim=1).double()
    rows = zip(logits.split(ROWS), top.split(ROWS), strict=True)
    total = torch.cat([(part.double() - highest[:, None]).exp().sum(dim=1) for part, highest in rows])
    yield from ((column.double() - top).exp() / total for column in logits.unbind(dim=1))
