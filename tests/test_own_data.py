"""A run on a user's own data set is exported and visualised once its owner names the code."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kdx import export
from kdx.data.dataset import Dataset, from_arrays
from kdx.deploy import exporting
from kdx.deploy.run_loader import load_data, load_stage
from kdx.errors import KdxError
from kdx.visualize import __main__ as visualize
from tests import tiny
from tests.conftest import TinyRun

OWN = {"network": tiny.NETWORK, "data": "tests.tiny:dataset", "role": "teacher"}


def other() -> Dataset:
    return tiny.dataset(seed=1)


def same() -> Dataset:
    return tiny.dataset(classes=4)


def in_order() -> Dataset:
    """Sorted by class, as an image folder is: ten images of each of three."""
    splits = tiny.arrays()
    for split, (images, labels) in splits.items():
        order = labels.argsort(kind="stable")
        splits[split] = (images[order], labels[order])
    return from_arrays("tiny", splits, task="multi-class", class_names=["a", "b", "c"])


def keys_of_export(keys: dict[str, str | None]) -> dict[str, str | None]:
    return {key: value for key, value in keys.items() if key != "compare"} | {"format": "safetensors"}


def no_data() -> str:
    return "pictures"


def broken() -> Dataset:
    raise RuntimeError("two\nlines")


@pytest.fixture
def run(tiny_run: Callable[..., TinyRun]) -> Path:
    own = ("stage=teacher", "model.teacher=tests.tiny:network", "epochs=1", "+dataset.source.classes=4")
    return tiny_run(*own).folder


def test_own_data_is_not_run_because_a_file_says_so(run: Path) -> None:
    with pytest.raises(KdxError, match="code of yours that is not run .*: say data=tests.tiny:dataset"):
        load_data(load_stage(run, "teacher", tiny.NETWORK))


def test_own_data_is_exported_and_drawn(run: Path) -> None:
    """The callable gets the arguments that it got for the training: four classes."""
    told = export.export([str(run)], **export.COMMAND.defaults() | OWN | {"format": "safetensors"})
    assert "on 30 test images: largest difference" in told
    visualize.draw([str(run)], **visualize.COMMAND.defaults() | OWN | {"samples": 1})
    assert list((run / "teacher" / "visualizations").rglob("side_by_side_0*.png"))


def test_of_sorted_data_every_class_is_drawn_and_compared(
    tiny_run: Callable[..., TinyRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pitfall: the first images of an image folder are all of its first class."""
    source = "dataset.source._target_=tests.test_own_data.in_order"
    line = ("stage=student", "stage.student.guide=teacher", "epochs=1", "visualize.samples=4", "visualize.every=1")
    run = tiny_run(*line, source).folder
    expected = [f"{number}_label_{number % 3}.png" for number in range(4)]
    for folder in ("teacher/visualizations", "student/visualizations", "student/visualizations/epoch_0001"):
        assert sorted(path.name for path in (run / folder).glob("*.png")) == [f"feature_maps_{e}" for e in expected]
    keys = {"network": "tests.tiny:wide", "data": "tests.test_own_data:in_order", "role": "teacher", "compare": None}
    drawn = visualize.draw([str(run)], **visualize.COMMAND.defaults() | keys)
    assert [line[-len(e) :] for line, e in zip(drawn.splitlines()[-4:], expected, strict=True)] == expected
    seen: list[list[int]] = []
    monkeypatch.setattr(exporting, "_compare", lambda a, b, labels, card: seen.append(labels.tolist()) or "")
    export.export([str(run)], **export.COMMAND.defaults() | keys_of_export(keys) | {"samples": 6})
    assert seen == [[0, 0, 1, 1, 2, 2]]


def test_another_callable_that_gives_the_same_images_will_do(run: Path) -> None:
    stage = load_stage(run, "teacher", tiny.NETWORK)
    assert load_data(stage, data="tests.test_own_data:same").digest == stage.meta["data_digest"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("tests.test_own_data:other", "these are other images than the teacher was trained on"),
        ("tests.test_own_data:no_data", "returned str, a kdx.data.Dataset is needed"),
        ("tests.test_own_data:broken", "RuntimeError: two lines"),
        ("tests.test_own_data:nothing", "cannot be imported"),
        ("no_such_module:x", "cannot be imported"),
        ("nonsense", "cannot be imported"),
        ("", "cannot be imported"),
    ],
)
def test_wrong_data_is_one_line(run: Path, data: str, message: str) -> None:
    with pytest.raises(KdxError, match=message) as error:
        load_data(load_stage(run, "teacher", tiny.NETWORK), data=data)
    assert "\n" not in str(error.value)
