"""Scores of an epoch, counted once at its end from the collected predictions (torchmetrics does the counting)."""

import warnings
from typing import Any

import torch
from torch import Tensor

from kdx.tasks import BINARY, MULTI_LABEL

CALIBRATION_BINS = 15


def predict(logits: Tensor, task: str) -> Tensor:
    """Class numbers (N,) from logits (N, C), or 0/1 (N, L) from the logits of a multi-label set; on their device."""
    return (logits > 0).to(torch.uint8) if task == MULTI_LABEL else logits.argmax(dim=1)


def probabilities(logits: Tensor, task: str) -> Tensor:
    """Sigmoid for a multi-label set, else softmax; float64, so that rounding makes no ties."""
    return logits.double().sigmoid() if task == MULTI_LABEL else logits.double().softmax(dim=1)


def epoch_scores(predictions: Tensor, labels: Tensor, task: str, num_classes: int) -> dict[str, float]:
    """Accuracy, macro precision, recall and F1 in percent.

    A class that occurs neither among labels nor predictions does not enter the macro averages; one that is
    never predicted has precision 0, one without a label recall 0. Multi-label accuracy is the mean over labels.
    """
    predictions, labels = predictions.cpu(), labels.long().cpu()
    scores = {}
    for name in ("accuracy", "precision", "recall", "f1_score"):
        average = "micro" if name == "accuracy" and task != MULTI_LABEL else "macro"
        scores[name] = _percent(_score(name, predictions, labels, task, num_classes, average))
    return scores


def full_scores(logits: Tensor, labels: Tensor, task: str, num_classes: int) -> dict[str, Any]:
    """`epoch_scores` with AUC (0-1), confusion matrix and per-class scores of logits (N, C).

    AUC as in MedMNIST v2: of the positive class for a binary set, else the unweighted mean one-vs-rest (or
    over labels). Classes without both a positive and a negative image have no AUC and are left out of the mean.
    """
    import torchmetrics.functional.classification as tmf

    logits, labels = logits.cpu(), labels.cpu()
    predictions = predict(logits, task)
    scores: dict[str, Any] = epoch_scores(predictions, labels, task, num_classes)
    scores["auc"] = area_under_curve(probabilities(logits, task), labels, task)
    if task == MULTI_LABEL:
        matrix = tmf.multilabel_confusion_matrix(predictions, labels.long(), num_classes)
    else:
        matrix = tmf.multiclass_confusion_matrix(predictions, labels, num_classes)
    scores["confusion_matrix"] = matrix.tolist()
    scores["per_class"] = _per_class(predictions, labels, task, num_classes)
    scores["calibration"] = calibration(logits, labels, task)
    return scores


def calibration(logits: Tensor, labels: Tensor, task: str) -> dict[str, Any]:
    """How far confidence is from accuracy: ECE over equal-width bins, in percent (1706.04599), and the bins.

    Confidence is the probability of the predicted class; for a multi-label set that of every label being present.
    """
    shares = probabilities(logits.cpu(), task)
    if task == MULTI_LABEL:
        confidence, right = shares.flatten(), labels.cpu().flatten().double()
    else:
        confidence, predicted = shares.max(dim=1)
        right = (predicted == labels.cpu()).double()
    where = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1  # bins are open below
    counts = torch.bincount(where, minlength=CALIBRATION_BINS)
    sums = [torch.bincount(where, weights=value, minlength=CALIBRATION_BINS) for value in (confidence, right)]
    gaps = (sums[0] - sums[1]).abs().sum() / counts.sum()
    means = [(total / counts.clamp(min=1)).tolist() for total in sums]
    return {"ece": _percent(gaps), "confidence": means[0], "accuracy": means[1], "count": counts.tolist()}


def agreement(logits: Tensor, guide_logits: Tensor, task: str) -> float:
    """On how many images (labels of a multi-label set) the network says what its guide says, in percent."""
    return _percent((predict(logits.cpu(), task) == predict(guide_logits.cpu(), task)).double().mean())


def area_under_curve(scores: Tensor, labels: Tensor, task: str) -> float | None:
    """AUC of probabilities (N, C); None where no class has both positive and negative images."""
    import torchmetrics.functional.classification as tmf

    truth = labels if task == MULTI_LABEL else torch.nn.functional.one_hot(labels, scores.shape[1])
    columns = [1] if task == BINARY else range(scores.shape[1])
    areas = [
        float(tmf.binary_auroc(scores[:, column], truth[:, column].long()))
        for column in columns
        if 0 < int(truth[:, column].sum()) < len(truth)
    ]
    return sum(areas) / len(areas) if areas else None


def _percent(share: Tensor) -> float:
    return round(100 * float(share), 5)  # the scores are float32: more digits are noise


def _per_class(predictions: Tensor, labels: Tensor, task: str, num_classes: int) -> dict[str, list[float]]:
    """Precision, recall, F1 in percent and the number of images, each by class number."""
    result = {}
    for name in ("precision", "recall", "f1_score"):
        values = _score(name, predictions, labels.long(), task, num_classes, None)
        result[name] = [_percent(value) for value in values]
    support = labels.sum(0) if task == MULTI_LABEL else torch.bincount(labels, minlength=num_classes)
    result["support"] = support.tolist()
    return result


def _score(name: str, predictions: Tensor, labels: Tensor, task: str, num_classes: int, average: str | None) -> Tensor:
    """torchmetrics' score of that name (0-1), averaged or by class."""
    import torchmetrics.functional.classification as tmf  # seconds, and needed at an epoch's end only

    prefix, count = ("multilabel", "num_labels") if task == MULTI_LABEL else ("multiclass", "num_classes")
    score = getattr(tmf, f"{prefix}_{name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an absent class scores 0, as `epoch_scores` documents
        return score(predictions, labels, **{count: num_classes}, average=average, validate_args=False)
