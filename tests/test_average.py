"""Checkpoints of a training with `ema`: whoever takes weights of them gets the average, whose scores they tell."""

from pathlib import Path

import pytest
import torch

from kdx.chain.context import load_dataset, make_run_context
from kdx.chain.headless import import_features
from kdx.chain.logits import logits_folder
from kdx.checkpoint import load_checkpoint, save_checkpoint
from kdx.deploy.load import answers, load_model
from kdx.errors import KdxError
from tests import tiny
from tests.conftest import TinyRun, settings_of, weights_of
from tests.test_chain import fingerprints
from tests.test_start import STILL

FILES = ["latest.pth", "epoch_0002.pth"]
HEADLESS = ["stage.deliver=student", "stage.student.guide=teacher", "stage.teacher.head=false", "kd=pkt"]


@pytest.fixture
def averaged(tiny_run) -> TinyRun:
    return tiny_run("stage.deliver=teacher", "ema=0.9", "save_interval=1", "optimizer.lr=0.05")


def average_in(file: Path) -> dict[str, torch.Tensor]:
    content = load_checkpoint(file)
    assert not torch.equal(content["average"]["head.weight"], content["model"]["head.weight"])
    assert content["average"].keys() == content["model"].keys()
    return content["average"]


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_named_for_a_stage_gives_the_average(averaged: TinyRun, tiny_run, name: str) -> None:
    file = averaged.folder / "teacher/checkpoints" / name
    scores = load_checkpoint(file)["validation"]
    assert average_in(file)
    run = tiny_run("stage.deliver=teacher", f"stage.teacher.checkpoint='{file}'")
    assert run.statuses() == {"teacher": "loaded"}
    model, card = load_model(file, network="tests.tiny:wide")
    data = tiny.dataset()
    for split, told in ((data.val, scores), (data.test, run.summary["teacher"]["test"])):
        loss = torch.nn.functional.cross_entropy(answers(model, card, split.images), split.labels)
        assert float(loss) == pytest.approx(told["loss"], rel=1e-4)


@pytest.mark.parametrize("name", FILES)
def test_a_stage_starts_from_the_average(averaged: TinyRun, tiny_run, name: str) -> None:
    file = averaged.folder / "teacher/checkpoints" / name
    run = tiny_run("stage.deliver=teacher", f"stage.teacher.start='{file}'", STILL)
    for key in ("stem.weight", "head.weight", "norm.weight"):
        assert torch.equal(weights_of(run.checkpoint("teacher"))[key], average_in(file)[key])


def test_a_teacher_without_its_classifier_is_the_average(averaged: TinyRun) -> None:
    file = averaged.folder / "teacher/checkpoints/latest.pth"
    settings = settings_of(*HEADLESS, "model.teacher=tests.test_average:headless")
    context = make_run_context(settings, load_dataset(settings))
    network = import_features(context, settings.stage("teacher"), file).network
    assert torch.equal(network.get_parameter("stem.weight"), average_in(file)["stem.weight"])


def headless(num_classes: int, in_channels: int) -> torch.nn.Module:
    network = tiny.TinyNet(1, in_channels, width=8)
    network.head = torch.nn.Identity()
    return network


def test_files_that_gave_the_raw_weights_have_another_fingerprint(averaged: TinyRun, tmp_path: Path) -> None:
    """Of stages that were made from them, and of what was kept of their answers; of no other file."""
    content = load_checkpoint(averaged.folder / "teacher/checkpoints/latest.pth")
    for key in ("stage.assistant.start", "stage.teacher.checkpoint", "logits"):
        marks = []
        for average in (content["average"], {}):
            file = tmp_path / "w.pth"
            save_checkpoint(file, content | {"average": average})
            marks.append(_mark(key, file))
            with pytest.MonkeyPatch.context() as before:
                before.setattr("kdx.chain.fingerprints.holds_average", lambda path: False)
                marks.append(_mark(key, file))
        assert marks[0] != marks[1] and marks[2] == marks[3]


def _mark(key: str, file: Path) -> str:
    if key != "logits":
        return fingerprints(f"{key}='{file}'")["assistant"]
    settings = settings_of(f"stage.teacher.checkpoint='{file}'", "kd.cache_logits=true")
    context = make_run_context(settings, load_dataset(settings))
    return str(logits_folder(context, settings.stage("assistant"), "teacher", "0"))


def test_an_average_that_is_none_is_told(averaged: TinyRun, tmp_path: Path) -> None:
    content = load_checkpoint(averaged.folder / "teacher/checkpoints/latest.pth")
    for wrong in (3, torch.ones(3), ["head.weight"]):
        save_checkpoint(tmp_path / "w.pth", content | {"average": wrong})
        with pytest.raises(KdxError, match="w.pth: not a kdx checkpoint: 'average' is a"):
            load_model(tmp_path / "w.pth", network="tests.tiny:wide")
