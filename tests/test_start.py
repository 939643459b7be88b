"""`stage.<role>.start`: first weights from another stage or from a file, all that fit."""

from pathlib import Path

import pytest
import torch

from kdx.errors import KdxError
from tests.conftest import same_weights, weights_of
from tests.test_chain import fingerprints

STILL = "optimizer.lr=1e-30"  # what is trained so little stays what it started from


def test_a_stage_starts_from_another_that_is_trained_first(tiny_run, caplog) -> None:
    caplog.set_level("INFO")
    chosen = ["stage.student.guide=null", "stage.student.start=assistant", "stage.student.optimizer.lr=1e-30"]
    run = tiny_run("stage.deliver=student", *chosen)
    assert run.roles() == ["teacher", "assistant", "student"]
    assert (
        "train 2 epochs, from the assistant" in caplog.text
        and "starts from the assistant: 8 of 8 weights" in caplog.text
    )
    start, end = weights_of(run.checkpoint("assistant")), weights_of(run.checkpoint("student"))
    assert torch.equal(start["head.weight"], end["head.weight"])
    assert run.summary["student"]["start"] == "assistant"
    again = tiny_run("stage.deliver=student", *chosen)
    assert again.statuses() == {"student": "reused"}
    other = tiny_run("stage.deliver=student", *chosen, "stage.assistant.epochs=1")
    assert other.statuses() == {"teacher": "reused", "assistant": "trained", "student": "trained"}


def test_start_from_files_of_kdx_and_of_others_with_other_classes(tiny_run, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    first = tiny_run("stage.deliver=teacher")
    ours, theirs = first.checkpoint("teacher"), tmp_path / "theirs.pth"
    weights = weights_of(ours)
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, theirs)
    for file in (ours, theirs):
        run = tiny_run("stage.deliver=teacher", f"stage.teacher.start='{file}'", STILL, "+dataset.source.classes=4")
        assert "anew: head.weight, head.bias" in caplog.text
        caplog.clear()
        assert torch.equal(weights_of(run.checkpoint("teacher"))["stem.weight"], weights["stem.weight"])
        assert [o["name"] for o in run.summary["lineage"] if o["what"] == "start"] == [file.name]
    run = tiny_run(
        "stage.deliver=assistant", f"stage.assistant.start='{theirs}'", "model.assistant=tests.tiny:wide", STILL
    )
    assert "starts from" in caplog.text and "8 of 8 weights" in caplog.text and "anew" not in caplog.text
    names = "dataset.source._target_=tests.test_start.renamed"
    tiny_run("stage.deliver=teacher", f"stage.teacher.start='{ours}'", STILL, names)
    assert "anew: head.weight, head.bias" in caplog.text  # as many classes, but others


def test_a_teacher_from_elsewhere_whose_backbone_is_frozen_learns_its_classifier_alone(
    tiny_run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither its weights nor its batch-norm's statistics move, while the student's do. Random ones are told."""
    first = tiny_run("stage.deliver=teacher", "epochs=1")
    weights = weights_of(first.checkpoint("teacher"))
    torch.save(weights, tmp_path / "w.pth")
    named = ["stage.deliver=student", "stage.student.guide=teacher", f"stage.teacher.start='{tmp_path / 'w.pth'}'"]
    run = tiny_run(*named, "stage.teacher.freeze_backbone=true")
    taught, student = (weights_of(run.checkpoint(role)) for role in ("teacher", "student"))
    assert {key for key in taught if not torch.equal(taught[key], weights[key])} == {"head.weight", "head.bias"}
    assert student["norm.num_batches_tracked"] > 0 and "random weights" not in caplog.text
    tiny_run("stage.deliver=teacher", "stage.teacher.freeze_backbone=true")
    assert "warning: stage.teacher: freeze_backbone=true keeps random weights" in caplog.text


def renamed():
    from kdx.data.dataset import from_arrays
    from tests.tiny import arrays

    return from_arrays("tiny", arrays(), task="multi-class", class_names=["x", "y", "z"])


def test_resume_of_a_started_stage_ends_with_the_same_bits(tiny_run, tmp_path: Path) -> None:
    torch.save(weights_of(tiny_run("stage.deliver=teacher").checkpoint("teacher")), tmp_path / "w.pth")
    line = ["stage.deliver=teacher", f"stage.teacher.start='{tmp_path / 'w.pth'}'", "stage.reuse=never"]
    assert same_weights(tiny_run(*line).checkpoint("teacher"), tiny_run(*line).checkpoint("teacher"))


def test_the_file_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pth")
    before, plain = fingerprints(f"stage.assistant.start='{tmp_path / 'w.pth'}'"), fingerprints()
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pth")
    after = fingerprints(f"stage.assistant.start='{tmp_path / 'w.pth'}'")
    assert before["teacher"] == after["teacher"] and len({f["assistant"] for f in (before, plain, after)}) == 3
    assert before["student"] != after["student"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage.student.start=profesor", "stage.student.start=profesor: no such role nor file"),
        ("stage.student.start=student", "guide each other in a circle; a start counts"),
        ("stage.teacher.start=student", "guide each other in a circle; a start counts"),
        ("stage.student.start=tests", "stage.student.start=tests: a folder"),
        ("stage.student.start=tests/tiny.py", "stage.student.start=tests/tiny.py: not a readable checkpoint"),
    ],
)
def test_bad_starts_are_one_line(tiny_run, override: str, message: str) -> None:
    with pytest.raises(KdxError, match=message):
        tiny_run("stage.deliver=student", override)


@pytest.mark.parametrize(
    "named",
    [
        ["stage.deliver=teacher", "stage.teacher.checkpoint"],
        ["stage.deliver=teacher", "stage.teacher.start"],
        [
            "stage.deliver=student",
            "stage.student.guide=teacher",
            "stage.teacher.head=false",
            "stage.teacher.checkpoint",
        ],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("key", ["nosuchkey", "model", "average"])
@pytest.mark.parametrize("plan", [True, False])
def test_a_key_is_for_files_that_others_wrote(tiny_run, named: list[str], key: str, plan: bool) -> None:
    file = tiny_run("stage.deliver=teacher", "epochs=1").checkpoint("teacher")
    told = f"^stage.teacher.checkpoint_key={key}: is for files of others: kdx itself wrote .*best_acc_.*; leave it out$"
    with pytest.raises(KdxError, match=told):
        tiny_run(*named[:-1], f"{named[-1]}='{file}'", f"stage.teacher.checkpoint_key={key}", f"plan={plan}".lower())


def test_start_of_which_nothing_fits(tiny_run, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(KdxError, match=r"stage.teacher.start=.*w.pth: none of its weights fits the network"):
        tiny_run("stage.deliver=teacher", f"stage.teacher.start='{tmp_path / 'w.pth'}'")
