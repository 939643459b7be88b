"""Where the jobs of a sweep run, and how many at a time: on this machine, or on the workers of a cluster."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kdx.sweeps.jobs import GiveUp, Job, JobEnd, Program
from kdx.sweeps.processes import JobProcesses, processors


class Executor(Protocol):
    """Runs jobs, each in a process of its own; `run` is called by several threads.

    `quiet`: what jobs print goes to their console.log. `ended` grows in the order in which jobs end.
    """

    quiet: bool
    stopping: bool
    ended: list[JobEnd]

    @property
    def at_once(self) -> int:
        """How many jobs run at a time."""

    def run(self, job: Job, give_up: GiveUp | None = None) -> JobEnd | None:
        """Start a job and wait for its end; None where all jobs are asked to stop. Blocks its thread.

        `give_up` is asked every second: once it gives a reason, the job is ended, and failed for that reason.
        """

    def at_work(self) -> dict[Job, float]:
        """The jobs that run, each with the seconds since its start."""

    def stop(self) -> None:
        """Ask all jobs to save and stop, and wait until they have. No job is started any more."""


@dataclass(frozen=True)
class Launch:
    """How a sweep's jobs are to be run: `n_jobs` at a time, each at most `timeout` seconds, spread over `gpu_ids`.

    `n_jobs` counts from the end where it is negative: -1 is one job a GPU or a processor, -2 one less. `cluster`: on
    the workers of a cluster, where -1 is one job a worker. `options` are further ones of `joblib.Parallel`.
    """

    n_jobs: int = 1
    gpu_ids: tuple[int, ...] = ()
    timeout: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    cluster: bool = False

    def at_once(self, jobs: int) -> int:
        """How many of so many jobs run at a time on this machine."""
        most = self.n_jobs if self.n_jobs > 0 else (len(self.gpu_ids) or processors()) + 1 + self.n_jobs
        return max(1, min(most, jobs))

    def handed_out(self, jobs: int) -> int:
        """How many of so many jobs are handed out at a time; on a cluster all, and its free workers take them."""
        return jobs if self.cluster and self.n_jobs < 0 else self.at_once(jobs)


Executors = Callable[[int], Executor]  # makes one for so many jobs that are handed out at a time


@contextmanager
def executors(program: Program, launch: Launch, jobs: int, folder: Path) -> Iterator[Executors]:
    """Whatever so many jobs need to run, there as long as the block lasts.

    `folder` is the sweep's, which all workers of a cluster must see. `KdxError` where no cluster answers.
    """
    if not launch.cluster or not jobs:
        yield lambda at_once: JobProcesses(program, at_once, launch.gpu_ids, launch.timeout)
        return
    from kdx.sweeps.cluster_jobs import ClusterJobs
    from kdx.sweeps.cluster_open import open_cluster

    with open_cluster(program, launch, jobs, folder) as cluster:
        yield lambda at_once: ClusterJobs(cluster, at_once)
