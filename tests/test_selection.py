import math

import pytest
import torch

from kdx.errors import KdxError
from kdx.metrics.classification import full_scores
from kdx.metrics.selection import Selection
from kdx.recipe import SELECTIONS
from kdx.tasks import TASKS

NAN = math.nan


def scores(value: float | None = 50.0, loss: float = 1.0, key: str = "accuracy") -> dict[str, float | None]:
    return {"accuracy": 50.0, "auc": 0.5, "f1_score": 50.0, "loss": loss} | ({} if key == "loss" else {key: value})


def test_auto_is_auc_for_multi_label_sets_only() -> None:
    assert {task: Selection.resolve("auto", task).name for task in TASKS} == {
        "multi-class": "accuracy",
        "binary-class": "accuracy",
        "ordinal-regression": "accuracy",
        "multi-label": "auc",
    }
    assert all(Selection.resolve(name, task).name == name for name in SELECTIONS if name != "auto" for task in TASKS)
    with pytest.raises(KdxError, match="select=acuracy: choose auto, accuracy, auc, f1, loss; did you mean 'accuracy'"):
        Selection.resolve("acuracy", "multi-class")


@pytest.mark.parametrize(("name", "key"), [("accuracy", "accuracy"), ("auc", "auc"), ("f1", "f1_score")])
def test_the_higher_value_wins_then_the_lower_loss_and_never_nan(name: str, key: str) -> None:
    def beats(new: tuple, old: tuple) -> bool:
        return Selection(name).is_better(scores(*new, key=key), scores(*old, key=key))

    assert Selection(name).higher_is_better and Selection(name).is_better(scores(None, key=key), None)
    assert beats((2.0, 9.0), (1.0, 0.0)) and not beats((1.0, 0.0), (2.0, 9.0))
    assert beats((1.0, 0.5), (1.0, 0.6)) and not beats((1.0, 0.6), (1.0, 0.6))
    assert not beats((NAN, 0.0), (1.0, 9.0)) and not beats((None, 0.0), (1.0, 9.0)) and beats((1.0, 9.0), (NAN, 0.0))
    assert beats((None, 0.5), (NAN, 0.6)) and not beats((NAN, 0.6), (None, 0.5))
    assert not beats((1.0, NAN), (1.0, 0.5)) and beats((1.0, 0.5), (1.0, NAN))


def test_the_lower_loss_wins_where_loss_chooses() -> None:
    low, high, none = (scores(loss=loss) for loss in (0.1, 0.2, NAN))
    loss = Selection("loss")
    assert not loss.higher_is_better
    assert loss.is_better(low, high) and not loss.is_better(high, low) and not loss.is_better(low, low)
    assert loss.is_better(high, none) and not loss.is_better(none, high) and not loss.is_better(none, none)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("accuracy", "best_acc_95.23.pth"),
        ("auc", "best_auc_0.9312.pth"),
        ("f1", "best_f1_9.50.pth"),
        ("loss", "best_loss_0.1235.pth"),
    ],
)
def test_the_best_file_is_named_by_what_chose_it(name: str, file: str) -> None:
    told = {"accuracy": 95.23, "auc": 0.93124, "f1_score": 9.5, "loss": 0.12346}
    assert Selection(name).best_file(told) == file


@pytest.mark.parametrize("task", TASKS)
def test_auc_that_cannot_be_defined_is_told_before_training(task: str) -> None:
    """What the check says of the labels is what scoring finds."""
    classes = 2 if task == "binary-class" else 3
    shape = (4, classes) if task == "multi-label" else (4,)
    for labels in (torch.zeros(shape, dtype=torch.long), torch.arange(4).view(4, *(1,) * (len(shape) - 1)) % 2):
        labels = labels.expand(shape)
        told = full_scores(torch.randn(4, classes), labels, task, classes)
        if math.isnan(Selection("auc").value_of(told)):
            with pytest.raises(KdxError, match="select=auc: no class"):
                Selection("auc").check(labels, task, classes)
        else:
            Selection("auc").check(labels, task, classes)
        Selection("loss").check(labels, task, classes)
