"""Many jobs, each a process of its own: whatever one does, the others finish. Imports no torch itself."""

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kdx.config.schema import Settings
from kdx.errors import KdxError
from kdx.files import read_record, relative, write_json
from kdx.recipe import ACCURACY, DECIMALS
from kdx.results import SUMMARY, SWEEP, Run, SweepJob, read_run, read_sweep, write_sweep
from kdx.signals import SIGNALS, heard_signals, ignored, stop_ignoring

log = logging.getLogger(__name__)

ERROR_MARK = "[ERROR] error: "
STOP_SECONDS = 10.0  # between asking a job to stop and killing it, or telling what is waited for


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
    """How a job ended: the value on validation of what it delivered, and of which score, or why it failed."""

    state: str
    seconds: float
    value: float | None = None
    reason: str | None = None
    selected_by: str = ACCURACY


def config_arguments(config: DictConfig) -> list[str]:
    """The part of the sweep's command line with which every job finds the same config files."""
    arguments = []
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line":
            arguments += ["--config-dir", str(source.path)]
    if config.hydra.searchpath:
        arguments.append("hydra.searchpath=" + json.dumps(list(config.hydra.searchpath)))
    return [*arguments, "--config-name", str(config.hydra.job.config_name)]


def run_sweep(board: "Board", program: "Program", n_jobs: int, gpu_ids: Sequence[int]) -> None:
    """Run a board's jobs, `n_jobs` at a time; stages that several jobs share are trained first, each once.

    CPU threads are divided among the jobs that run at once, unless the jobs set `threads` themselves.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = n_jobs if n_jobs > 0 else len(gpu_ids) or cpus
    jobs = board.unfinished()
    at_once = max(1, min(at_once, len(jobs)))
    pool = Pool(program, gpu_ids, cpus)
    try:
        if at_once > 1:
            for wave in _shared_stages(pool, jobs, board.folder):
                log.info("training %d stage(s) that several jobs share", len(wave))
                pool.run(wave, min(at_once, len(wave)), lambda job, end: None)
        pool.run(jobs, at_once, board.note)
    finally:
        pool.stop()  # also on the way out after a signal


class Board:
    """What is known of every job, kept in sweep.json and told line by line.

    `KdxError` where the folder holds a sweep of other jobs.
    """

    def __init__(self, sweep_dir: Path, jobs: Sequence[Job]) -> None:
        self.folder = sweep_dir
        self.path = sweep_dir / SWEEP
        self.jobs = list(jobs)
        self.common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
        self.done: dict[int, JobEnd] = {}
        self.started = time.monotonic()
        known = read_sweep(sweep_dir)
        for job in jobs:
            listed = known.get(str(job.number))
            if listed is not None and listed.overrides != list(job.overrides):
                raise KdxError(
                    f"hydra.sweep.dir={sweep_dir}: holds a sweep with another job {job.number}; choose another"
                )
        self.earlier = {key: job for key, job in known.items() if int(key) not in {job.number for job in jobs}}
        for job in jobs:
            end = finished_before(job)
            if end is not None:
                self.done[job.number] = end
        self.before = len(self.done)
        if self.before:
            log.info("%d of %d jobs were finished before", self.before, len(jobs))
        self.write()

    def unfinished(self) -> list[Job]:
        return [job for job in self.jobs if job.number not in self.done]

    def ends(self) -> list[JobEnd]:
        return [self.done[job.number] for job in self.jobs]

    def note(self, job: Job, end: JobEnd) -> None:
        self.done[job.number] = end
        self.write()
        ended, total = len(self.done), len(self.jobs)
        spent = time.monotonic() - self.started
        left = spent / max(1, ended - self.before) * (total - ended)
        how = f"val {end.value:.{DECIMALS[end.selected_by]}f}" if end.value is not None else f"FAILED: {end.reason}"
        rest = f", about {_duration(left)} left" if ended < total else ""
        name = " ".join(override for override in job.overrides if override not in self.common)
        log.info("[%d/%d] job %d %s: %s (%.0f s%s)", ended, total, job.number, name, how, end.seconds, rest)

    def write(self) -> None:
        listed = dict(self.earlier)
        for job in self.jobs:
            end = self.done.get(job.number)
            ended = {} if end is None else asdict(end)
            listed[str(job.number)] = SweepJob(list(job.overrides), job.folder.name, **ended)
        write_sweep(self.folder, listed)


class Pool:
    """Starts jobs as forks of a server process that has imported torch once, and waits for their ends."""

    def __init__(self, program: Program, gpu_ids: Sequence[int], cpus: int) -> None:
        self.program, self.gpu_ids, self.cpus = program, list(gpu_ids), cpus
        self.context = forkserver()
        self.running: dict[int, tuple[ForkServerProcess, Job, float]] = {}

    def run(self, jobs: Sequence[Job], at_once: int, note: Callable[[Job, JobEnd], None]) -> None:
        """Run jobs in their order, `at_once` at a time; `note` is called at each end."""
        waiting = list(jobs)
        slots = list(range(at_once))
        slot_of: dict[int, int] = {}
        while waiting or self.running:
            while waiting and slots:
                slot = slots.pop(0)
                slot_of[self.start(waiting.pop(0), slot, at_once)] = slot
            for sentinel, job, end in self.ends(None):
                slots.append(slot_of.pop(sentinel))
                note(job, end)

    def ends(self, timeout: float | None) -> Iterator[tuple[int, Job, JobEnd]]:
        """Wait for a job to end, `timeout` seconds at most; what has ended, by the number that `start` gave."""
        for sentinel in wait(list(self.running), timeout):
            assert isinstance(sentinel, int)
            process, job, began = self.running.pop(sentinel)
            process.join()
            yield sentinel, job, _end_of(job, process.exitcode or 0, time.monotonic() - began)

    def end(self, sentinel: int) -> None:
        """Stop one job whose result is not wanted: it is killed if it takes long."""
        process, _, _ = self.running.pop(sentinel)
        process.terminate()
        process.join(STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()

    def stop(self) -> None:
        """Ask all jobs once to save and stop, and wait until they have; a second signal ends this process and them."""
        ending = [process for process, _, _ in self.running.values()]
        self.running.clear()
        for process in ending:
            process.terminate()
        for process in ending:
            process.join(STOP_SECONDS)
            if process.is_alive():
                log.info("waiting for %s to save; interrupt again to lose what is not saved", process.name)
                process.join()

    def start(self, job: Job, slot: int, at_once: int) -> int:
        """Start a job; a number that stands for it. Parallel ones write what they would show to console.log."""
        write_json(job.folder / "job.json", {"overrides": list(job.overrides)})  # keeps a refused job's folder, too
        arguments = [*self.program.base, *job.overrides, f"hydra.run.dir={_quoted(str(job.folder))}", "hydra.mode=RUN"]
        if at_once > 1 and not any(override.startswith("threads=") for override in job.overrides):
            arguments.append(f"threads={max(1, self.cpus // at_once)}")
        for key, value in (("resume", "true"), ("report", "false")):
            if not any(override.startswith(f"{key}=") for override in job.overrides):
                arguments.append(f"{key}={value}")
        environment = {}
        if self.gpu_ids:
            environment["CUDA_VISIBLE_DEVICES"] = str(self.gpu_ids[slot % len(self.gpu_ids)])
        console = job.folder / "console.log" if at_once > 1 else None
        work = (self.program.main, arguments, console, environment, heard_signals())
        process = self.context.Process(target=_work, args=work, name=f"job {job.number}")
        process.start()
        self.running[process.sentinel] = (process, job, time.monotonic())
        return process.sentinel


def forkserver() -> ForkServerContext:
    """Starts processes as forks of one that has imported torch once.

    That one ends with this process, whatever signal the group is sent: else nobody would wait for the jobs.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kdx.chain.chain", "kdx.cli", "torchmetrics.functional.classification"])
    with ignored(heard_signals()):
        ensure_running()
    return context


