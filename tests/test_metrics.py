import math
import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as tmf
from medmnist.evaluator import getACC, getAUC

from kdx.errors import KdxError
from kdx.metrics.auc import auc_of_logits
from kdx.metrics.classification import epoch_scores, full_scores
from kdx.metrics.logits import predict, probabilities, require_numbers
from kdx.tasks import MULTI_LABEL, TASKS


def random_logits(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def random_labels(rows: int, classes: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, classes, (rows,), generator=torch.Generator().manual_seed(seed))


def test_scores_agree_with_scikit_learn() -> None:
    logits, labels = random_logits(200, 5), random_labels(200, 5)
    scores = epoch_scores(predict(logits, "multi-class"), labels, "multi-class", 5)
    guessed, truth = logits.argmax(1).numpy(), labels.numpy()
    assert scores["accuracy"] == pytest.approx(100 * sklearn.metrics.accuracy_score(truth, guessed), abs=1e-4)
    for name, reference in (
        ("precision", sklearn.metrics.precision_score),
        ("recall", sklearn.metrics.recall_score),
        ("f1_score", sklearn.metrics.f1_score),
    ):
        assert scores[name] == pytest.approx(100 * reference(truth, guessed, average="macro"), abs=1e-4)


def test_absent_class_shifts_nothing() -> None:
    """pitfall(9): per-class scores keep their class number when a class does not occur."""
    labels = torch.tensor([0, 0, 2, 2])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 0, 2, 2]), 3).float()
    scores = full_scores(logits, labels, "multi-class", 3)
    assert scores["per_class"]["f1_score"] == [100, 0, 100]
    assert scores["per_class"]["support"] == [2, 0, 2]
    assert scores["f1_score"] == pytest.approx(100)  # the absent class is not part of the mean
    assert scores["auc"] == pytest.approx(1)
    assert scores["confusion_matrix"] == [[2, 0, 0], [0, 0, 0], [0, 0, 2]]


@pytest.mark.parametrize("task", ["multi-class", MULTI_LABEL])
def test_no_score_is_over_100_percent_where_every_image_is_right(task: str) -> None:
    """The mean of ten precisions of 1 is 1.0000001 in float32; no record takes a score over 100."""
    for classes in range(2, 400):
        labels = torch.arange(classes) if task == "multi-class" else torch.eye(classes, dtype=torch.long)
        scores = epoch_scores(labels, labels, task, classes)
        assert all(99.999 < value <= 100 for value in scores.values()), (classes, scores)


def test_never_predicted_class_has_precision_zero() -> None:
    scores = epoch_scores(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 1, 1]), "multi-class", 2)
    assert scores["precision"] == pytest.approx(25) and scores["recall"] == pytest.approx(50)


@pytest.mark.parametrize("task", ["multi-class", "ordinal-regression", "binary-class", "multi-label"])
def test_auc_and_accuracy_agree_with_medmnist(task: str) -> None:
    """pitfall(17): binary, ordinal and multi-label sets have the AUC and ACC of their task."""
    classes = 2 if task == "binary-class" else 5
    logits = random_logits(300, classes)
    labels = random_labels(300, classes)
    if task == "multi-label":
        labels = (random_logits(300, classes, seed=3) > 0.5).long()
    scores = full_scores(logits, labels, task, classes)
    chances = probabilities(logits, task).numpy()
    truth = labels.numpy() if task == "multi-label" else labels.numpy()[:, None]
    theirs = "multi-label, binary-class" if task == "multi-label" else task
    assert scores["auc"] == pytest.approx(getAUC(truth, chances, theirs), abs=1e-6)
    given = chances[:, 1] if task == "binary-class" else chances
    assert scores["accuracy"] / 100 == pytest.approx(getACC(truth, given, theirs), abs=1e-6)


def test_confident_logits_do_not_tie() -> None:
    """float32 would round both probabilities to 1 and lose their order."""
    logits = torch.tensor([[0.0, 20.0], [0.0, 21.0], [1.0, 0.0]])
    assert auc_of_logits(logits, torch.tensor([0, 1, 0]), "binary-class") == 1.0


def test_auc_without_negatives_is_none() -> None:
    logits = random_logits(4, 2)
    assert auc_of_logits(logits, torch.ones(4, dtype=torch.long), "binary-class") is None


def test_multi_label_confusion_is_per_label() -> None:
    logits = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    labels = torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8)
    scores = full_scores(logits, labels, "multi-label", 2)
    assert np.array(scores["confusion_matrix"]).shape == (2, 2, 2)
    assert scores["accuracy"] == pytest.approx(75)
    assert scores["per_class"]["support"] == [1, 1]


