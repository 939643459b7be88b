"""Full disks, failing disks, read-only folders, crowded folders, odd paths."""

import errno
import json
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kdx import files
from kdx.chain.index import FinishedStage, StageIndex, own_folder
from kdx.checkpoint import load_checkpoint, save_checkpoint
from kdx.errors import BusyError, KdxError
from kdx.files import write_atomic
from tests.conftest import settings_of
from tests.faults.test_kills import in_child
from tests.faults.toy import leftovers, result_of, run_toy
from tests.training import make_training


class FailingCall:
    """Stands for a function of `os` and fails at its k-th call with an errno."""

    def __init__(self, function: Callable[..., Any], k: int, number: int) -> None:
        self.function, self.left, self.number = function, k, number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(self.number, os.strerror(self.number))
        return self.function(*arguments, **named)


@pytest.mark.parametrize(("name", "number"), [("fsync", errno.ENOSPC), ("replace", errno.EIO), ("fdopen", errno.EIO)])
def test_failure_of_every_write_is_one_line_and_is_gone_on_from(
    tmp_path: Path, monkeypatch, name: str, number: int
) -> None:
    """For every third k, or fifth: the k-th call fails; what was good stays good, no temp file is left, and the run can go on."""
    clean = tmp_path / "clean"
    run_toy(clean)
    expected = result_of(clean)
    k = 0
    while True:
        k += 5 if name == "fsync" else 3  # odd: a write has two fsyncs, a checkpoint two writes
        folder = tmp_path / str(k)
        with monkeypatch.context() as patch:
            failing = FailingCall(getattr(os, name), k, number)
            patch.setattr(files.os, name, failing)
            try:
                run_toy(folder)
            except KdxError as error:
                assert os.strerror(number) in str(error) and "\n" not in str(error)
            if failing.left > 0:
                break
        assert not leftovers(folder) or all(path.suffix == ".attempt" for path in leftovers(folder))
        for path in folder.rglob("*.pth"):
            load_checkpoint(path)
        run_toy(folder)
        assert result_of(folder) == expected, f"call {k}"
    assert k > 25


def test_order_of_an_atomic_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write, flush, fsync of the file, replace, fsync of the folder: kill tests cannot show a missing fsync."""
    order: list[str] = []

    def spy(name: str) -> None:
        function = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            what = name
            if name == "fsync":
                what += " folder" if stat.S_ISDIR(os.fstat(arguments[0]).st_mode) else " file"
            order.append(what)
            return function(*arguments, **named)

        monkeypatch.setattr(files.os, name, call)

    for name in ("fsync", "replace"):
        spy(name)
    write_atomic(tmp_path / "x", b"1")
    assert order == ["fsync file", "replace", "fsync folder"]
    order.clear()
    save_checkpoint(tmp_path / "x.pth", {"model": {}})
    assert order == ["fsync file", "replace", "fsync folder"] * 2


def test_full_disk_says_so(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stops a write as a full disk does; torch.save would speak of an unexpected position."""
    make_training(tmp_path, epochs=1).fit()

    def work() -> None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        trainer = make_training(tmp_path, epochs=2)
        trainer.resume(tmp_path)
        try:
            trainer.fit()
        except KdxError as error:
            assert "cannot write" in str(error) and "File too large" in str(error)
            os._exit(42)

    assert in_child(work) == 42
    assert load_checkpoint(tmp_path / "latest.pth")["epoch"] == 1
    assert not leftovers(tmp_path)


def test_output_folder_that_is_a_file_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("no folder")
    with pytest.raises(KdxError, match="cannot make the folder .*outputs.*; choose another output_dir"):
        run_toy(tmp_path)
    assert not list(tmp_path.rglob("*.pth"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_file_system_that_fills_up_while_training(small_disk: Path, tmp_path: Path) -> None:
    """One line, the last good state intact; with room again the run ends like one that had it all along."""
    run_toy(tmp_path / "clean")
    (small_disk / "filler").write_bytes(b"x" * 190_000)
    with pytest.raises(KdxError, match="cannot write .*: No space left on device") as error:
        run_toy(small_disk)
    assert "\n" not in str(error.value)
    for path in small_disk.rglob("*.pth"):
        load_checkpoint(path)
    (small_disk / "filler").unlink()
    run_toy(small_disk)
    assert result_of(small_disk) == result_of(tmp_path / "clean") and not leftovers(small_disk)


@pytest.mark.skipif(os.getuid() != 0, reason="modes are tested by becoming somebody else, which needs root")
def test_read_only_output_folder_is_told_before_training(tmp_path: Path) -> None:
    run_toy(tmp_path)  # imports what somebody else may not be able to read
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)

        def work() -> None:
            os.setuid(65534)
            try:
                run_toy(folder)
            except KdxError as error:
                os._exit(42 if str(folder) in str(error) and "\n" not in str(error) else 1)

        assert in_child(work) == 42
        assert list(folder.iterdir()) == []


def test_too_little_space_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(KdxError, match="needs about .* MB for checkpoints, the disk has 0.0 MB free"):
        run_toy(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**7))
    with pytest.raises(KdxError, match=r"for checkpoints and kd.cache_logits \(.* MB\), the disk has 10.0 MB"):
        run_toy(tmp_path, "kd.cache_logits=true", "epochs=100000")  # a view an epoch
    assert not list(tmp_path.rglob("*.pth"))


