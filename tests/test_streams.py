"""Standard streams that are closed, full, unread or of few characters; signals to a command that trains nothing."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdx.signals import Interrupted, interruptible
from tests.conftest import TINY

ANSWER = """
from kdx.command import Command, run_command
run_command(Command("usage", lambda words: "\\u00e9\\udce9 " * 9000, {}, ()))
"""
SIGNALLED = """
import os, sys, tempfile
from pathlib import Path
from kdx.command import Command, run_command
from kdx.files import write_atomic
number = int(sys.argv.pop())
def work(words):
    def signals(descriptor):
        for _ in range(2):  # a terminal and a shell may send the same request each
            os.kill(os.getpid(), number)
    with tempfile.TemporaryDirectory(dir="."):
        os.fsync = signals
        write_atomic(Path("result"), b"x")
    return "done"
run_command(Command("usage", work, {}, ()))
"""


def shell(streams: str, *arguments: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python with a shell's redirections; what is not redirected is captured."""
    words = ["bash", "-c", f'"$0" "$@" {streams}', sys.executable, *arguments]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(
    ("streams", "code", "told"),
    [
        (">&-", 2, "error: standard output: is closed; the answer is not written\n"),
        (">/dev/full", 2, "error: standard output: No space left on device; the answer is not written\n"),
        (">&- 2>&-", 2, ""),
        (">/dev/full 2>/dev/full <&-", 2, ""),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        ("| head -n 0; exit ${PIPESTATUS[0]}", 141, ""),
    ],
)
def test_an_answer_that_cannot_be_written_is_one_line(
    streams: str, code: int, told: str, tmp_path: Path, kdx_environment
) -> None:
    """Of a small command; they all share this."""
    done = shell(streams, "-c", ANSWER, folder=tmp_path, environment=kdx_environment)
    assert (done.returncode, done.stderr) == (code, told)


def test_entry_points_end_likewise(tmp_path: Path, kdx_environment) -> None:
    for arguments in ("kdx.run --help", "kdx.report --help", "kdx.data --help"):
        done = shell(">/dev/full", "-m", *arguments.split(), folder=tmp_path, environment=kdx_environment)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr, arguments
        done = shell("2>&-", "-m", arguments.split()[0], "--nix", folder=tmp_path, environment=kdx_environment)
        assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_characters_that_a_terminal_does_not_know_are_escaped(tmp_path: Path, kdx_environment) -> None:
    for own in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}):
        done = shell("", "-c", ANSWER, folder=tmp_path, environment=kdx_environment | own)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(r"\xe9\udce9 ")


@pytest.mark.parametrize("streams", [">&- 2>&- <&-", ">/dev/full 2>/dev/full"])
def test_a_training_needs_nobody_who_reads(streams: str, tmp_path: Path, kdx_environment) -> None:
    arguments = ["-m", "kdx.run", *TINY, "stage=teacher"]
    done = shell(streams, *arguments, folder=tmp_path, environment=kdx_environment)
    assert done.returncode == 0
    (run_log,) = tmp_path.rglob("run.log")
    assert "test acc" in run_log.read_text() and "Traceback" not in run_log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_ends_a_command_with_one_line_and_nothing_half_written(
    number: signal.Signals, tmp_path: Path, kdx_environment
) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(int(number))]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, and so inherited, under `pytest &`
    try:
        done = subprocess.run(command, cwd=tmp_path, env=kdx_environment, capture_output=True, text=True, timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"stopped by {number.name}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_import_is_finished_before_a_signal_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy, torch and matplotlib answer what is raised while they are set up with errors of their own."""
    (tmp_path / "slow_to_import.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(0.2)\n"
        "except BaseException as error:\n    raise ImportError('initialization failed') from error\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Interrupted, match="stopped by SIGTERM"), interruptible():
        import slow_to_import  # type: ignore[import-not-found]

        assert slow_to_import
        time.sleep(5)