def _work(
    main: Callable[[], None],
    arguments: list[str],
    console: Path | None,
    environment: dict[str, str],
    heard: Sequence[signal.Signals],
) -> None:
    """The job's process: `kdx <arguments>`, ended when the sweep's process is gone."""
    end_with_parent(heard)
    os.environ.update(environment)
    if console is not None:
        descriptor = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    sys.argv = ["kdx", *arguments]
    main()


def end_with_parent(heard: Sequence[signal.Signals]) -> None:
    """Hear the signals that the sweep's process hears, and die with it: its pipe to us closes then."""
    stop_ignoring(heard)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _shared_stages(pool: Pool, jobs: Sequence[Job], sweep_dir: Path) -> list[list[Job]]:
    """Jobs that train what several of `jobs` need, guides first: one list for each place in the chain."""
    answer = sweep_dir / ".shared.json"
    answer.unlink(missing_ok=True)
    asked = (pool.program, [list(job.overrides) for job in jobs], answer, heard_signals())
    process = pool.context.Process(target=_scout, args=asked)
    process.start()
    process.join()
    try:
        record = read_record(answer, list[list[tuple[int, str, str]]])
    except KdxError:
        log.warning("could not tell in advance what the jobs share: each looks for itself")
        return []
    waves = []
    for depth, found in enumerate(record):
        wave = []
        for position, (number, role, own) in enumerate(found):
            overrides = (*jobs[number].overrides, f"stage.deliver={role}")
            wave.append(Job(1000 * depth + position, overrides, sweep_dir / "shared" / f"{role}-{own}"))
        waves.append(wave)
    answer.unlink()
    return waves