def test_second_run_in_one_folder_is_refused_at_once(tmp_path: Path) -> None:
    with (
        own_folder(tmp_path),
        pytest.raises(BusyError, match="another run is at work in this folder"),
        own_folder(tmp_path),
    ):
        pass


def test_finished_folder_is_not_trained_in_again(tmp_path: Path) -> None:
    run_toy(tmp_path)
    before = result_of(tmp_path)
    run_toy(tmp_path)  # the same command: everything is reused
    with pytest.raises(KdxError, match="holds a finished run"):
        run_toy(tmp_path, "seed=5")
    assert result_of(tmp_path) == before


ODD_NAMES = ["with space", "a=b,c", "ünï 'q'", "$HOME %s", "-leading", "new\nline", "x" * 200]


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
def test_odd_folder_names(tmp_path: Path, name: str) -> None:
    run_toy(tmp_path / name)
    assert result_of(tmp_path / name)["student"]["rows"]


def test_symlinked_outputs_are_followed_and_links_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "outputs").symlink_to(tmp_path / "elsewhere")
    run_toy(tmp_path)
    assert list((tmp_path / "elsewhere" / "index").glob("*.json"))
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    (tmp_path / "link.json").symlink_to(precious)
    write_atomic(tmp_path / "link.json", b"ours")
    assert precious.read_text() == "mine" and (tmp_path / "link.json").read_text() == "ours"


def entry(number: int, finished: str) -> FinishedStage:
    return FinishedStage(
        f"{number:016x}", "teacher", "net", "data", "digest", 2, "x.pth", "0", 1, {}, {}, 1.0, finished
    )


def test_latest_does_not_trust_file_times(tmp_path: Path) -> None:
    index = StageIndex(tmp_path)
    (tmp_path / "x.pth").touch()
    for number, finished in enumerate(["2026-01-02", "2026-01-03", "2026-01-01"]):
        index.add(entry(number, finished))
        os.utime(index.folder / f"{number:016x}.json", (number, number))  # the oldest entry has the newest time
    found = index.newest_first(role="teacher", network="net", data_digest="digest", num_classes=2)
    assert [stage.finished for stage in found] == ["2026-01-03", "2026-01-02", "2026-01-01"]


def test_ten_thousand_entries_do_not_slow_a_look_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in files opened, not in seconds: one."""
    index = StageIndex(tmp_path)
    (tmp_path / "x.pth").touch()
    index.add(entry(0, "2026-01-01"))
    text = (index.folder / f"{0:016x}.json").read_text()
    for number in range(1, 10_000):
        (index.folder / f"{number:016x}.json").write_text(text)
    reads = 0
    read_json = files.read_json

    def counting(path: Path) -> Any:
        nonlocal reads
        reads += 1
        return read_json(path)

    monkeypatch.setattr("kdx.chain.index.read_json", counting)
    assert index.find(f"{77:016x}") is not None and reads == 1


def test_out_of_memory_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("kdx.training.trainer.Trainer.train_step", fail)
    with pytest.raises(KdxError, match="teacher: out of memory with batch_size=8; lower stage.teacher.batch_size"):
        run_toy(tmp_path)


def test_training_from_local_data_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a socket was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    run_toy(tmp_path)


def test_thirty_runs_leak_neither_files_nor_threads_nor_memory(tmp_path: Path) -> None:
    import threading

    def used_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    for number in range(8):
        run_toy(tmp_path / f"warm{number}", "epochs=1")
    before, memory = (len(os.listdir("/proc/self/fd")), threading.active_count()), used_mb()
    for number in range(30):
        run_toy(tmp_path / str(number), "epochs=1")
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert used_mb() - memory < 15  # half a megabyte a run would be a leak of the networks


def test_secrets_of_the_environment_are_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "canary-1234")
    settings = settings_of("data_dir=${oc.env:SECRET_TOKEN}")
    assert settings.stages
    run_toy(tmp_path, "data_dir=${oc.env:SECRET_TOKEN}")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"canary-1234" not in path.read_bytes(), path


def test_guide_with_a_target_inside_never_runs_it(tmp_path: Path) -> None:
    """What is read from an artefact is data: a `_target_` in a checkpoint's meta is never instantiated."""
    run_toy(tmp_path)
    (best,) = (tmp_path / "run" / "teacher" / "checkpoints").glob("best_acc_*.pth")
    content = torch.load(best, weights_only=True)
    canary = tmp_path / "canary"
    content["meta"] |= {
        "_target_": "os.mkdir",
        "path": str(canary),
        "config": {"_target_": "os.mkdir", "path": str(canary)},
    }
    save_checkpoint(tmp_path / "evil.pth", content)
    run_toy(tmp_path / "second", f"stage.teacher.checkpoint='{tmp_path / 'evil.pth'}'")
    assert not canary.exists()
    assert json.loads((tmp_path / "second" / "run" / "summary.json").read_text())["teacher"]["status"] == "loaded"
