"""Teachers that kdx did not train: their files in every wrapping, what is told of them, and that nothing of them moves."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdx.chain.context import load_dataset, make_run_context
from kdx.chain.foreign import import_network
from kdx.errors import KdxError
from kdx.metrics.doubts import are_probabilities, chance, other_order
from kdx.models.foreign import fit_names, is_kdx_file, load_foreign, read_weights, stem_of
from kdx.report.run import write_run_report
from kdx.tasks import BINARY, MULTI_LABEL, TASKS
from tests import tiny
from tests.conftest import settings_of, weights_of

Weights = dict[str, Tensor]


class Tupled(tiny.TinyNet):
    """As mdistiller's CIFAR networks are: (logits, features)."""

    def forward(self, images: Tensor) -> Any:
        return super().forward(images), {"feats": []}


class Wrapped(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


def mdistiller(num_classes: int, in_channels: int) -> nn.Module:
    return Wrapped(Tupled(num_classes, in_channels, width=8))


def softmaxed(num_classes: int, in_channels: int) -> nn.Module:
    return Wrapped(Soft(num_classes, in_channels, width=8))


class Soft(tiny.TinyNet):
    def forward(self, images: Tensor) -> Any:
        return [super().forward(images).softmax(dim=1)]


def trained() -> Weights:
    """The state dict of a wide tiny network that tells the classes of the tiny data set."""
    torch.manual_seed(0)
    network, data = tiny.wide(num_classes=3, in_channels=1), tiny.dataset()
    images = data.train.images.float() / 255
    mean, std = images.mean(), images.std()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(60):
        loss = nn.functional.cross_entropy(network((images - mean) / std), data.train.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.state_dict()


@pytest.fixture(scope="module")
def weights() -> Weights:
    return trained()


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


ARGS = argparse.Namespace(lr=0.1, model="wide")
WRAPPINGS: dict[str, Callable[[Weights], Any]] = {
    "plain": lambda w: w,
    "torchvision's references": lambda w: {"model": w, "optimizer": {"state": {}}, "epoch": 3, "args": ARGS},
    "torchvision's, from ranks": lambda w: {"model": prefixed(w, "module."), "lr_scheduler": {}},
    "timm's": lambda w: {"epoch": 1, "arch": "wide", "state_dict": w, "metric": np.float64(71.2), "args": ARGS},
    "timm's, compiled": lambda w: {"state_dict": prefixed(w, "_orig_mod."), "state_dict_ema": w},
    "RepDistiller's": lambda w: {"epoch": 240, "model": w, "best_acc": torch.tensor(72.3)},
    "mdistiller's": lambda w: {"model": prefixed(w, "module."), "best_acc": np.float32(72.3)},
    "lightning's": lambda w: {"state_dict": prefixed(w, "model."), "pytorch-lightning_version": "2.5"},
    "both": lambda w: {"net": prefixed(w, "module._orig_mod.backbone.")},
    "wrapped twice": lambda w: {"state_dict": {"model": w}},
    "of before 0.4.1": lambda w: {k: v for k, v in w.items() if not k.endswith("num_batches_tracked")},
    "half precision": lambda w: {k: v.half() if v.is_floating_point() else v for k, v in w.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_found_in_every_usual_wrapping(wrapping: str, weights: Weights, tmp_path: Path) -> None:
    path, network = tmp_path / "teacher.pth", tiny.wide(num_classes=3, in_channels=1)
    torch.save(WRAPPINGS[wrapping](weights), path, _use_new_zipfile_serialization=wrapping != "RepDistiller's")
    assert not is_kdx_file(path)
    load_foreign(network, read_weights(path), path, "wide")
    near = 1e-2 if wrapping == "half precision" else 0
    for key, value in network.state_dict().items():
        if key in WRAPPINGS[wrapping](weights) or "norm.running_mean" == key:
            torch.testing.assert_close(value, weights[key], rtol=near, atol=near)


def test_safetensors_and_a_network_that_wraps_the_trained_one(weights: Weights, tmp_path: Path) -> None:
    save_file(weights, tmp_path / "teacher.safetensors")
    network = mdistiller(num_classes=3, in_channels=1)
    load_foreign(network, read_weights(tmp_path / "teacher.safetensors"), tmp_path, "mdistiller")
    assert torch.equal(network.state_dict()["network.head.weight"], weights["head.weight"])


def test_names_lose_what_wrappers_added_and_nothing_else() -> None:
    one = torch.zeros(1)
    wanted = ["backbone.conv.weight", "features.0.weight", "fc.weight"]
    given = {f"module.{name}": one for name in wanted} | {}
    assert set(fit_names(given, wanted)) == set(wanted)
    parallel = {"features.module.0.weight": one, "classifier.weight": one}  # torch's ImageNet example wraps a part
    assert set(fit_names(parallel, ["features.0.weight", "classifier.weight"])) == {
        "features.0.weight",
        "classifier.weight",
    }
    dense = {"denselayer1.norm.1.weight": one}
    assert set(fit_names(dense, ["denselayer1.norm1.weight"])) == {"denselayer1.norm1.weight"}


def test_stem_is_the_one_of_the_weights() -> None:
    assert (
        stem_of({"module.conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)})
        == "imagenet"
    )
    assert stem_of({"conv1.weight": torch.zeros(64, 3, 3, 3)}) == "small"
    assert stem_of({"stem.0.weight": torch.zeros(64, 3, 3, 3)}) is None


def broken(what: str, path: Path, weights: Weights) -> None:
    path.parent.mkdir(exist_ok=True)
    content: Any = weights
    if what == "code":
        content = {"model": weights, "criterion": nn.Linear(1, 1)}
    if what == "whole network":
        content = tiny.wide(3, 1)
    if what == "other names":
        content = {key.replace("stem", "conv1"): value for key, value in weights.items()}
    if what == "missing":
        content = {key: value for key, value in weights.items() if key != "head.bias"}
    if what == "more":
        content = weights | {"neck.weight": torch.zeros(1)}
    if what == "classes":
        content = weights | {"head.weight": torch.zeros(100, 8), "head.bias": torch.zeros(100)}
    if what == "channels":
        content = weights | {"stem.weight": torch.zeros(8, 3, 3, 3)}
    if what == "shapes":
        content = weights | {"norm.weight": torch.zeros(9)}
    if what == "nan":
        content = weights | {"head.bias": torch.full((3,), torch.nan)}
    if what == "integers":
        content = weights | {"head.bias": torch.zeros(3, dtype=torch.int8)}
    if what == "elsewhere":
        content = {"teacher": weights, "epoch": 3}
    if what == "numbers":
        content = {"epoch": 3}
    if what == "list":
        content = [1, 2]
    torch.save(content, path)
    whole = path.read_bytes()
    if what == "cut off":
        path.write_bytes(whole[: len(whole) // 2])
    if what == "empty":
        path.write_bytes(b"")
    if what == "text":
        path.write_text("<html>not found</html>")


BROKEN = {
    "cut off": "the end of the file is missing",
    "empty": "is empty",
    "text": "not a readable checkpoint",
    "code": "holds objects of torch.nn.modules.linear.Linear, whose code is not run",
    "whole network": "holds objects of tests.tiny.TinyNet, whose code is not run",
    "other names": r"stem.weight is missing \(2 of 9 are\); conv1.weight is not a weight of it",
    "missing": r"does not fit model.teacher=tests.tiny:wide: head.bias is missing",
    "more": "neck.weight is not a weight of it",
    "classes": "head.weight has shape 100x8, .* needs 3x8: it was trained for 100 classes, the data set has 3",
    "channels": "it was trained on images of 3 channels; dataset.normalize=imagenet gives grey images three",
    "shapes": "norm.weight has shape 9, .* needs 8",
    "nan": "not finite in head.bias",
    "integers": "head.bias holds whole numbers",
    "elsewhere": "holds no weights; choose checkpoint_key=teacher",
    "numbers": "holds no weights",
    "list": "holds a list, a state dict is needed",
}


def test_bad_files_are_told_in_one_line_before_anything_is_written(weights: Weights, tiny_run, tmp_path: Path) -> None:
    for what, message in BROKEN.items():
        path = tmp_path / "files" / f"{what.replace(' ', '_')}.pth"
        broken(what, path, weights)
        with pytest.raises(KdxError, match=rf"^stage.teacher.checkpoint=.*{path.name}: .*{message}"):
            tiny_run("stage.deliver=assistant", f"stage.teacher.checkpoint='{path}'")
    with pytest.raises(KdxError, match="a folder, a file is needed"):
        tiny_run("stage.deliver=assistant", f"stage.teacher.checkpoint='{tmp_path}'")
    assert not list((tmp_path / "outputs").rglob("*.*"))


def test_imported_teacher_teaches_is_filed_and_stays_as_it_was(
    weights: Weights, tiny_run, tmp_path: Path, caplog
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "mine.pth"
    torch.save({"weights": weights}, path)
    named = [f"stage.teacher.checkpoint='{path}'", "stage.teacher.checkpoint.key=weights"]
    first = tiny_run("stage.deliver=assistant", *named)
    assert f"import {path}" in caplog.text and "mine.pth reaches 100.00 % on the validation split" in caplog.text
    assert "of each class, %: class0 100, class1 100, class2 100" in caplog.text
    assert first.statuses() == {"teacher": "imported", "assistant": "trained"}
    kept = weights_of(first.checkpoint("teacher"))
    assert kept.keys() == weights.keys() and all(torch.equal(kept[key], weights[key]) for key in kept)
    assert [("file", "mine.pth")] == [(o["what"], o["name"]) for o in first.summary["lineage"] if o["what"] == "file"]
    write_run_report(first.folder)
    assert "imported" in (first.folder / "report.html").read_text()
    second = tiny_run("stage.deliver=assistant", "kd.alpha=0.2", *named)
    assert "it was imported before" in caplog.text
    assert second.checkpoint("teacher").resolve() == first.checkpoint("teacher").resolve()
    torch.save({"weights": weights | {"head.bias": weights["head.bias"] + 1}}, path)
    third = tiny_run("stage.deliver=assistant", *named)
    assert third.summary["assistant"]["status"] == "trained"


def context_of(network: str, *overrides: str) -> Any:
    settings = settings_of(f"model.teacher={network}", *overrides)
    return make_run_context(settings, load_dataset(settings)), settings.stage("teacher")


def test_what_speaks_against_an_import_is_told(weights: Weights, tmp_path: Path, caplog) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(weights, path)
    import_network(*context_of("tests.test_import:softmaxed"), path)
    assert "it answers with probabilities instead of logits" in caplog.text
    with pytest.raises(
        KdxError, match=r"at chance .*prepared otherwise \(33.3% .* as it is, 100.0% with dataset.normalize=dataset"
    ):
        import_network(*context_of(tiny.WIDE, "dataset.normalize={mean:[0],std:[10]}"), path)
    turned = weights | {key: weights[key].roll(1, dims=0) for key in ("head.weight", "head.bias")}
    torch.save(turned, path)
    with pytest.raises(
        KdxError, match="another order .*0.00 as it is, 1.00 where class0 is its output 1, class1 is its output 2"
    ):
        import_network(*context_of(tiny.WIDE), path)
    caplog.clear()
    loaded = import_network(*context_of(tiny.WIDE, "stage.teacher.checkpoint_check=false"), path)
    assert not loaded.sound and "another order" in caplog.text
    torch.save(weights | {"head.weight": torch.zeros(3, 8)}, path)
    with pytest.raises(KdxError, match="at chance .*33.3% of each class, guessing 33.3%"):
        import_network(*context_of(tiny.WIDE), path)


@pytest.mark.parametrize("task", TASKS)
def test_doubts_by_scores(task: str) -> None:
    torch.manual_seed(0)
    classes = 2 if task == BINARY else 4
    labels = torch.arange(200) % classes
    truth = nn.functional.one_hot(labels, classes)
    if task == MULTI_LABEL:
        labels = truth = (torch.rand(200, classes) < 0.4).long()
    good, names = 4 * truth - 2 + torch.randn(200, classes), [f"c{i}" for i in range(classes)]
    guess = torch.randn(200, classes)
    assert not chance(good, labels, task)[2] and chance(guess, labels, task)[2]
    assert other_order(good, labels, task, names) is None and other_order(guess, labels, task, names) is None
    turned = other_order(good.roll(1, dims=1), labels, task, names)
    assert turned is not None and f"c{classes - 1} is its output 0" in turned
    bounded = good.sigmoid() if task == MULTI_LABEL else good.softmax(dim=1)
    assert are_probabilities(bounded, task) and not are_probabilities(good, task)
