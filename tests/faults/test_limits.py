"""Files that claim too much, memory that runs out, index entries with a damaged part, owners that die in a row."""

import errno
import io
import json
import os
import resource
import signal
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdx.chain.chain import run_chain
from kdx.checkpoint import load_checkpoint, load_weights
from kdx.data.sources import load_medmnist
from kdx.errors import KdxError
from kdx.files import hash_file
from tests import tiny
from tests.conftest import settings_of
from tests.faults.test_kills import in_child
from tests.faults.toy import CHAIN, digest, leftovers, result_of, run_toy

MB = 2**20
ONE_LINE, SOMETHING_ELSE = 42, 43


def with_memory(megabytes: int, work: Callable[[], object], says: str) -> int:
    """ONE_LINE where, with so much more address space than now, `work` raises a one-line KdxError with `says`."""

    def limited() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + megabytes * MB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            work()
        except KdxError as error:
            os._exit(ONE_LINE if says in str(error) and "\n" not in str(error) else SOMETHING_ELSE)

    return in_child(limited)


def test_a_tensor_that_is_one_number_ten_billion_times(tmp_path: Path) -> None:
    """Stride 0: a file of a kilobyte whose tensor has 40 GB."""
    state = tiny.network(3, 1).state_dict() | {"head.bias": torch.zeros(1).expand(10**10)}
    torch.save({"format": 1, "model": state}, tmp_path / "a.pth")
    load = lambda: load_weights(tiny.network(3, 1), load_checkpoint(tmp_path / "a.pth"), tmp_path / "a.pth")  # noqa: E731
    assert with_memory(500, load, "do not fit the network") == ONE_LINE


def test_a_state_of_a_million_keys(tmp_path: Path) -> None:
    one = torch.zeros(1)
    torch.save({"format": 1, "model": {f"key{number}": one for number in range(10**6)}}, tmp_path / "a.pth")
    load = lambda: load_weights(tiny.network(3, 1), load_checkpoint(tmp_path / "a.pth"), tmp_path / "a.pth")  # noqa: E731
    assert with_memory(1500, load, "do not fit the network") == ONE_LINE


def test_an_array_whose_header_claims_a_terabyte(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "pneumoniamnist.npz", "w") as archive:
        archive.writestr("train_images.npy", header.getvalue() + b"few bytes")
    load = lambda: load_medmnist("pneumoniamnist", 28, str(tmp_path), download=False)  # noqa: E731
    assert with_memory(500, load, "is not a readable MedMNIST file") == ONE_LINE


def test_memory_that_really_runs_out_says_what_to_lower(tmp_path: Path) -> None:
    """The check with two images passes; eight images of 200 MB each do not fit."""
    run_toy(tmp_path / "warm")
    work = lambda: run_toy(tmp_path, "model.teacher=tests.tiny:hungry")  # noqa: E731
    assert with_memory(1000, work, "lower stage.teacher.batch_size") == ONE_LINE
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    assert not list(tmp_path.glob("outputs/index/*.json"))


def parts_of_the_teacher(folder: Path) -> dict[str, Path]:
    entries = {path: json.loads(path.read_text()) for path in folder.glob("outputs/index/*.json")}
    ((path, told),) = [(path, told) for path, told in entries.items() if told["role"] == "teacher"]
    checkpoint = path.parent.parent / told["checkpoint"]
    return {"entry": path, "checkpoint": checkpoint, "checksum": checkpoint.with_name(checkpoint.name + ".sha256")}