def _scout(program: Program, jobs: list[list[str]], answer: Path, heard: Sequence[signal.Signals]) -> None:
    """Write, for every place in the chain, [job number, role, fingerprint] of the unfinished stages that jobs share."""
    end_with_parent(heard)
    from kdx.chain.context import load_dataset, make_run_context
    from kdx.chain.index import StageIndex
    from kdx.chain.plan import make_plan

    logging.disable()  # what is wrong here, the jobs tell themselves
    data: dict[str, Any] = {}
    users: dict[tuple[int, str, str], list[int]] = {}
    for number, settings in enumerate(program.compose(program.conf, program.base, jobs)):
        key = repr((settings.source, settings.unlabelled))
        try:
            if key not in data:
                data[key] = load_dataset(settings)
            plan = make_plan(make_run_context(settings, data[key]), StageIndex(Path(settings.output_dir)))
        except KdxError:
            continue
        for depth, step in enumerate(plan):
            if step.action == "train" and settings.reuse != "never":
                users.setdefault((depth, step.role, step.fingerprint), []).append(number)
    depths = sorted({depth for (depth, _, _), numbers in users.items() if len(numbers) > 1})
    shared = [
        [(numbers[0], role, own) for (at, role, own), numbers in users.items() if at == depth and len(numbers) > 1]
        for depth in depths
    ]
    write_json(answer, shared)


def finished_before(job: Job) -> JobEnd | None:
    """The end of a job that an earlier start of the same sweep folder finished."""
    run, _ = _run_of(job)
    if run.status != "finished" or not set(job.overrides) <= set(run.overrides):
        return None
    return _end_of(job, 0, 0.0)


def _end_of(job: Job, exit_code: int, seconds: float) -> JobEnd:
    run, unreadable = _run_of(job)
    if exit_code == 0 and run.status == "finished" and run.delivered is not None:
        stage = run.stages[run.delivered]
        return JobEnd("finished", round(seconds, 1), value=stage.selected, selected_by=stage.selected_by)
    return JobEnd("failed", round(seconds, 1), reason=unreadable or _reason(job, exit_code))


def _run_of(job: Job) -> tuple[Run, str | None]:
    """What a job's summary.json says; nothing where there is none, and why where it cannot be read."""
    try:
        return read_run(job.folder) if (job.folder / SUMMARY).exists() else Run(), None
    except KdxError as error:
        return Run(), str(error)


def _reason(job: Job, exit_code: int) -> str:
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
    return f"ended with exit code {exit_code} and without a result; see {relative(job.folder, Path.cwd())}"


def _quoted(text: str) -> str:
    """A path as Hydra's grammar takes it whatever it contains."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
