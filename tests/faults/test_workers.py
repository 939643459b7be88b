"""Data loader workers that die or outlive their parent, and workers inside the jobs of a sweep."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from PIL import Image

from kdx.data.decoding import decoded_batches, worker_errors
from kdx.errors import KdxError
from tests.conftest import TINY, Start, finish
from tests.faults.test_kills import in_child


class Images:
    """Images of one pixel; what is to happen at one of them happens in the worker."""

    shape = (1, 1, 1)

    def __init__(self, what: str, folder: Path) -> None:
        self.what, self.folder = what, folder

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 5 and self.what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 5 and self.what == "sleeps":
            (self.folder / "asleep").touch()
            time.sleep(30)
        return torch.full((1, 1, 1), index, dtype=torch.uint8)


ORDER = [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_killed_worker_is_one_clear_error(tmp_path: Path) -> None:
    expected = "num_workers=2: decoding stopped .*worker.*set num_workers=0"
    with pytest.raises(KdxError, match=expected) as error, worker_errors(2):
        list(decoded_batches(Images("killed", tmp_path), ORDER, 2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError(), FileNotFoundError("socket")])
def test_worker_killed_while_its_batch_is_fetched_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fetch(self: object) -> None:
        raise error

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._next_data", fetch)
    with pytest.raises(KdxError, match="num_workers=2: decoding stopped .*worker is gone.*set num_workers=0"):
        list(decoded_batches(Images("sound", tmp_path), ORDER, 2))


def test_worker_killed_while_a_step_computes_is_one_clear_error(tmp_path: Path) -> None:
    """torch raises from a signal handler: in the step, not where batches come from."""
    with pytest.raises(KdxError, match="num_workers=2: decoding stopped .*worker.*set num_workers=0"):
        with worker_errors(2):
            for _ in decoded_batches(Images("killed", tmp_path), ORDER, 2):
                time.sleep(1)  # until the signal comes


def test_hanging_worker_becomes_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdx.data.decoding.WORKER_TIMEOUT", 1)
    with pytest.raises(KdxError, match="num_workers=2: decoding stopped .*timed out"):
        list(decoded_batches(Images("sleeps", tmp_path), ORDER, 2))


def test_worker_that_outlives_its_killed_parent_holds_no_lock(tmp_path: Path) -> None:
    def work() -> None:
        lock = FileLock(tmp_path / "stage.lock")
        lock.acquire()
        list(decoded_batches(Images("sleeps", tmp_path), ORDER, 2))

    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    for _ in range(400):
        if (tmp_path / "asleep").exists():
            break
        time.sleep(0.05)
    with pytest.raises(Timeout):
        FileLock(tmp_path / "stage.lock").acquire(timeout=0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    FileLock(tmp_path / "stage.lock").acquire(timeout=1)  # the worker still sleeps
    assert in_child(lambda: None) == 0


def test_workers_inside_the_jobs_of_a_parallel_sweep(start: Start, tmp_path: Path, kdx_environment) -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 100, (8, 8, 3), dtype=np.uint8) + np.uint8(100 * number)
                Image.fromarray(pixels).save(tmp_path / "pictures" / split / name / f"{index}.png")
    data = ["dataset=imagefolder", "dataset.path=pictures", "dataset.in_memory_gb=0", "num_workers=2"]
    rest = [override for override in TINY if not override.startswith("dataset")]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    output = finish(
        start(tmp_path, kdx_environment, "--multirun", *data, *rest, "seed=1,2", "stage=teacher", *launcher)
    )
    assert "2 of 2 jobs finished" in output, output