@pytest.mark.parametrize("damage", ["deleted", "flipped", "emptied"])
@pytest.mark.parametrize("part", ["entry", "checkpoint", "checksum"])
def test_finished_stage_with_a_damaged_part_is_trained_again_or_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str, damage: str
) -> None:
    run_toy(tmp_path)
    expected = result_of(tmp_path)
    path = parts_of_the_teacher(tmp_path)[part]
    if damage == "deleted":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flipped" else b"")
    settings = replace(settings_of(*CHAIN, "stage.deliver=teacher"), output_dir=str(tmp_path / "outputs"))
    run_chain(settings, tmp_path / "again" / "run")
    told = json.loads((tmp_path / "again" / "run" / "summary.json").read_text())["teacher"]
    harmless = part == "checksum" and damage != "flipped"  # the index has the hash as well
    assert told["status"] == ("reused" if harmless else "trained")
    assert damage == "deleted" or path.name in caplog.text
    model = load_checkpoint(tmp_path / "again" / "run" / told["checkpoint"])["model"]
    assert digest(model) == expected["teacher"]["best"][2]
    whole = parts_of_the_teacher(tmp_path)  # filed anew, so that a third run reuses it
    assert hash_file(whole["checkpoint"]) == json.loads(whole["entry"].read_text())["sha256"]


def test_every_flipped_bit_of_an_entry_is_noticed(tmp_path: Path) -> None:
    """A digit of a stored accuracy is JSON whatever it is: only a hash of the whole tells."""
    from kdx.chain.index import FinishedStage, StageIndex

    index = StageIndex(tmp_path)
    (tmp_path / "x.pth").touch()
    stage = FinishedStage("f" * 16, "teacher", "net", "data", "d", 2, "x.pth", "0", 1, {"accuracy": 95.5}, {}, 1.0, "t")
    index.add(stage)
    path = index.folder / f"{'f' * 16}.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            found = index.find("f" * 16)
            assert found is None or found == stage, (position, bit)  # blanks may be other blanks
            for aside in index.folder.glob("*.damaged"):
                aside.unlink()
    path.write_bytes(whole)
    assert index.find("f" * 16) == stage


def at_once(count: int, work: Callable[[int], None]) -> list[int]:
    """Exit codes of `count` processes that do `work` with their numbers side by side."""
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(number)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.mark.filterwarnings("ignore:flock not supported on this filesystem")
def test_disk_without_flock_still_trains_a_stage_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_toy(tmp_path / "clean")
    settings = replace(settings_of(*CHAIN), output_dir=str(tmp_path / "outputs"))

    def missing(*given: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", missing)
    assert at_once(2, lambda number: run_chain(settings, tmp_path / str(number) / "run")) == [0, 0]
    (tested,) = tmp_path.glob("[01]/run/student/test_metrics.json")
    (best,) = (tested.parent / "checkpoints").glob("best_acc_*.pth")
    assert digest(load_checkpoint(best)["model"]) == result_of(tmp_path / "clean")["student"]["best"][2]


def test_lock_that_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(KdxError, match="cannot lock .*: No locks available; choose another output_dir"):
        run_toy(tmp_path)


def test_two_owners_of_a_stage_die_and_the_next_ends_it(tmp_path: Path) -> None:
    """Six contend for one teacher; the first two who save an epoch of it are killed."""
    run_toy(tmp_path / "clean")
    expected = result_of(tmp_path / "clean")
    settings = replace(settings_of(*CHAIN), output_dir=str(tmp_path / "outputs"))

    def contend(number: int) -> None:
        import sys

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event == "os.rename" and str(arguments[1]).endswith("latest.pth"):
                for victim in ("first", "second"):
                    try:
                        os.mkdir(tmp_path / victim)
                    except FileExistsError:
                        continue
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        run_chain(settings, tmp_path / str(number) / "run")

    codes = at_once(6, contend)
    assert sorted(codes) == [-9, -9, 0, 0, 0, 0]
    assert not leftovers(tmp_path / "outputs")
    for role in ("teacher", "student"):
        finished = [path for path in tmp_path.glob(f"[0-5]/run/{role}/test_metrics.json")]
        assert len(finished) == 1, f"{role} was finished {len(finished)} times"
        (best,) = (finished[0].parent / "checkpoints").glob("best_acc_*.pth")
        assert digest(load_checkpoint(best)["model"]) == expected[role]["best"][2]
