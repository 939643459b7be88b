"""What else may lie where kdx keeps its files: it is told and set aside, nothing of it is lost, the run goes on."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kdx.chain.index import own_folder
from kdx.files import TEMP_PREFIX, hash_path, read_hashes, set_aside, verify_hash, write_with_hash
from tests.faults.toy import result_of, run_toy


def folder_with_a_file(path: Path) -> None:
    if path.is_file():
        path.unlink()
    path.mkdir(parents=True)
    (path / "theirs").write_text("x")


def checkpoints(folder: Path) -> Path:
    return folder / "run" / "teacher" / "checkpoints"


def in_index(folder: Path, suffix: str) -> Path:
    """A file of the teacher in the index, whose entry is gone."""
    lock = min((folder / "outputs" / "index").glob("*.lock"), key=lambda path: path.stat().st_mtime_ns)
    return lock.with_suffix(suffix)


ODDITIES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], None], bool]] = {
    # what: where it lies, how it is made, whether the training that was done counts all the same
    "bytes as checksum": (lambda f: checkpoints(f) / "latest.pth.sha256", lambda p: p.write_bytes(b"\xff\x80\n"), True),
    "empty checksum": (lambda f: checkpoints(f) / "latest.pth.sha256", lambda p: p.write_bytes(b""), True),
    "folder as checksum": (lambda f: checkpoints(f) / "latest.pth.sha256", folder_with_a_file, True),
    "folder as best": (lambda f: checkpoints(f) / "best_acc_99.00.pth", folder_with_a_file, True),
    "folder as its checksum": (lambda f: checkpoints(f) / "best_acc_99.00.pth.sha256", folder_with_a_file, True),
    "folder as latest": (lambda f: checkpoints(f) / "latest.pth", folder_with_a_file, False),
    "folder as snapshot": (lambda f: checkpoints(f) / "epoch_0009.pth", folder_with_a_file, True),
    "folder as run's lock": (lambda f: f / "run" / ".lock", folder_with_a_file, True),
    "folder as stage's lock": (lambda f: in_index(f, ".lock"), folder_with_a_file, True),
    "folder as attempt": (lambda f: in_index(f, ".attempt"), folder_with_a_file, True),
    "folder as entry": (lambda f: in_index(f, ".json"), folder_with_a_file, True),
    "list as attempt": (lambda f: in_index(f, ".attempt"), lambda p: p.write_text("[1]"), True),
    "number as attempt's folder": (lambda f: in_index(f, ".attempt"), lambda p: p.write_text('{"folder": 5}'), True),
    "bytes as attempt": (lambda f: in_index(f, ".attempt"), lambda p: p.write_bytes(b"\xff\x00"), True),
    "dangling latest": (lambda f: checkpoints(f) / "latest.pth", lambda p: (p.unlink(), p.symlink_to("nix"))[1], False),
    "folder as leftover": (lambda f: checkpoints(f) / f"{TEMP_PREFIX}x", folder_with_a_file, True),
}
NOT_IN_THE_WAY = ("folder as leftover", "folder as its checksum", "folder as snapshot")


@pytest.mark.parametrize("what", ODDITIES)
def test_oddities_are_set_aside_and_the_run_goes_on(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run_toy(tmp_path)
    result = result_of(tmp_path)
    for path in (*tmp_path.glob("outputs/index/*.json"), tmp_path / "run" / "summary.json"):
        path.unlink()
    where, make, counts = ODDITIES[what]
    odd = where(tmp_path)
    make(odd)
    caplog.clear()
    run_toy(tmp_path)
    assert result_of(tmp_path) == result
    assert ("teacher: resumed after epoch 2" in caplog.text) == counts, caplog.text
    aside = [path for path in odd.parent.glob(f"{odd.name}.damaged*") if path.is_dir()]
    assert what in NOT_IN_THE_WAY or not odd.is_dir() and bool(aside) == what.startswith("folder")


def test_what_is_set_aside_replaces_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "latest.pth"
    for number in range(3):
        path.write_text(str(number))
        set_aside(path, "odd")
    set_aside(path, "gone")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "latest.pth.damaged": "0",
        "latest.pth.damaged-2": "1",
        "latest.pth.damaged-3": "2",
    }
    assert "gone" not in caplog.text


def test_a_crash_after_a_malformed_checksum_leaves_a_known_file(tmp_path: Path, monkeypatch) -> None:
    """The checksum of the new content is written first: the old content's must be in it."""
    path = tmp_path / "x"
    write_with_hash(path, b"old")
    hash_path(path).write_bytes(b"\x80")
    monkeypatch.setattr(os, "replace", dying_at_the_second(os.replace))
    with pytest.raises(KeyboardInterrupt):
        write_with_hash(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and verify_hash(path) == read_hashes(path)[1]


def dying_at_the_second(work: Callable[..., None]) -> Callable[..., None]:
    calls = 0

    def die(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        work(*arguments)

    return die


def test_a_run_above_others_removes_no_file_that_they_write(tmp_path: Path) -> None:
    """Its own leftovers go, also those in its stages' folders."""
    ours = [tmp_path / f"{TEMP_PREFIX}x", tmp_path / "teacher" / "logs" / f"{TEMP_PREFIX}x"]
    theirs = [tmp_path / "other" / "teacher" / f"{TEMP_PREFIX}x", tmp_path / "deep" / "er" / f"{TEMP_PREFIX}x"]
    for path in (*ours, *theirs):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "other" / ".lock").touch()
    (tmp_path / "deep" / "er" / ".hydra").mkdir()
    with own_folder(tmp_path):
        assert [path.exists() for path in (*ours, *theirs)] == [False, False, True, True]
