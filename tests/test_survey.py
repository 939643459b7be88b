"""What `python -m kdx.data prepare imagefolder PATH` tells of a folder, and that a run sees the same."""

import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import kdx.data.__main__ as data
from kdx.data.description import describe
from kdx.data.imagefolder import load_imagefolder
from kdx.data.survey import look_at, room, sizes_text
from kdx.errors import KdxError


def folder(root: Path, test: int = 2) -> Path:
    for split, count in (("train", 8), ("test", test)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for number in range(count + 4 * label):
                path = root / split / name / f"{number}.png"
                Image.new("RGB", (12, 10), (number, 99 * label, split == "test")).save(path)
    return root


def told(*arguments: str) -> list[str]:
    words, keys = data.COMMAND.read(arguments)
    return [f"error: {text}" if isinstance(text, KdxError) else text for text in data.COMMAND.work(words, **keys)]


def test_a_sound_folder_is_told_as_a_run_would_see_it(tmp_path: Path) -> None:
    path = str(folder(tmp_path))
    lines = told("prepare", "imagefolder", path)
    assert lines[0] == f"imagefolder {path}: 2 classes"
    assert lines[1:4] == [
        "train: 18 images: cat 7, dog 11",
        "val: 2 images (a tenth of train: there is no folder val): cat 1, dog 1",
        "test: 8 images: cat 2, dog 6",
    ]
    assert lines[4:] == ["sizes: all 12x10, 0.0 MB decoded"]
    loaded = load_imagefolder(path, None, 1.0, 0)
    for line, seen in zip(lines[1:4], describe(loaded), strict=True):
        assert line.split(": ")[-1] == seen.split(": ")[-1] and line.split()[1] == seen.split()[1]
    assert told(f"prepare=imagefolder,{path}") == told("--prepare", "imagefolder", path) == lines


def test_what_is_wrong_is_told_file_by_file(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "train" / "cat" / "3.png").write_bytes((path / "train" / "cat" / "3.png").read_bytes()[:45])
    (path / "test" / "dog" / "0.png").write_text("no picture")
    (path / "test" / "dog" / "1.png").write_bytes((path / "train" / "dog" / "1.png").read_bytes())
    (path / "train" / "cat" / "notes.txt").touch()
    Image.new("RGB", (30, 40)).save(path / "train" / "cat" / "big.png")
    os.mkfifo(path / "train" / "cat" / "waits.png")
    lines = told("prepare", "imagefolder", str(path))
    assert "set dataset.size, e.g. 224" in lines[4] and "widths 12 to 30, heights 10 to 40" in lines[4]
    assert any("not read in the class folders: 1 .txt" in line for line in lines)
    assert any("1 images of test are in train, too" in line for line in lines)
    errors = [line for line in lines if line.startswith("error: ")]
    assert [Path(line.removeprefix("error: ").split(": ")[0]).name for line in errors[:-1]] == [
        "3.png",
        "waits.png",
        "0.png",
    ]
    assert errors[-1].endswith("3 of 30 files cannot be read: mend or remove them")


def test_a_class_that_a_split_lacks_is_told(tmp_path: Path) -> None:
    path = folder(tmp_path, test=0)
    assert "test: no image of cat" in told("prepare", "imagefolder", str(path))


def test_what_is_no_folder_of_pictures_is_one_line(tmp_path: Path) -> None:
    for arguments, line in (
        (["prepare", "imagefolder"], "prepare imagefolder: one folder is needed"),
        (["prepare", "imagefolder", "a", "b"], "prepare imagefolder: one folder is needed"),
        (["prepare", "imagefolder", str(tmp_path)], "train is missing"),
        (["verify", "digits", "imagefolder"], "imagefolder: no such data set"),
    ):
        with pytest.raises(KdxError, match=line):
            told(*arguments)


def test_many_broken_files_are_counted_and_the_first_named(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for number in range(30):
        (path / "train" / "cat" / f"broken{number:02}.png").touch()
    errors = [line for line in told("prepare", "imagefolder", str(path)) if line.startswith("error: ")]
    assert len(errors) == 21 and "30 of 58 files" in errors[-1]


def test_sizes_and_memory_in_words() -> None:
    assert room(1000, 1000, 1000) == "3.0 GB" and room(10, 100, 100) == "0.3 MB"
    assert sizes_text(Counter({(5, 6): 2})) == "sizes: all 5x6, 0.0 MB decoded"
    assert sizes_text({(5, 6): 2, (7, 8): 9}).startswith("sizes: 2, most often 7x8 (9), 5x6 (2); widths 5 to 7")
    assert look_at([]) == {}
