"""Ranks that torchrun starts: one run, one voice, one end."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
import torch._dynamo  # noqa: F401  imported here once, and not by every rank's process
import torchmetrics  # noqa: F401  likewise

import kdx.search
from kdx.data.dataset import Dataset
from kdx.errors import KdxError
from kdx.run import main
from tests import tiny
from tests.conftest import TINY, until, weights_of

STAGE = [*TINY, "stage=teacher", "optimizer=sgd", "visualize.samples=0"]


def _rank(rank: int, port: int, folder: Path, environment: dict[str, str], arguments: Sequence[str]) -> None:
    os.setsid()
    os.dup2(os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # not pytest's
    os.chdir(folder)
    os.environ |= environment | {"RANK": str(rank), "MASTER_PORT": str(port)}
    sys.argv = ["kdx", *arguments]
    main()


@contextmanager
def ranks(folder: Path, *arguments: str, world: int = 2, **environment: str) -> Iterator[list[ForkProcess]]:
    """Ranks, each on a node of its own, as torchrun starts them."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    environment |= {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": str(world), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    environment |= {"MASTER_ADDR": "localhost"}
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_rank, args=(rank, port, folder, environment, arguments)) for rank in range(world)]
    for process in both:
        process.start()
    try:
        yield both
    finally:
        for process in both:
            process.kill()
            process.join()


def end_of(both: Sequence[ForkProcess], folder: Path) -> tuple[list[int | None], list[str]]:
    """The exit codes of the ranks, and what each said."""
    for process in both:
        process.join(60)
    return [process.exitcode for process in both], [(folder / f"{rank}.log").read_text() for rank in range(len(both))]


def test_two_ranks_are_one_run_and_equal_micro_batches(tmp_path: Path) -> None:
    run = [*STAGE, "stage.reuse=never", "model.teacher=kdx.thin:resnet8"]  # without dropout
    with ranks(tmp_path, *run, "sync_batchnorm=false", "output_dir=two") as both:
        codes, (said, nothing) = end_of(both, tmp_path)
    assert codes == [0, 0] and nothing == "" and said.count("teacher epoch 2/2") == 1, said
    with ranks(tmp_path, *run, "micro_batches=2", "output_dir=one", world=1) as alone:
        end_of(alone, tmp_path)
    (two,), (one,) = (list((tmp_path / name).rglob("latest.pth")) for name in ("two", "one"))
    assert two.parts[-3] == "teacher" and len(list((tmp_path / "two").rglob("run.log"))) == 1
    for name, weight in weights_of(one).items():
        assert "running" in name or weight.equal(weights_of(two)[name]), name


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["epochs=-1"], "error: epochs=-1: a whole number of at least 1 is needed"),
        (["devices=3"], "error: devices=3: torchrun started 2 processes: leave it out"),
        (
            ["--multirun", "seed=0,1"],
            "error: torchrun trains one run, by `torchrun ... -m kdx.run key=value`: leave it",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_told_once(line: list[str], told: str, tmp_path: Path) -> None:
    with ranks(tmp_path, *STAGE, *line) as both:
        codes, (said, nothing) = end_of(both, tmp_path)
    assert codes == [2, 2] and nothing == "" and said.startswith(told) and said.count("\n") == 1, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.log", "1.log"]


def data_of_rank() -> Dataset:
    return tiny.dataset(seed=int(os.environ["RANK"]))


def test_ranks_with_other_data_are_told(tmp_path: Path) -> None:
    with ranks(tmp_path, *STAGE, "dataset.source._target_=tests.test_torchrun.data_of_rank") as both:
        codes, (said, nothing) = end_of(both, tmp_path)
    assert codes == [2, 2] and nothing == ""
    assert "error: rank 1: dataset=tiny: other data than rank 0 has, on " in said.splitlines()[-1]


def test_a_killed_rank_and_a_signal_end_all_and_the_run_resumes(tmp_path: Path) -> None:
    line = [*STAGE, "model.teacher=tests.tiny:slow", "epochs=4", "hydra.run.dir=run"]
    gate = {"TINY_PIDS": str(tmp_path), "TINY_GATE": str(tmp_path / "gate")}
    with ranks(tmp_path, *line, **gate) as both:
        until(lambda: (tmp_path / "gate.reached").exists())
        os.kill(both[1].pid or 0, signal.SIGKILL)
        (tmp_path / "gate").touch()
        codes, (said, _) = end_of(both, tmp_path)
    assert codes == [2, -signal.SIGKILL]
    assert (
        said.splitlines()[-1].endswith("resume=true goes on from there") and "teacher: rank 1 is gone (killed" in said
    )
    for path in (tmp_path / "gate", tmp_path / "gate.reached"):
        path.unlink()
    with ranks(tmp_path, *line, "resume=true", **gate) as both:
        until(lambda: (tmp_path / "gate.reached").exists())
        for process in both:
            os.kill(process.pid or 0, signal.SIGTERM)
        (tmp_path / "gate").touch()
        codes, (said, nothing) = end_of(both, tmp_path)
    assert codes == [128 + signal.SIGTERM] * 2 and nothing == ""
    assert "to go on: torchrun ... -m kdx.run" in said and "resumed after epoch 1" in said, said


def test_what_each_process_would_do_for_itself_is_refused(
    tiny_run: Callable[..., object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(2 * ("SIZE" in name)))
    with pytest.raises(KdxError, match="leave torchrun out, and use devices"):
        tiny_run()
    for rank, told in (("0", "leave it out of a search, whose trials take devices=2"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(sys, "argv", ["search", "experiment=search_kd"])
        with pytest.raises(SystemExit) as end:
            kdx.search.main()
        assert end.value.code == 2 and capsys.readouterr().err.endswith(f"{told}\n" if told else "")
