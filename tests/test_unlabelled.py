"""dataset.unlabelled: pictures without labels, for the stages that somebody teaches."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdx.chain.batches import stage_batches, train_size, updates_per_epoch
from kdx.chain.chain import run_chain
from kdx.chain.context import load_dataset, make_run_context
from kdx.chain.parts import build_parts
from kdx.data.batches import Batches, Preprocessing
from kdx.data.dataset import Split
from kdx.data.description import notes_of
from kdx.data.imagefolder import load_imagefolder
from kdx.data.picture_cache import CachedPictures, Joined
from kdx.data.unlabelled import add_unlabelled
from kdx.errors import KdxError
from kdx.training.keeper import Keeper
from tests import tiny
from tests.conftest import TinyRun, same_weights, settings_of

CPU = torch.device("cpu")
STUDENT = ["stage=student", "stage.student.guide=teacher", "num_workers=0", "stage.teacher.epochs=1"]


def write_picture(path: Path, number: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(number)
    Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures at two depths, one of another size, and a file that is none."""
    for number in range(12):
        place = tmp_path / "found" / ("deep/er" if number % 2 else "") / f"{number:02d}.png"
        write_picture(place, number, (8, 8) if number else (16, 12))
    (tmp_path / "found" / "notes.txt").touch()
    return tmp_path / "found"


def context_of(folder: Path, *overrides: str) -> Any:
    settings = settings_of(*STUDENT, f"dataset.unlabelled={folder}", f"output_dir={folder.parent / 'out'}", *overrides)
    context = make_run_context(settings, load_dataset(settings))
    return context, settings.stage("student"), settings.stage("teacher")


def test_a_taught_stage_sees_them_without_labels_and_no_other_does(folder: Path) -> None:
    context, student, teacher = context_of(folder, "stage.student.labelled=0.5", "stage.student.kd=crd")
    (whole,) = [list(stage_batches(context, stage, "train").epoch(1)) for stage in (student,)]
    indices = torch.cat([batch.indices for batch in whole])
    known = torch.cat([batch.known for batch in whole if batch.known is not None])
    assert sorted(indices.tolist()) == list(range(42)) and not known[indices >= 30].any()
    assert int(known.sum()) == 15
    assert [train_size(context, stage) for stage in (student, teacher)] == [42, 30]
    for stage in (student, teacher):
        assert updates_per_epoch(context, stage) == len(stage_batches(context, stage, "train"))
    assert sum(len(batch.labels) for batch in stage_batches(context, teacher, "train").epoch(1)) == 30
    objective: Any = build_parts(context, student, {"teacher": tiny.wide(3, 1)}).learner.objective
    assert len(objective.terms["kd"].method.bank_student) == 42


def test_a_picture_is_read_as_the_training_images_are(folder: Path) -> None:
    context, *_ = context_of(folder)
    images = context.dataset.unlabelled.images
    assert images.shape == (12, 1, 8, 8)
    with Image.open(folder / "02.png") as second:
        assert np.array_equal(images[1, 0].numpy(), np.asarray(second))


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_images_are_the_same_wherever_they_are_kept(folder: Path, cache: str) -> None:
    context, student, _ = context_of(folder, f"+dataset.cache={cache}")
    plain, *_ = context_of(folder, "+dataset.cache=memory")
    assert context.dataset.unlabelled.digest == plain.dataset.unlabelled.digest
    pairs = zip(*(stage_batches(c, student, "train").epoch(2) for c in (context, plain)), strict=True)
    assert all(torch.equal(one.images, two.images) for one, two in pairs)


def test_parts_are_gathered_by_number(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (7, 1, 2, 2), dtype=torch.uint8)
    (tmp_path / "pixels").write_bytes(pixels[3:].numpy().tobytes())
    joined = Joined([pixels[:3], CachedPictures(tmp_path / "pixels", 0, 4, (1, 2, 2))])
    numbers = torch.tensor([6, 0, 3, 2, 2])
    assert joined.gathers and torch.equal(joined.batch(numbers), pixels[numbers])
    assert len(joined) == 7 and all(torch.equal(joined[number], pixels[number]) for number in range(7))


