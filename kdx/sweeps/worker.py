"""What a worker of a dask cluster does with the jobs of a sweep. Needs `distributed`: imported where it is used."""

import asyncio
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin

from kdx.sweeps.jobs import Job, Program
from kdx.sweeps.processes import JobProcesses, forkserver

GONE = "its sweep is gone"
CANCELLED = "cancelled"  # how dask calls a task that still runs though nobody waits for it


@dataclass(frozen=True)
class Order:
    """What a worker must know of a sweep: its program, the folder that it was started in, and a job's `timeout`.

    `environment` is set in every job; `early` is what a process must find before it imports torch, unless the worker
    has it set. `ours`: the sweep has started the worker, and signals to both are the sweep's to hear.
    """

    program: Program
    folder: Path
    timeout: float | None
    environment: Mapping[str, str]
    early: Mapping[str, str]
    ours: bool


class JobWorker(WorkerPlugin):
    """Runs a sweep's jobs on one worker, one at a time, each a child of its process with all of its threads.

    The worker that ends in order lets its job save first. Where the sweep is gone, however it ended, so is the job.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.reason: str | None = None  # why the job that runs is to end

    def setup(self, worker: Worker) -> None:
        process: Any = multiprocessing.current_process()
        process._config["daemon"] = False  # a nanny's worker is one, and may not have children
        for name, value in self.order.early.items():
            os.environ.setdefault(name, value)
        forkserver("distributed")  # the worker's main module imports it, and is imported by each of its processes
        self.worker = worker
        self.processes = JobProcesses(
            self.order.program,
            timeout=self.order.timeout,
            threads=worker.state.nthreads,
            environment=self.order.environment,
            folder=self.order.folder,
        )
        if self.order.ours:
            for number in self.processes.heard:
                signal.signal(number, signal.SIG_IGN)

    async def teardown(self, worker: Worker) -> None:
        await asyncio.to_thread(self.processes.stop)

    def run(self, key: str, number: int, overrides: Sequence[str], folder: str) -> dict[str, Any] | None:
        """Run a job, the task `key`; its end as plain values, None where it was asked to stop."""
        self.reason = None

        def give_up() -> str | None:
            task = self.worker.state.tasks.get(key)
            return GONE if task is None or task.state == CANCELLED else self.reason

        end = self.processes.run(Job(number, tuple(overrides), Path(folder)), give_up)
        return None if end is None else asdict(replace(end, worker=own_name()))

    def stop(self) -> None:
        """Ask the job that runs to save and stop, and start no other; returns at once."""
        threading.Thread(target=self.processes.stop, name="stop", daemon=True).start()


def own_name() -> str:
    """This worker as people find it: its machine and its process."""
    return f"{socket.gethostname()} {os.getpid()}"


async def join(name: str, order: Order, dask_worker: Worker) -> str:
    """Get a worker ready for the jobs of the sweep `name`; what the worker is called."""
    await dask_worker.plugin_add(JobWorker(order), name=name, catch_errors=False)
    return own_name()


async def leave(name: str, dask_worker: Worker) -> None:
    """Undo `join`."""
    if name in dask_worker.plugins:
        await dask_worker.plugin_remove(name=name)


def end_job(name: str, reason: str | None, dask_worker: Worker) -> None:
    """Let the job of the sweep `name` end: failed for a reason, or, without one, saved to go on with later."""
    runner = dask_worker.plugins.get(name)
    if not isinstance(runner, JobWorker):
        return
    if reason is None:
        runner.stop()
    else:
        runner.reason = reason
