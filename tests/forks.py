"""A process that has imported torch and kdx once and runs every command line in a fork of itself.

`python -m tests.forks` reads a question a line, as JSON, and answers each with a line of JSON. pytest's own
process is no place to fork: other tests have started threads in it.
"""

import atexit
import faulthandler
import functools
import importlib
import json
import multiprocessing.forkserver
import multiprocessing.util
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdx.sweeps.processes import forkserver
from tests.conftest import REPO

SECONDS = 30.0  # a case that takes longer hangs; alone it takes about one
PATIENCE = 240.0  # the same for a command line of the caller's
MEMORY = 8 * 2**30  # beyond what the imports have mapped
NEEDED = ("kdx.run", "kdx.chain.chain", "torchvision.models", "sklearn.model_selection", "sklearn.datasets", "medmnist")
NEEDED += ("tests.tiny", "torch._dynamo", "torchmetrics.functional.classification", "matplotlib.pyplot", "pandas")


Done = subprocess.CompletedProcess


class Forks:
    """The other end of the process: asks it to run command lines, one after the other."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "TORCH_HOME": str(folder)}
        environment |= {"PYTHONWARNINGS": "", "TMPDIR": str(folder)}
        for name in ("KDX_DATA", "HYDRA_FULL_ERROR", "KDX_TRACEBACK"):
            environment.pop(name, None)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-m", "tests.forks"], cwd=folder, env=environment, **pipes)

    def run(self, arguments: list[str]) -> dict[str, Any]:
        """How `kdx <arguments>` ended in an empty folder: code, output, errors, left (files), seconds."""
        return self._answer({"arguments": arguments})

    def run_in(self, folder: Path, environment: Mapping[str, str], arguments: Sequence[str], module: str) -> Done:
        """How `python -m module <arguments>` ended in a folder of the caller's, with the environment as it stands."""
        question = {"arguments": arguments, "folder": str(folder), "environment": dict(environment), "module": module}
        told = self._answer(question)
        return Done(arguments, told["code"], told["output"], told["errors"])

    def _answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        self.process.communicate(timeout=20)  # closes its input, at which it ends


def kdx(folder: Path, environment: Mapping[str, str], *arguments: str, module: str = "kdx.run") -> Done:
    """`kdx <arguments>` in a fork of a process that has imported what it needs, where no signal is to reach it."""
    return _forks().run_in(folder, environment, arguments, module)


@functools.cache
def _forks() -> Forks:
    folder = tempfile.TemporaryDirectory(prefix="kdx-tests-")
    forks = Forks(Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(forks.end)  # before its folder goes
    return forks


def serve() -> None:
    for name in NEEDED:
        importlib.import_module(name)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    for line in sys.stdin:
        question = json.loads(line)
        around = Path(tempfile.mkdtemp())
        work = Path(question.get("folder", around / "around" / "work"))
        work.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        process = os.fork()
        if process == 0:
            _child(question, around, work, mapped + MEMORY)
        code = _end_of(process, started + (SECONDS if "folder" not in question else PATIENCE))
        output, errors = ((around / name).read_text(errors="replace") for name in ("output", "errors"))
        told = {"code": code, "output": output, "errors": errors, "seconds": time.monotonic() - started}
        if "folder" not in question:
            left = sorted(str(path.relative_to(work.parent)) for path in work.parent.rglob("*") if path != work)
            told["left"] = left + ([] if work.is_dir() else ["not even the folder that it was started in"])
        print(json.dumps(told), flush=True)
        shutil.rmtree(around, ignore_errors=True)


def _child(question: Mapping[str, Any], folder: Path, work: Path, memory: int) -> None:
    code = 1
    try:
        os.setsid()
        for name, descriptor in (("output", 1), ("errors", 2)):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
        faulthandler.register(signal.SIGUSR2)  # a case that hangs is asked where
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(work)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if "environment" in question:
            os.environ.clear()
            os.environ.update(question["environment"])
            sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        else:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        sys.argv = ["kdx", *question["arguments"]]
        if "--multirun" in sys.argv or question.get("module") == "kdx.search":
            _start_server_of_jobs()
        importlib.import_module(question.get("module", "kdx.run")).main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _start_server_of_jobs() -> None:
    """Start the process whose forks are a sweep's jobs as a fork of this one: a new one imports torch for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing.util, "spawnv_passfds", _fork_with_imports)
        forkserver()


def _fork_with_imports(path: bytes, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """What `python -c COMMAND` does, in a fork that has no files open but those that it is passed."""
    process = os.fork()
    if process == 0:
        kept = sorted({0, 1, 2, *passed})
        for one, following in zip(kept, [*kept[1:], 4096], strict=True):
            os.closerange(one + 1, following)
        multiprocessing.forkserver._forkserver.__init__()  # type: ignore[misc]  # this process asks for the server
        try:
            exec(arguments[-1])
        finally:
            os._exit(0)
    return process


def _end_of(process: int, deadline: float) -> int | str:
    """The exit code, minus the number of the signal that killed it, or `hang`."""
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGUSR2)
    time.sleep(0.5)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return "hang"


if __name__ == "__main__":
    serve()