def test_a_balanced_epoch_shows_each_hidden_image_once() -> None:
    labels = torch.tensor([0] * 12 + [1] * 4 + [0] * 5)
    images = torch.zeros(21, 1, 4, 4, dtype=torch.uint8)
    known = torch.arange(21) < 16
    batches = Batches(Split(images, labels), Preprocessing((0.0,), (1.0,)), batch_size=6, device=CPU, shuffle=True,
                      balance=True, known=known, augment=["crop"])  # fmt: skip
    seen = list(batches.epoch(1))
    times = Counter(torch.cat([batch.indices for batch in seen]).tolist())
    assert len(seen) == len(batches) == 4 and [times[number] for number in range(16, 21)] == [1] * 5
    assert sum(times[number] for number in range(12)) == sum(times[number] for number in range(12, 16)) == 8


def test_a_hidden_picture_changes_a_distilled_stage_alone(tiny_run, folder: Path) -> None:
    more = [*STUDENT, f"dataset.unlabelled={folder}", "stage.student.labelled=0.5", "dataset.augment=[crop,mixup]"]
    more += ["micro_batches=2", "epochs=1"]
    runs = {kd: [tiny_run(*more, f"kd={kd}")] for kd in ("hinton", "none")}
    write_picture(folder / "02.png", 77)
    for kd, found in runs.items():
        found.append(tiny_run(*more, f"kd={kd}"))
    (first, second), (alone, again) = runs["hinton"], runs["none"]
    assert second.statuses() == {"teacher": "reused", "student": "trained"}
    assert not same_weights(first.checkpoint("student"), second.checkpoint("student"))
    assert again.statuses() == {"student": "reused"} and alone.statuses() == {"student": "trained"}


def test_resume_inside_an_epoch_is_bit_identical(folder: Path, tmp_path: Path, monkeypatch) -> None:
    more = [*STUDENT, f"dataset.unlabelled={folder}", "checkpoint_every_steps=1", "resume=true", "micro_batches=2"]
    more += ["dataset.augment=[crop,mixup]", "dataset.balance=true", "stage.student.kd=crd"]

    def run(outputs: str) -> TinyRun:
        target = tmp_path / outputs / "run"
        target.mkdir(parents=True, exist_ok=True)
        run_chain(settings_of(f"output_dir={tmp_path / outputs}", *more), target, more)
        return TinyRun(target)

    whole, after_step, stopped = run("whole"), Keeper.after_step, []

    def stopping(keeper: Keeper) -> None:
        after_step(keeper)
        if "student" in str(keeper.folder) and len(stopped) < 8:
            stopped.append(keeper)
            if len(stopped) == 8:
                raise KdxError("here")

    monkeypatch.setattr(Keeper, "after_step", stopping)
    with pytest.raises(KdxError, match="here"):
        run("stopped")
    assert same_weights(whole.checkpoint("student"), run("stopped").checkpoint("student"))


def test_kept_logits_cover_them_and_stand_for_them(tiny_run, folder: Path, tmp_path: Path) -> None:
    more = [*STUDENT, f"dataset.unlabelled={folder}", "stage.reuse=exact"]
    asked, kept = tiny_run(*more), tiny_run(*more, "kd.cache_logits=true", "stage.reuse=never")
    assert same_weights(asked.checkpoint("student"), kept.checkpoint("student"))
    logits = tmp_path / "outputs" / "index" / "logits"
    assert [len(np.load(path)) for path in logits.glob("*/epoch_*.npy")] == [42, 42]
    write_picture(folder / "02.png", 77)
    tiny_run(*more, "kd.cache_logits=true", "stage.reuse=never")
    assert len(list(logits.iterdir())) == 2