def test_every_digit_is_that_of_torchmetrics() -> None:
    """Ties, absent classes, one class, one image, confident and blank logits, of every task."""
    for seed in range(240):
        task, classes, logits, labels = random_case(random.Random(seed), TASKS[seed % len(TASKS)])
        ours = full_scores(logits, labels, task, classes)
        theirs = by_torchmetrics(logits, labels, task, classes)
        matrix = ours["confusion_matrix"]
        if matrix is None:
            matrix = np.zeros((classes, classes), int)
            for label, prediction, images in ours["confusion_cells"]:
                matrix[label, prediction] = images
        assert np.array_equal(matrix, theirs.pop("confusion_matrix")), (seed, task)
        told = {name: ours[name] for name in ("accuracy", "precision", "recall", "f1_score", "auc")}
        told |= {f"{name} by class": ours["per_class"][name] for name in ("precision", "recall", "f1_score")}
        assert told == theirs, (seed, task)
        assert epoch_scores(predict(logits, task), labels, task, classes).items() <= told.items()


def random_case(draw: random.Random, task: str) -> tuple[str, int, torch.Tensor, torch.Tensor]:
    classes = 2 if task == "binary-class" else draw.choice([1, 3, 7] if task == "multi-label" else [1, 2, 3, 17, 130])
    images = draw.choice([1, 2, 7, 50, 333])
    seeded = torch.Generator().manual_seed(draw.randrange(10**6))
    logits = torch.randn(images, classes, generator=seeded) * draw.choice([0, 0.1, 1, 100])
    if draw.random() < 0.4:
        logits = logits.round()
    if task == "multi-label":
        labels = (torch.rand(images, classes, generator=seeded) < draw.choice([0, 0.1, 0.5, 1])).to(torch.uint8)
    else:
        labels = torch.randint(0, draw.choice([1, (classes + 1) // 2, classes]), (images,), generator=seeded)
    return task, classes, logits, labels


def by_torchmetrics(logits: torch.Tensor, labels: torch.Tensor, task: str, classes: int) -> dict[str, Any]:
    predictions, shares, several = predict(logits, task), probabilities(logits, task), task == "multi-label"
    prefix, how = ("multilabel", {"num_labels": classes}) if several else ("multiclass", {"num_classes": classes})
    truth = labels.long() if several else torch.nn.functional.one_hot(labels, classes)
    scores: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # absent classes
        for name in ("accuracy", "precision", "recall", "f1_score"):
            score = getattr(tmf, f"{prefix}_{name}")
            average = "micro" if name == "accuracy" and not several else "macro"
            given = score(predictions, labels.long(), average=average, validate_args=False, **how)
            scores[name] = round(100 * float(given), 5)
            if name != "accuracy":
                values = score(predictions, labels.long(), average=None, validate_args=False, **how)
                scores[f"{name} by class"] = [round(100 * float(value), 5) for value in values.reshape(-1)]
        columns = [1] if task == "binary-class" else range(classes)
        columns = [column for column in columns if 0 < int(truth[:, column].sum()) < len(truth)]
        areas = [float(tmf.binary_auroc(shares[:, column], truth[:, column])) for column in columns]
        count = getattr(tmf, f"{prefix}_confusion_matrix")
        matrix = count(predictions, labels.long(), validate_args=False, **how)
    auc = min(1.0, sum(areas) / len(areas)) if areas else None
    return {**scores, "auc": auc, "confusion_matrix": matrix.reshape(-1, 2, 2) if several else matrix}


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory is told by Linux")
@pytest.mark.parametrize(("images", "classes"), [(45_000, 100), (2_000, 1_000)])
def test_scoring_takes_little_memory_also_deterministically(deterministic: None, images: int, classes: int) -> None:
    """torchmetrics' own count takes an (N, C^2) table: 7.5 GB for CIFAR-100's training split."""
    logits, labels = random_logits(images, classes), random_labels(images, classes)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_mb("VmRSS")
    scores = full_scores(logits, labels, "multi-class", classes)
    assert memory_mb("VmHWM") - before < 200
    assert sum(scores["per_class"]["support"]) == images


def memory_mb(what: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0]) / 1024


def test_more_classes_than_a_page_keep_the_cells_of_the_confusion_matrix_that_count() -> None:
    """Of 1,000 classes the matrix itself would be a million numbers in every summary."""
    scores = full_scores(random_logits(50, 1000), random_labels(50, 1000), "multi-class", 1000)
    assert scores["confusion_matrix"] is None
    assert 0 < len(scores["confusion_cells"]) <= 50 and sum(cell[2] for cell in scores["confusion_cells"]) == 50


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_told(bad: float) -> None:
    logits = random_logits(5, 3)
    require_numbers(logits, "the teacher")
    logits[2, 1] = -math.inf  # a class that is ruled out
    require_numbers(logits, "the teacher")
    logits[3, 0] = bad
    with pytest.raises(KdxError, match="^the teacher gives no numbers .* for 1 of 5 images"):
        require_numbers(logits, "the teacher")
