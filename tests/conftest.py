"""What many tests share: composing a config, running a tiny chain in a folder of its own."""

import atexit
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from kdx.chain.chain import run_chain
from kdx.config.schema import Settings
from kdx.config.settings import read_settings
from kdx.config.stage_overrides import to_hydra
from kdx.config_loader import add_plugins

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored, and so inherited, under nohup
add_plugins()  # before Hydra looks for plugins, once a process
atexit.register(gc.unfreeze)
gc.freeze()  # what torch's import made: each of the chains' garbage collections would go through it, 0.2 s
REPO = Path(__file__).resolve().parent.parent
CONF = REPO / "conf"
TINY = [
    "dataset=digits",
    "dataset.name=tiny",
    "dataset.augment=crop",
    "dataset.source._target_=tests.tiny.dataset",
    "model.teacher=tests.tiny:wide",
    "model.assistant=tests.tiny:network",
    "model.student=tests.tiny:network",
    "epochs=2",
    "batch_size=8",
    "amp=off",
    "device=cpu",
    "threads=1",
    "optimizer.lr=0.01",
    "visualize.samples=0",
    "report=false",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=20, help="random SIGKILLs of the fault suite")
    # odd: events come in pairs, a file opened and renamed
    parser.addoption("--stride", type=int, default=7, help="kill at file-system events this many apart; 1 = at each")


def compose_config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(map(to_hydra, overrides)))


def write_experiment(configs: Path, name: str, lines: str) -> None:
    """A user's `experiment=name`, for `--config-dir configs`."""
    (configs / "experiment").mkdir(parents=True, exist_ok=True)
    (configs / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{lines}\n")


def settings_of(*overrides: str) -> Settings:
    return read_settings(compose_config(*TINY, *overrides))


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["model"]


def same_weights(first: Path, second: Path) -> bool:
    one, two = weights_of(first), weights_of(second)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


class TinyRun:
    """A finished tiny run: its folder and its summary."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary = json.loads((folder / "summary.json").read_text())

    def statuses(self) -> dict[str, str]:
        return {role: self.summary[role]["status"] for role in self.roles()}

    def roles(self) -> list[str]:
        return [step["role"] for step in self.summary["plan"]]

    def checkpoint(self, role: str) -> Path:
        return self.folder / self.summary[role]["checkpoint"]


@pytest.fixture
def tiny_run(tmp_path: Path) -> Callable[..., TinyRun]:
    """Run a tiny chain with overrides; runs of one test share an output folder."""
    count = 0

    def run(*overrides: str) -> TinyRun:
        nonlocal count
        count += 1
        folder = tmp_path / "outputs" / f"run{count}"
        folder.mkdir(parents=True)
        run_chain(settings_of(f"output_dir={tmp_path / 'outputs'}", *overrides), folder, overrides)
        return TinyRun(folder)

    return run


@pytest.fixture(autouse=True)
def _same_surroundings() -> Iterator[None]:
    """Chains set threads and determinism for the process: give the next test what this one found."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def kdx_environment() -> dict[str, str]:
    """The environment for a kdx process that must find the tests' tiny networks."""
    return {**os.environ, "PYTHONPATH": str(REPO), "PYTHONWARNINGS": ""}


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., str]:
    """A page as a headless browser has it once its script has run; skips where no browser is installed."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine (.ci/run installs it)")

    def opened(page: Path, fragment: str = "") -> str:
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
        command += ["--disable-background-networking", "--disable-component-update"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.resolve().as_uri() + fragment]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return opened


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start kdx processes; whatever the test leaves of them is killed."""
    processes: list[subprocess.Popen[str]] = []

    def begin(
        folder: Path, environment: dict[str, str], *arguments: str, module: str = "kdx.run"
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", module, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, and so inherited, under `pytest &`
        process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)  # type: ignore[call-overload]
        signal.signal(signal.SIGINT, before)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        if process.stdout is not None and not process.stdout.closed:
            process.communicate()


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    return output


def until(what: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for a condition, and fail if it does not come true."""
    for _ in range(int(seconds / 0.05)):
        if what():
            return
        time.sleep(0.05)
    pytest.fail("waited in vain")


SLOW_TEACHER = [override for override in TINY if not override.startswith("model.teacher")]
SLOW_TEACHER += ["model.teacher=tests.tiny:slow", "epochs=4"]


@pytest.fixture
def gate(tmp_path: Path) -> dict[str, str]:
    """With this environment a slow network waits in its second epoch until `tmp_path/gate` is there."""
    (tmp_path / "pids").mkdir()
    return {"TINY_PIDS": str(tmp_path / "pids"), "TINY_GATE": str(tmp_path / "gate")}