def test_a_run_tells_of_them(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(tiny.arrays()["test"][0][0, :, :, 0]).save(folder / "leak.png")
    target = tmp_path / "out" / "run"
    with caplog.at_level("INFO"):
        run_chain(
            settings_of(*STUDENT, f"dataset.unlabelled={folder}", f"output_dir={target.parent}", "report=true"), target
        )
    assert "taught by the teacher, also on 13 images without labels" in caplog.text
    told = f"unlabelled: 13 images of 8x8 grey without labels from {folder}, for distilled stages only"
    summary = json.loads((target / "summary.json").read_text())
    assert told in caplog.text and told in summary["data_notes"] and told in (target / "report.html").read_text()
    assert f"1 of the 13 pictures in {folder} are in test, too (the same pixels)" in summary["data_notes"]
    assert f"{folder}: not read: 1 .txt" in summary["data_notes"]
    assert "unlabelled" in [origin["what"] for origin in summary["lineage"]]


@pytest.mark.parametrize(
    ("named", "told"), [("more", "extra"), ("extra/un", "more"), (".", None), ("train", "extra, more")]
)
def test_a_folder_that_is_read_is_not_told_as_left_out(named: str, told: str | None, tmp_path: Path) -> None:
    places = [f"{split}/{name}" for split in ("train", "val", "test") for name in ("a", "b")]
    for number, place in enumerate([*places, "more", "extra/un"]):
        write_picture(tmp_path / place / "1.png", number)
    data = load_imagefolder(str(tmp_path), None, 1.0, 0)
    assert list(notes_of(data)) == [f"{tmp_path}: not read: the folders extra, more"]
    data = add_unlabelled(data, os.path.relpath(tmp_path / named), in_memory_gb=1.0, num_workers=0, cache_dir=None)
    left_out = [note for note in notes_of(data) if "the folders" in note]
    assert left_out == ([f"{tmp_path}: not read: the folders {told}"] if told else [])


@pytest.mark.parametrize("named, read_as", [("train/1", "1"), ("train/0/deep", "0"), ("val/1", "1"), ("link", "1")])
def test_pictures_that_are_read_with_their_class_are_not_without(tmp_path: Path, named: str, read_as: str) -> None:
    for number, place in enumerate(["train/0", "train/0/deep", "train/1", "train/1", "val/0", "val/1", "test/0"]):
        write_picture(tmp_path / "set" / place / f"{number}.png", number)
    (tmp_path / "set/link").symlink_to(tmp_path / "set/train/1")
    data = load_imagefolder(str(tmp_path / "set"), None, 1.0, 0)
    with pytest.raises(KdxError, match=rf"unlabelled=\S+{named}: its pictures are read as class {read_as}, because"):
        add_unlabelled(data, str(tmp_path / "set" / named), in_memory_gb=1.0, num_workers=0, cache_dir=None)
    twice = add_unlabelled(data, str(tmp_path / "set/train"), in_memory_gb=1.0, num_workers=0, cache_dir=None)
    assert f"4 of the 4 pictures in {tmp_path}/set/train are in train, too (the same pixels)" in twice.notes
    unkept = load_imagefolder(str(tmp_path / "set"), None, 1.0, 0, cache="none")
    for place, told in (("test", ["1 of the 1", "test"]), ("", ["6 of the 9", "train", "2 of the 9", "val"])):
        own = {"in_memory_gb": 1.0, "num_workers": 0, "cache": "none", "cache_dir": None}
        notes = " ".join(add_unlabelled(unkept, str(tmp_path / "set" / place), **own).notes)
        assert all(words in notes for words in told) and "are in" in notes and "(the same files)" in notes


def test_what_cannot_be_used_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.csv").touch()
    (tmp_path / "broken" / "in").mkdir(parents=True)
    (tmp_path / "broken" / "in" / "bad.png").write_bytes(b"no picture")
    cases = {
        f"{tmp_path / 'nowhere'}": r"dataset.unlabelled=\S+nowhere: no such folder",
        f"{folder / '02.png'}": r"dataset.unlabelled=\S+02.png: a file; a folder is needed",
        f"{tmp_path / 'empty'}": r"dataset.unlabelled=\S+empty: no picture in it or below; not read: 1 .csv",
        f"{tmp_path / 'broken'}": r"\S+/broken/in/bad.png: not a readable image",
    }
    for path, words in cases.items():
        with pytest.raises(KdxError, match=words):
            context_of(Path(path))
    with pytest.raises(KdxError, match=r"dataset.unlabelled=\S+found: only a stage that has a guide learns"):
        settings_of("stage=teacher", f"dataset.unlabelled={folder}")
    assert settings_of("kd=none", f"dataset.unlabelled={folder}").unlabelled is not None
