"""Asked to stop, a run finishes its step, saves, says how to go on and exits with 128 + signal."""

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import SLOW_TEACHER, Start, finish, same_weights, until

STAGE = [*SLOW_TEACHER, "stage=teacher"]


def stopped(start: Start, folder: Path, environment: dict[str, str], number: int) -> tuple[int, str]:
    """Send a signal inside the second epoch's third step, then let that step end."""
    run = start(folder, environment, *STAGE)
    until(lambda: (folder / "gate.reached").exists())
    os.kill(run.pid, number)
    (folder / "gate").touch()
    output = finish(run)
    return run.returncode, output


def test_sigterm_saves_inside_the_epoch_and_the_told_command_ends_it(
    start: Start,
    tmp_path: Path,
    kdx_environment,
    gate,
) -> None:
    code, output = stopped(start, tmp_path, kdx_environment | gate, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and "Traceback" not in output
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["status"] == "stopped"
    assert not list(tmp_path.rglob("index/*.json"))
    told = output.split("to go on: kdx ")[1].splitlines()[0]
    again = start(tmp_path, kdx_environment, *shlex.split(told))
    output = finish(again)
    assert again.returncode == 0 and "resumed after epoch 1, step 3 of" in output, output
    (tmp_path / "clean").mkdir()
    finish(start(tmp_path / "clean", kdx_environment, *STAGE))
    (clean,) = (tmp_path / "clean").rglob("best_acc_*.pth")
    (entry,) = tmp_path.glob("outputs/index/*.json")
    assert same_weights(tmp_path / "outputs" / json.loads(entry.read_text())["checkpoint"], clean)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_other_signals_likewise(start: Start, tmp_path: Path, kdx_environment, gate, number: int) -> None:
    code, output = stopped(start, tmp_path, kdx_environment | gate, number)
    assert code == 128 + number and "to go on: kdx " in output and "Traceback" not in output


def test_under_nohup_a_hangup_stays_ignored(start: Start, tmp_path: Path, kdx_environment, gate) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        code, output = stopped(start, tmp_path, kdx_environment | gate, signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert code == 0 and "test acc" in output, output


def test_asked_twice_it_ends_at_once(start: Start, tmp_path: Path, kdx_environment, gate) -> None:
    run = start(tmp_path, kdx_environment | gate, *STAGE)
    until(lambda: (tmp_path / "gate.reached").exists())
    os.kill(run.pid, signal.SIGTERM)
    time.sleep(1.2)  # sooner, it counts as the same wish
    os.kill(run.pid, signal.SIGINT)  # another signal: two equal ones in a row may be delivered as one
    finish(run)  # though the gate is still closed
    assert run.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT)
