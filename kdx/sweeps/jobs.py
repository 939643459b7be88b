"""What a job of a sweep is, and how it ended. Imports no torch."""

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from kdx.config.schema import Settings
from kdx.errors import KdxError
from kdx.files import relative
from kdx.recipe import ACCURACY
from kdx.results import SUMMARY, Run, read_run
from kdx.signals import SIGNALS

ERROR_MARK = "[ERROR] error: "

GiveUp = Callable[[], str | None]  # why a job is to end now


@dataclass(frozen=True)
class Job:
    """One configuration of a sweep."""

    number: int
    overrides: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Program:
    """What a job's process runs: `main` with the arguments `base` and the job's own; `conf` holds the configs.

    `compose(conf, base, jobs)` returns the settings of several jobs' overrides.
    """

    main: Callable[[], None]
    conf: Path
    base: tuple[str, ...]
    compose: Callable[[Path, Sequence[str], Sequence[Sequence[str]]], list[Settings]]


@dataclass(frozen=True)
class JobEnd:
    """How a job ended: the value on validation of what it delivered, and of which score, or why it failed.

    `worker` is the machine and the process of a cluster's worker that ran it; None where the sweep itself did.
    """

    state: str
    seconds: float
    value: float | None = None
    reason: str | None = None
    selected_by: str = ACCURACY
    worker: str | None = None


def config_arguments(config: DictConfig) -> list[str]:
    """The part of the sweep's command line with which every job finds the same config files."""
    arguments = []
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line":
            arguments += ["--config-dir", str(source.path)]
    if config.hydra.searchpath:
        arguments.append("hydra.searchpath=" + json.dumps(list(config.hydra.searchpath)))
    return [*arguments, "--config-name", str(config.hydra.job.config_name)]


def finished_before(job: Job) -> JobEnd | None:
    """The end of a job that an earlier start of the same sweep folder finished."""
    run, _ = _run_of(job)
    if run.status != "finished" or not set(job.overrides) <= set(run.overrides):
        return None
    return end_of(job, 0, 0.0, Path.cwd())


def end_of(job: Job, exit_code: int, seconds: float, start: Path) -> JobEnd:
    """How a job ended, in words for somebody in the folder `start`."""
    run, unreadable = _run_of(job)
    if exit_code == 0 and run.status == "finished" and run.delivered is not None:
        stage = run.stages[run.delivered]
        return JobEnd("finished", round(seconds, 1), value=stage.selected, selected_by=stage.selected_by)
    return JobEnd("failed", round(seconds, 1), reason=unreadable or _reason(job, exit_code, start))


def _run_of(job: Job) -> tuple[Run, str | None]:
    """What a job's summary.json says; nothing where there is none, and why where it cannot be read."""
    try:
        return read_run(job.folder) if (job.folder / SUMMARY).exists() else Run(), None
    except KdxError as error:
        return Run(), str(error)


def _reason(job: Job, exit_code: int, start: Path) -> str:
    """Why a job failed, in one line: the signal that killed it, what its log says, or its exit code."""
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    if exit_code - 128 in list(SIGNALS):
        return f"stopped by {signal.Signals(exit_code - 128).name}"
    run_log = job.folder / "run.log"
    lines = run_log.read_text(errors="replace").splitlines() if run_log.exists() else []
    errors = [line.split(ERROR_MARK, 1)[1] for line in lines if ERROR_MARK in line]
    if errors:
        return errors[-1]
    return f"ended with exit code {exit_code} and without a result; see {relative(job.folder, start)}"
