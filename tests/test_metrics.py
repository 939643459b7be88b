import numpy as np
import pytest
import sklearn.metrics
import torch
from medmnist.evaluator import getACC, getAUC

from kdx.metrics.auc import area_under_curve
from kdx.metrics.classification import epoch_scores, full_scores
from kdx.metrics.logits import predict, probabilities


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
    assert area_under_curve(probabilities(logits, "binary-class"), torch.tensor([0, 1, 0]), "binary-class") == 1.0


def test_auc_without_negatives_is_none() -> None:
    logits = random_logits(4, 2)
    assert (
        area_under_curve(probabilities(logits, "binary-class"), torch.ones(4, dtype=torch.long), "binary-class") is None
    )


def test_multi_label_confusion_is_per_label() -> None:
    logits = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    labels = torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8)
    scores = full_scores(logits, labels, "multi-label", 2)
    assert np.array(scores["confusion_matrix"]).shape == (2, 2, 2)
    assert scores["accuracy"] == pytest.approx(75)
    assert scores["per_class"]["support"] == [1, 1]
