"""Each job as a process of its own: started, waited for, asked to save. Imports no torch itself."""

import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path

from kdx.config.stage_overrides import quoted
from kdx.files import write_json
from kdx.process import JOB_THREADS, end_with_parent
from kdx.signals import heard_signals, ignored, stop_ignoring
from kdx.sweeps.jobs import GiveUp, Job, JobEnd, Program, end_of

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0  # between asking a job to stop and killing it, or telling what is waited for
POLL_SECONDS = 1.0  # how often it is asked whether a job is to go on


class JobProcesses:
    """Runs jobs as forks of a server process that has imported torch once; an `Executor`.

    Of jobs that run at once each writes what it would show to console.log, computes with its share of the CPU's
    threads, unless its config sets `threads`, and sees one of the GPUs. `timeout` is the seconds that a job may take.
    Jobs that belong to another process's sweep are given its `environment` and its `folder` to work in, and `threads`.
    """

    def __init__(
        self,
        program: Program,
        at_once: int = 1,
        gpu_ids: Sequence[int] = (),
        timeout: float | None = None,
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.program, self.at_once, self.gpu_ids, self.timeout = program, at_once, list(gpu_ids), timeout
        self.environment, self.folder = dict(environment or {}), folder
        self.threads = threads or (max(1, processors() // at_once) if at_once > 1 else None)
        self.quiet = self.threads is not None
        self.context = forkserver()
        self.heard = heard_signals()
        self.slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(at_once):
            self.slots.put(slot)
        # held while the two below change, and where an exit code is read: starting a process reads those of all others
        self.changing = threading.Condition()
        self.running: dict[Job, tuple[ForkServerProcess, float]] = {}  # and since when, as time.monotonic() counts
        self.ended: list[JobEnd] = []
        self.stopping = False
        # which a job looks at once it hears signals: one that comes while its process is still being made is lost
        self.stop_asked, self.ask_to_stop = self.context.Pipe(duplex=False)

    def run(self, job: Job, give_up: GiveUp | None = None) -> JobEnd | None:
        """As `Executor.run`; the process is a fork of the server."""
        slot = self.slots.get()
        try:
            process = self._start(job, slot)
            if process is None:
                return None
            began = time.monotonic()  # the first job waits for the server, which is no part of its time
            try:
                reason = self._wait(process, began, give_up)
            finally:
                seconds = time.monotonic() - began
                self._bury(job, process)
            if self.stopping:
                return None
        finally:
            self.slots.put(slot)
        failed = None if reason is None else JobEnd("failed", round(seconds, 1), reason=reason)
        end = failed or end_of(job, process.exitcode or 0, seconds, self.folder or Path.cwd())
        self.ended.append(end)
        return end

    def at_work(self) -> dict[Job, float]:
        """The jobs that run, each with the seconds since its start."""
        with self.changing:
            return {job: time.monotonic() - since for job, (_, since) in self.running.items()}

    def stop(self) -> None:
        """Ask all jobs once to save and stop, and wait until they have; a second signal ends this process and them.

        No job is started any more.
        """
        with self.changing:
            if not self.stopping:
                self.ask_to_stop.send_bytes(b"stop")
            self.stopping = True
            for process, _ in self.running.values():
                process.terminate()
            while self.running:
                if not self.changing.wait(STOP_SECONDS):
                    names = ", ".join(process.name for process, _ in self.running.values())
                    log.info("waiting for %s to save; interrupt again to lose what is not saved", names)

    def _start(self, job: Job, slot: int) -> ForkServerProcess | None:
        write_json(job.folder / "job.json", {"overrides": list(job.overrides)})  # keeps a refused job's folder, too
        environment = dict(self.environment)
        if self.threads is not None and "threads" not in _given(job):
            environment[JOB_THREADS] = str(self.threads)
        if self.gpu_ids:
            environment["CUDA_VISIBLE_DEVICES"] = str(self.gpu_ids[slot % len(self.gpu_ids)])
        console = job.folder / "console.log" if self.quiet else None
        arguments = self._arguments(job)
        work = (self.program.main, arguments, console, environment, self.heard, self.stop_asked, self.folder)
        process = self.context.Process(target=_work, args=work, name=f"job {job.number}")
        with self.changing:
            if self.stopping:
                return None
            process.start()
            self.running[job] = process, time.monotonic()
        return process

    def _bury(self, job: Job, process: ForkServerProcess) -> None:
        _end(process)  # only where waiting for it failed is it there still
        with self.changing:
            process.join()
            del self.running[job]
            self.changing.notify_all()

    def _arguments(self, job: Job) -> list[str]:
        arguments = [*self.program.base, *job.overrides, f"hydra.run.dir={quoted(str(job.folder))}", "hydra.mode=RUN"]
        defaults = {"resume": "true", "report": "false"}
        return [*arguments, *(f"{key}={value}" for key, value in defaults.items() if key not in _given(job))]

    def _wait(self, process: ForkServerProcess, began: float, give_up: GiveUp | None) -> str | None:
        """Wait for a process's end without taking its exit code; the reason where it had to be ended."""
        while True:
            left = None if self.timeout is None else max(0.0, began + self.timeout - time.monotonic())
            if wait([process.sentinel], left if give_up is None else min(POLL_SECONDS, left or POLL_SECONDS)):
                return None
            if self.stopping:  # it takes what it needs to save
                wait([process.sentinel])
                return None
            reason = None if give_up is None else give_up()
            if left == 0:
                reason = f"took longer than {self.timeout:g} s (hydra.launcher.timeout)"
            if reason is not None:
                return reason


def _given(job: Job) -> set[str]:
    """The keys that a job's overrides set: no default of a sweep's takes their place."""
    return {override.partition("=")[0] for override in job.overrides}


def _end(process: ForkServerProcess) -> None:
    """Ask a process to save and end, unless it has; it is killed if it takes long."""
    if wait([process.sentinel], 0):
        return
    process.terminate()
    if not wait([process.sentinel], STOP_SECONDS):
        process.kill()
        wait([process.sentinel])


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forkserver(*also: str) -> ForkServerContext:
    """Starts processes as forks of one that has imported torch once, and the modules `also` if it is started here.

    That one ends with this process, whatever signal the group is sent: else nobody would wait for the jobs.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kdx.chain.chain", "kdx.cli", "torchmetrics.functional.classification", *also])
    with ignored(heard_signals()):
        ensure_running()
    return context


def _work(
    main: Callable[[], None],
    arguments: list[str],
    console: Path | None,
    environment: dict[str, str],
    heard: Sequence[signal.Signals],
    stop_asked: Connection,
    folder: Path | None,
) -> None:
    """The job's process: `kdx <arguments>`, ended when the process that started it is gone."""
    stop_ignoring(heard)
    if stop_asked.poll():
        os.kill(os.getpid(), signal.SIGTERM)
    end_with_parent()
    os.environ.update(environment)
    if folder is not None:
        os.chdir(folder)
    if console is not None:
        descriptor = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    sys.argv = ["kdx", *arguments]
    main()
