"""What the version before (0.1, all files in one folder) left is still read, reported, exported, predicted with, reused.

The fixture was made by it: a run of two ResNet-8 stages on digits, and a sweep of kd=hinton,none over two seeds,
without latest.pth, pages and pictures.
"""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from kdx.chain.index import StageIndex
from kdx.data.sources import load_digits
from kdx.deploy.load import answers, load_model
from kdx.deploy.run_loader import load_data, load_stage
from kdx.export import COMMAND as EXPORT
from kdx.export import export
from kdx.predict import COMMAND as PREDICT
from kdx.predict import predict
from kdx.report.run import write_run_report
from kdx.report.sweep import write_report
from kdx.results import grouped, load_sweep
from tests.conftest import REPO


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPO / "tests" / "fixtures" / "version_0_1", tmp_path / "outputs"))


def test_a_run_is_reported(outputs: Path) -> None:
    told = write_run_report(outputs / "run")
    assert "The student (kdx.thin:resnet8) reaches 89.44 % on the test split." in told
    assert (outputs / "run" / "report.html").exists()


def test_a_sweep_is_reported(outputs: Path) -> None:
    frame = load_sweep(outputs / "sweep")
    assert frame["status"].tolist() == ["finished"] * 4
    assert [len(group.runs) for group in grouped(frame)] == [2, 2]
    assert "4 of 4 jobs finished" in write_report(outputs / "sweep")


def test_a_network_answers_as_it_did(outputs: Path) -> None:
    stage = load_stage(outputs / "run", "student")
    data = load_data(stage)
    assert data.digest == stage.meta["data_digest"]
    model, card = load_model(outputs / "run")
    right = answers(model, card, data.test.images).argmax(dim=1) == data.test.labels
    assert round(100 * float(right.double().mean()), 2) == 89.44


def test_a_network_is_exported_and_asked(outputs: Path, tmp_path: Path) -> None:
    given = {**EXPORT.defaults(), "format": "safetensors", "output": str(tmp_path / "student.safetensors")}
    assert "largest difference 0.00e+00" in export([str(outputs / "run")], **given)
    picture = tmp_path / "digit.png"
    Image.fromarray(load_digits().test.images[0, 0].numpy()).save(picture)
    asked = PREDICT.defaults() | {"top": 1}
    by_run = list(predict([str(outputs / "run"), str(picture)], **asked))
    assert by_run == list(predict([str(tmp_path / "student.safetensors"), str(picture)], **asked))


def test_the_index_knows_its_stages(outputs: Path) -> None:
    digest = load_digits().digest
    wanted = {"role": "teacher", "network": "kdx.thin:resnet8", "data_digest": digest, "num_classes": 10}
    found = StageIndex(outputs).newest_first(**wanted)
    assert [stage.checkpoint for stage in found] == ["run/teacher/checkpoints/best_acc_88.89.pth"]
    assert torch.load(outputs / found[0].checkpoint, weights_only=True)["epoch"] == found[0].epoch
