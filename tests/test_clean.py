"""clean.sh frees what the dead left and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import REPO

SCRIPT = REPO / "scripts" / "clean.sh"


def clean(*arguments: object, answer: str = "") -> str:
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, input=answer).stdout


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Two runs in a folder with a blank in its name; one is alive in the tests that hold its lock."""
    for run in ("dead", "alive"):
        folder = tmp_path / "my outputs" / run / "teacher" / "checkpoints"
        folder.mkdir(parents=True)
        for name in (
            "latest.pth",
            "best_acc_95.23.pth",
            "epoch_0050.pth",
            "latest.pth.damaged",
            ".tmp-kdx-latest.pth-x",
        ):
            (folder / name).write_bytes(b"12345")
            if name.endswith(".pth"):
                (folder / f"{name}.sha256").write_text("hash")
        (tmp_path / "my outputs" / run / ".lock").touch()
    return tmp_path / "my outputs"


def names(outputs: Path, run: str) -> list[str]:
    return sorted(path.name for path in (outputs / run).rglob("*") if path.is_file())


def test_dry_run_changes_nothing_and_says_what_it_would(outputs: Path) -> None:
    before = names(outputs, "dead") + names(outputs, "alive")
    told = clean(outputs, "--dry-run", "--checkpoints")
    assert names(outputs, "dead") + names(outputs, "alive") == before
    assert "would remove 2 free locks" in told and ".lock" not in told  # a line for all: each stage leaves one
    assert "would remove" in told and "10 files, 38 bytes would be freed" in told


def test_living_runs_are_left_alone(outputs: Path) -> None:
    with FileLock(outputs / "alive" / ".lock"):
        told = clean(outputs, "--checkpoints")
        assert len(names(outputs, "alive")) == 9
    assert told.count("left alone, its run is alive") == 4 and "held by a living run" in told
    kept = ["best_acc_95.23.pth", "best_acc_95.23.pth.sha256", "latest.pth", "latest.pth.sha256"]
    assert names(outputs, "dead") == kept and "5 files, 19 bytes freed" in told


def test_without_the_flag_checkpoints_stay(outputs: Path) -> None:
    clean(outputs)
    left = names(outputs, "dead")
    assert "epoch_0050.pth" in left and ".tmp-kdx-latest.pth-x" not in left and ".lock" not in left


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no shared memory here")
def test_shared_memory_of_dead_processes_is_freed(outputs: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours, theirs = Path(f"/dev/shm/torch_{dead.pid}_1_0"), Path(f"/dev/shm/torch_{os.getpid()}_1_0")
    for segment in (ours, theirs):
        segment.write_bytes(b"123")
        os.utime(segment, (0, 0))
    try:
        clean(outputs)
        assert not ours.exists() and theirs.exists()
    finally:
        ours.unlink(missing_ok=True)
        theirs.unlink()


def test_unknown_option_and_folder_are_told(tmp_path: Path) -> None:
    for argument, text in (("--chekpoints", "unknown option"), (str(tmp_path / "nowhere"), "no such folder")):
        done = subprocess.run(["bash", str(SCRIPT), argument], capture_output=True, text=True)
        assert done.returncode == 2 and text in done.stderr


def test_page_cache_is_dropped_only_if_answered_yes(outputs: Path) -> None:
    told = clean(outputs, "--system", answer="n\n")
    assert "page cache dropped" not in told


def test_a_folder_above_may_be_called_checkpoints(tmp_path: Path) -> None:
    stage = tmp_path / "checkpoints" / "run" / "student"
    for name in ("checkpoints/epoch_0050.pth", "checkpoints/latest.pth", "logs/a_log.csv", "test_metrics.json"):
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_text("x")
    clean(tmp_path, "--checkpoints")
    left = sorted(path.name for path in stage.rglob("*") if path.is_file())
    assert left == ["a_log.csv", "latest.pth", "test_metrics.json"]


def test_cached_logits_go_when_asked(tmp_path: Path) -> None:
    kept = tmp_path / "index" / "logits" / "0123456789abcdef" / "epoch_0001.npy"
    kept.parent.mkdir(parents=True)
    kept.write_text("x")
    clean(tmp_path)
    assert kept.exists()
    clean(tmp_path, "--logits")
    assert not kept.exists()


def test_decoded_pictures_go_when_asked_but_not_while_they_are_written(tmp_path: Path) -> None:
    ours, written = (tmp_path / "cache" / f"{digit * 32}_8x10.u8" for digit in "ab")
    ours.parent.mkdir()
    names = [f"{ours.name}{suffix}" for suffix in ("", ".blake2b", ".damaged", ".lock")]
    names += [f"{written.name}.part", f"{written.name}.part.blake2b"]
    for name in (*names, "mine.u8"):
        (ours.parent / name).write_text("" if name.endswith(".lock") else "x")

    def left() -> set[str]:
        return {path.name for path in ours.parent.iterdir()} - {"mine.u8"}

    with FileLock(f"{written}.lock"):
        clean(tmp_path)
        assert left() == {*names, f"{written.name}.lock"} - {f"{ours.name}.lock"}  # a free lock always goes
        assert "a living run writes it" in clean(tmp_path, "--cache")
        assert left() == {f"{written.name}.part", f"{written.name}.part.blake2b", f"{written.name}.lock"}
    clean(tmp_path, "--cache")
    assert not left() and (ours.parent / "mine.u8").exists()


def test_files_of_others_stay(tmp_path: Path) -> None:
    """Also of a project that has no run in it, and the best checkpoint by any metric."""
    theirs = ("uv.lock", "checkpoints/model.pth", "checkpoints/epoch_last.pth", "checkpoints/best_auc_0.9876.pth")
    for name in (*theirs, "checkpoints/epoch_0050.pth"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x" if name != "uv.lock" else "")
    clean(tmp_path, "--checkpoints")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(theirs)


def test_called_inside_a_stage_it_sees_that_the_run_is_alive(outputs: Path) -> None:
    stage = outputs / "alive" / "teacher"
    before = names(outputs, "alive")
    with FileLock(outputs / "alive" / ".lock"):
        subprocess.run(["bash", str(SCRIPT), ".", "--checkpoints"], cwd=stage, capture_output=True, check=True)
    assert names(outputs, "alive") == before
