"""SIGKILL at file-system events (`--stride 1`: at each), and at random instants: started again, the chain ends with the same bits."""

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdx import files
from tests.faults.toy import leftovers, result_of, run_toy

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link")


def in_child(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Run `work` in a fork of this process; its exit code, negative for the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            work()
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def killed_at(event_number: int, folder: Path) -> Callable[[], None]:
    """The toy chain that kills itself at the given file-system event below its folder."""

    def work() -> None:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in EVENTS and str(arguments[0]).startswith(str(folder)):
                seen += 1
                if seen == event_number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        run_toy(folder)

    return work


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a chain that nothing happened to. Also imports, in this process, all that the forks need."""
    folder = tmp_path_factory.mktemp("clean")
    run_toy(folder)
    assert not leftovers(folder)
    return result_of(folder)


@pytest.mark.parametrize("half", [0, 1])  # for two processors
def test_killed_at_file_system_events(
    tmp_path: Path, clean: dict[str, Any], half: int, pytestconfig: pytest.Config
) -> None:
    stride = pytestconfig.getoption("--stride")
    for event in itertools.count(1 + half * stride, 2 * stride):
        folder = tmp_path / str(event)
        code = in_child(killed_at(event, folder))
        if code == 0:
            break  # fewer events than that: the chain came to its end
        assert code == -signal.SIGKILL
        assert in_child(lambda folder=folder: run_toy(folder)) == 0, f"cannot go on after event {event}"
        assert result_of(folder) == clean, f"other bits after event {event}"
        assert not leftovers(folder), f"event {event}"
    assert event > 100
    print(f"\nkilled at file-system events up to {event - 1}, {2 * stride} apart, bit-identical each time")


def test_killed_at_random_instants(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    whole = tmp_path / "whole"
    longer = ["epochs=6", "checkpoint_every_steps=2"]
    began = time.monotonic()
    assert in_child(lambda: run_toy(whole, *longer)) == 0
    duration = time.monotonic() - began
    expected = result_of(whole)
    draw = random.Random(0)
    kills, rounds, wanted = 0, 0, pytestconfig.getoption("--kills")
    while kills < wanted:
        folder = tmp_path / f"round{rounds}"
        while in_child(lambda folder=folder: run_toy(folder, *longer), kill_after=draw.uniform(0, duration / 2)) < 0:
            kills += 1
            if kills >= wanted:
                break
        assert in_child(lambda folder=folder: run_toy(folder, *longer)) == 0
        assert result_of(folder) == expected
        assert not leftovers(folder)
        rounds += 1
    print(f"\n{kills} kills in {rounds} runs, bit-identical each time")


def write_in_place(path: Path, content: bytes) -> None:
    """The mutant: no temp file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        open(path.with_name(".mark"), "wb").close()  # an event between the halves
        file.write(content[len(content) // 2 :])


def test_the_enumeration_notices_writing_in_place(tmp_path: Path, clean: dict[str, Any], monkeypatch) -> None:
    """The suite's teeth: with this mutant some event must leave what cannot be gone on from, or other bits."""
    for module in ("files", "epoch_log"):
        monkeypatch.setattr(f"kdx.{module}.write_atomic", write_in_place)
    assert files.write_atomic is write_in_place
    for event in range(1, 60):
        folder = tmp_path / str(event)
        assert in_child(killed_at(event, folder)) == -signal.SIGKILL
        if in_child(lambda folder=folder: run_toy(folder)) != 0 or result_of(folder) != clean:
            return
    pytest.fail("nothing was noticed")
