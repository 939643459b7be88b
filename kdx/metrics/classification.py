"""The scores of an epoch and of a split, counted once from all predictions."""

from typing import Any

from torch import Tensor

from kdx.metrics.auc import auc_of_logits
from kdx.metrics.calibration import calibration
from kdx.metrics.counts import averages, confusions, count, per_class
from kdx.metrics.logits import predict
from kdx.reproducibility import one_thread


def epoch_scores(predictions: Tensor, labels: Tensor, task: str, num_classes: int) -> dict[str, float]:
    """Accuracy, macro precision, recall and F1 in percent.

    A class that occurs neither among labels nor predictions does not enter the macro averages; one that is
    never predicted has precision 0, one without a label recall 0. Multi-label accuracy is the mean over labels.
    """
    return averages(count(predictions, labels, task, num_classes), task)


def full_scores(logits: Tensor, labels: Tensor, task: str, num_classes: int) -> dict[str, Any]:
    """`epoch_scores` with AUC (0-1), confusion matrix and per-class scores of logits (N, C).

    AUC as in MedMNIST v2: of the positive class for a binary set, else the unweighted mean one-vs-rest (or
    over labels). Classes without both a positive and a negative image have no AUC and are left out of the mean.
    Takes O(N + C^2) memory beside the logits.
    """
    logits, labels = logits.cpu(), labels.cpu()
    with one_thread():
        predictions = predict(logits, task)
        counts = count(predictions, labels, task, num_classes)
        return {
            **averages(counts, task),
            "auc": auc_of_logits(logits, labels, task),
            **confusions(predictions, labels, counts, task, num_classes),
            "per_class": per_class(counts),
            "calibration": calibration(logits, labels, task),
        }
