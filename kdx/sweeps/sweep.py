"""A sweep from its first job to its last: shared stages first, then the jobs, some at a time."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdx.sweeps.board import Board
from kdx.sweeps.jobs import Job, JobEnd, Program
from kdx.sweeps.outlook import Outlook
from kdx.sweeps.parallel import THREADS, run_parallel
from kdx.sweeps.processes import JobProcesses, processors
from kdx.sweeps.scout import shared_stages
from kdx.sweeps.watch import watched

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """How a sweep's jobs are to be run: `n_jobs` at a time, each at most `timeout` seconds, spread over `gpu_ids`.

    `n_jobs` counts from the end where it is negative: -1 is one job a GPU or a processor, -2 one less. `options` are
    further ones of `joblib.Parallel`.
    """

    n_jobs: int = 1
    gpu_ids: tuple[int, ...] = ()
    timeout: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def at_once(self, jobs: int) -> int:
        """How many of so many jobs run at a time."""
        most = self.n_jobs if self.n_jobs > 0 else (len(self.gpu_ids) or processors()) + 1 + self.n_jobs
        return max(1, min(most, jobs))


def run_sweep(board: Board, program: Program, launch: Launch) -> None:
    """Run a board's jobs; stages that several jobs share are trained first, each once."""
    jobs = board.unfinished()
    at_once = launch.at_once(len(jobs))
    if at_once > 1:
        log.info("%d jobs, %d at a time; what each prints is in its console.log", len(jobs), at_once)
        for wave in shared_stages(program, jobs, board.folder):
            together = min(at_once, len(wave))
            log.info("training %d stage(s) that several jobs share, %d at a time", len(wave), together)
            _run(wave, program, launch, together, _tell_failure, lambda job: "")
    _run(jobs, program, launch, at_once, board.note, board.name)


def _run(
    jobs: Sequence[Job],
    program: Program,
    launch: Launch,
    at_once: int,
    note: Callable[[Job, JobEnd, float | None], None],
    name: Callable[[Job], str],
) -> None:
    processes = JobProcesses(program, at_once, launch.gpu_ids, launch.timeout)
    outlook = Outlook(processes, len(jobs))

    def note_end(result: tuple[Job, JobEnd | None]) -> None:
        job, end = result
        if end is not None:
            note(job, end, outlook.left(outlook.look()))

    with watched(outlook, name):
        run_parallel(
            lambda job: (job, processes.run(job)),
            jobs,
            note_end,
            processes.stop,
            at_once,
            {**launch.options, **THREADS},
        )


def _tell_failure(job: Job, end: JobEnd, left: float | None) -> None:
    """The jobs that need a shared stage try it again, each by itself, and tell what is wrong with it."""
    if end.reason is not None:
        log.info("shared stage %s: FAILED: %s", job.folder.name, end.reason)
