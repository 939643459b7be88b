"""A user's folder: what is data, what is told, and what a run says of its splits before it trains."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdx.chain.chain import run_chain
from kdx.config.schema import Settings
from kdx.config.settings import read_settings
from kdx.data.dataset import Dataset, Split, from_arrays
from kdx.data.description import describe, log_description, notes_of, oddities
from kdx.data.folders import find_classes, list_split, pictures_below
from kdx.data.imagefolder import load_imagefolder
from kdx.deploy.load import Card, load_model, picture_for
from kdx.deploy.run_loader import load_data, load_stage
from kdx.errors import KdxError
from kdx.predict import predict
from tests import tiny
from tests.conftest import TINY, compose_config


def write_pictures(folder: Path, count: int, first: int = 0, suffix: str = ".png") -> None:
    """Pictures of 8x6 pixels, each different from all others of other folders and numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        draw = np.random.default_rng([number, *folder.name.encode(), *folder.parent.name.encode()])
        Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(folder / f"{number:03d}{suffix}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 10), ("test", 3)):
        for name in ("cat", "dog"):
            write_pictures(tmp_path / "set" / split / name, count)
    return tmp_path / "set"


def load(root: Path, white: float | None = None, gb: float = 1.0) -> Dataset:
    return load_imagefolder(str(root), None, gb, 0, white)


def notes(root: Path) -> str:
    return "\n".join(notes_of(load(root)))


def test_an_ordinary_folder_has_nothing_to_tell(root: Path) -> None:
    data = load(root)
    assert not data.notes and not list(oddities(data))
    assert describe(data) == [
        "train: 18 images of 6x8 colour: cat 9, dog 9",
        "val: 2 images of 6x8 colour: cat 1, dog 1",
        "test: 6 images of 6x8 colour: cat 3, dog 3",
    ]


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git"])
def test_folders_of_systems_are_no_classes(root: Path, name: str) -> None:
    before = load(root)
    for folder in (root, root / "train", root / "test", root / "train" / "cat"):
        write_pictures(folder / name, 1)
    for hidden in ("._000.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".000.png"):
        shutil.copy(root / "train" / "cat" / "000.png", root / "train" / "cat" / hidden)
    data = load(root)
    assert data.class_names == ("cat", "dog") and data.digest == before.digest and not data.notes


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Valid"])
def test_validation_by_any_usual_name_is_read(root: Path, name: str) -> None:
    for label in ("cat", "dog"):
        write_pictures(root / name / label, 4)
    data = load(root)
    assert (len(data.train), len(data.val)) == (20, 8) and not data.notes


def test_two_validation_folders_are_one_line(root: Path) -> None:
    for name in ("val", "valid"):
        write_pictures(root / name / "cat", 1)
    with pytest.raises(KdxError, match=r"val, .*valid: which of them is val\?"):
        load(root)


def test_folders_beside_the_splits_are_told(root: Path) -> None:
    write_pictures(root / "holdout" / "cat", 1)
    assert "not read: the folders holdout" in notes(root)


def test_a_folder_around_the_set_is_named(root: Path) -> None:
    with pytest.raises(KdxError, match=rf"train is missing: set dataset.path={root}"):
        load(root.parent)


def test_deeper_pictures_are_read_and_told(root: Path) -> None:
    write_pictures(root / "train" / "cat" / "monday" / "noon", 5)
    data = load(root)
    assert len(data.train) + len(data.val) == 25
    assert "train: 5 images lie deeper than in their class's folder" in "\n".join(data.notes)


def test_pictures_outside_of_classes_are_told(root: Path) -> None:
    write_pictures(root / "test", 2)
    assert "test: 2 images lie in no class's folder and are not read" in notes(root)


def test_unread_suffixes_are_counted(root: Path) -> None:
    for name in ("a.heic", "b.HEIC", "c.dcm"):
        (root / "train" / "dog" / name).touch()
    (root / "test" / "cat" / "notes").touch()
    told = notes(root)
    assert "not read in the class folders: 2 .heic, 1 .dcm, 1 (no suffix); read are .jpg" in told
    assert len(told.splitlines()) == 1


def test_upper_case_suffixes_are_read(root: Path) -> None:
    for path in (root / "train" / "cat").iterdir():
        path.rename(path.with_suffix(".PNG"))
    assert len(load(root).train) == 18


def test_a_class_without_a_readable_picture_is_named_before_decoding(root: Path) -> None:
    (root / "train" / "ape").mkdir()
    (root / "train" / "ape" / "a.heic").touch()
    (root / "train" / "cat" / "zz.png").write_text("broken")
    with pytest.raises(KdxError, match=r"no image of class ape in .*\(not read in the class folders: 1 .heic\)"):
        load(root)


def test_linked_folders_are_followed_but_not_in_circles(root: Path) -> None:
    (root / "train" / "dog").rename(root.parent / "dogs")
    (root / "train" / "dog").symlink_to(root.parent / "dogs")
    (root.parent / "dogs" / "again").symlink_to(root.parent / "dogs")
    data = load(root)
    assert len(data.train) == 18 and not data.notes


@pytest.mark.timeout(20)
def test_a_fifo_among_pictures_is_one_line(root: Path) -> None:
    os.mkfifo(root / "train" / "cat" / "zz.png")
    with pytest.raises(KdxError, match="zz.png: a FIFO"):
        load(root)


def test_pictures_that_two_splits_share_are_told(root: Path) -> None:
    write_pictures(root / "val" / "cat", 2)
    for number in (0, 1):
        shutil.copy(root / "train" / "cat" / f"{number:03d}.png", root / "test" / "dog" / f"copy{number}.png")
    shutil.copy(root / "val" / "cat" / "000.png", root / "test" / "cat" / "copy.png")
    told = notes(root)
    assert "2 images of test are in train, too" in told and "1 images of test are in val, too" in told


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_to_carve_is_our_own_line(root: Path, count: int) -> None:
    for path in sorted((root / "train" / "dog").iterdir())[count:]:
        path.unlink()
    if count == 1:
        with pytest.raises(KdxError, match="1 image of class dog: there is no val folder"):
            load(root)
    else:
        assert len(load(root).val) == 2
    write_pictures(root / "val" / "dog", 1)
    load(root)  # with a val folder nothing is carved


def test_many_classes_of_few_images_are_carved(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(12):
            write_pictures(tmp_path / split / f"class{number:02d}", 3)
    data = load(tmp_path)
    assert torch.bincount(data.val.labels).tolist() == [1] * 12
    assert describe(data)[0].endswith("12 classes of 2 to 2")


def test_absent_classes_are_warned_of(root: Path) -> None:
    shutil.rmtree(root / "test" / "dog")
    write_pictures(root / "val" / "dog", 3)
    told = list(oddities(load(root)))
    assert told == [
        "val holds no image of class cat: it says nothing of it in its scores",
        "test holds no image of class dog: it says nothing of it in its scores",
    ]


def test_absent_labels_are_warned_of() -> None:
    arrays = tiny.arrays("multi-label")
    arrays["test"][1][:, 1] = 0
    data = from_arrays("tiny", arrays, task="multi-label", class_names=["a", "b", "c"])
    assert describe(data)[0].startswith("train: 30 images of 8x8 grey: a ")
    assert list(oddities(data)) == ["test holds no image of label b: it says nothing of it in its scores"]


def test_imbalance_of_many_classes_is_told() -> None:
    labels = torch.tensor([*range(20), *[0] * 9])
    split = Split(torch.zeros(29, 1, 2, 2, dtype=torch.uint8), labels)
    names = tuple(f"c{number}" for number in range(20))
    told = describe(Dataset("x", "multi-class", names, split, split, split, "digest"))[0]
    assert told == "train: 29 images of 2x2 grey: 20 classes of 1 to 10 (1 : 10.0)"


def blank(root: Path, level: int) -> None:
    for path in (root / "train").rglob("*.png"):
        Image.new("RGB", (8, 6), (level, level, level)).save(path)


@pytest.mark.parametrize("gb", [0.0, 1.0])
def test_constant_and_dark_splits_are_warned_of(root: Path, gb: float) -> None:
    blank(root, 255)
    told = "\n".join(oddities(load(root, gb=gb)))
    assert "train: every pixel of every image has the value 255" in told and "val: every pixel" in told
    assert "test" not in told


def test_twelve_bits_taken_for_sixteen_are_told_and_put_right(root: Path) -> None:
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        levels = np.random.default_rng(number).integers(0, 4096, (6, 8)).astype(np.uint16)
        Image.fromarray(levels).save(path)
    data = load(root)
    assert "train: no pixel is brighter than 16 of 255 (12 bits in 16-bit files? set" in "\n".join(oddities(data))
    right = load(root, white=4095)
    assert not list(oddities(right)) and right.digest != data.digest and right.train.images.max() > 240


def test_a_new_meaning_of_files_is_another_digest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(root)
    monkeypatch.setattr("kdx.data.imagefolder.READER", 99)
    after = load(root)
    assert after.digest != before.digest and after.bytes_digest == before.bytes_digest


def settings(root: Path, *overrides: str) -> Settings:
    own = [word for word in TINY if not word.startswith(("dataset", "model.teacher", "num_workers"))]
    own += ["dataset=imagefolder", f"dataset.path={root}", "dataset.augment=[]", "num_workers=0"]
    config = compose_config(*own, "model.teacher=tests.tiny:network", "stage=teacher", *overrides)
    return read_settings(config)


def write_x_rays(root: Path) -> None:
    """16-bit pictures: dark ones of 1,000 to 21,000, light ones of 40,000 to 60,000."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 10)):
        for name, low in (("dark", 1000), ("light", 40000)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                levels = draw.integers(low, low + 20000, (8, 8)).astype(np.uint16)
                Image.fromarray(levels).save(folder / f"{number}.png")


def test_sixteen_bit_pictures_are_learnt_and_predicted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both classes came as white pictures, which nothing can tell apart."""
    write_x_rays(tmp_path / "set")
    chosen = settings(tmp_path / "set", "epochs=10", f"output_dir={tmp_path / 'outputs'}")
    with caplog.at_level(logging.INFO):
        accuracy = run_chain(chosen, tmp_path / "outputs" / "run")
    assert accuracy == 100
    assert "train: 36 images of 8x8 colour: dark 18, light 18" in caplog.text
    pictures = [str(tmp_path / "set" / "test" / name / "0.png") for name in ("dark", "light")]
    words = [str(tmp_path / "outputs" / "run"), *pictures]
    dark, light = map(
        str, predict(words, top=1, output=None, role="teacher", network="tests.tiny:network", trust=False)
    )
    assert ": dark " in dark and ": light " in light


def test_what_was_told_of_the_data_stays_in_the_summary(root: Path, tmp_path: Path, caplog) -> None:
    (root / "train" / "dog" / "a.heic").touch()
    chosen = settings(root, "epochs=1", f"output_dir={tmp_path / 'outputs'}")
    run_chain(chosen, tmp_path / "outputs" / "run")
    kept = json.loads((tmp_path / "outputs" / "run" / "summary.json").read_text())["data_notes"]
    assert len(kept) == 1 and "1 .heic" in kept[0]
    assert caplog.text.count("1 .heic") == 1


def test_description_is_logged_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    blank(root, 0)
    with caplog.at_level(logging.INFO):
        log_description(load(root))
    levels = [record.levelname for record in caplog.records]
    assert levels.count("INFO") == 3 and levels.count("WARNING") >= 2


def test_a_run_of_the_reader_before_finds_its_pictures(root: Path, tmp_path: Path) -> None:
    """kdx 0.1 gave a folder the digest of its files' bytes."""
    run_chain(settings(root, "epochs=1", f"output_dir={tmp_path / 'outputs'}"), tmp_path / "outputs" / "run")
    stage = load_stage(tmp_path / "outputs" / "run", "teacher", "tests.tiny:network")
    data = load_data(stage)
    assert data.digest == stage.meta["data_digest"]
    earlier = replace(stage, meta=stage.meta | {"data_digest": data.bytes_digest})
    assert load_data(earlier).digest == data.digest
    Image.new("RGB", (8, 6)).save(root / "test" / "dog" / "000.png")
    for before in (stage, earlier):
        with pytest.raises(KdxError, match="these are other images"):
            load_data(before)


def test_white_goes_with_the_network(root: Path, tmp_path: Path) -> None:
    """predict reads 12-bit pictures as the training did."""
    for path in root.rglob("*.png"):
        levels = np.full((6, 8), 3000 if path.parent.name == "cat" else 300, dtype=np.uint16)
        Image.fromarray(levels + int(path.stem)).save(path)
    chosen = settings(root, "epochs=10", "dataset.white=4095", f"output_dir={tmp_path / 'outputs'}")
    assert run_chain(chosen, tmp_path / "outputs" / "run") == 100
    model, card = load_model(tmp_path / "outputs" / "run", "teacher", "tests.tiny:network")
    picture = picture_for(root / "test" / "cat" / "000.png", card)
    assert picture.unique().tolist() == [round(3000 / 4095 * 255)]


def test_a_turned_picture_is_learnt_and_asked_about_as_it_stands(root: Path, tmp_path: Path) -> None:
    path = root / "train" / "cat" / "000.png"
    write_pictures(root / "val" / "cat", 1)
    upright = Image.open(path).copy()
    exif = Image.Exif()
    exif[274] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    learnt = load(root).train.images[0]
    assert torch.equal(learnt, torch.from_numpy(np.array(upright)).permute(2, 0, 1))
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize": None}
    card = Card("x", "small", 3, 2, ["cat", "dog"], "binary-class", "x", [3, 6, 8], preprocessing, "teacher", "f")
    assert torch.equal(picture_for(path, card)[0], learnt)


def test_names_with_control_characters_are_told_harmlessly(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "test"):
        (root / split / "dog").rename(root / split / "do\x1b[31mg")
    (root / "hold\x1bout").mkdir()
    with caplog.at_level(logging.INFO):
        log_description(load(root))
    assert "\x1b" not in caplog.text and "do\\x1b[31mg" in caplog.text and "hold\\x1bout" in caplog.text


def test_what_may_not_be_looked_at_is_told_where_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link into somebody's own folder: `Path.is_dir` raises for it."""
    pictures = sorted((root / "train").rglob("*.png"))
    locked = pictures[0].with_name("locked.png")
    locked.touch()
    stat = os.stat

    def refused(path: object, **options: Any) -> os.stat_result:
        if str(path).endswith("locked.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refused)
    assert pictures_below(root / "train")[0] == sorted([*pictures, locked])
    listing = list_split(root / "train", find_classes(root / "train"))
    assert locked in listing.paths
