"""A sweep from its first job to its last: shared stages first, then the jobs, some at a time."""

import logging
from collections.abc import Callable, Sequence

from kdx.sweeps.board import Board
from kdx.sweeps.jobs import Job, JobEnd, Program
from kdx.sweeps.launch import Executor, Executors, Launch
from kdx.sweeps.outlook import Outlook
from kdx.sweeps.parallel import THREADS, run_parallel
from kdx.sweeps.scout import shared_stages
from kdx.sweeps.watch import watched

log = logging.getLogger(__name__)


def run_sweep(board: Board, program: Program, launch: Launch, executor: Executors) -> None:
    """Run a board's jobs; stages that several jobs share are trained first, each once."""
    jobs = board.unfinished()
    if not jobs:
        return
    handed_out = launch.handed_out(len(jobs))
    if handed_out > 1:
        at_once = executor(handed_out).at_once
        log.info("%d jobs, %d at a time; what each prints is in its console.log", len(jobs), at_once)
        for wave in shared_stages(program, jobs, board.folder):
            together = executor(min(handed_out, len(wave)))
            log.info("training %d stage(s) that several jobs share, %d at a time", len(wave), together.at_once)
            _run(wave, together, launch, _tell_failure, lambda job: "")
    _run(jobs, executor(handed_out), launch, board.note, board.name)


def _run(
    jobs: Sequence[Job],
    executor: Executor,
    launch: Launch,
    note: Callable[[Job, JobEnd, float | None], None],
    name: Callable[[Job], str],
) -> None:
    outlook = Outlook(executor, len(jobs))

    def note_end(result: tuple[Job, JobEnd | None]) -> None:
        job, end = result
        if end is not None:
            note(job, end, outlook.left(outlook.look()))

    with watched(outlook, name):
        run_parallel(
            lambda job: (job, executor.run(job)),
            jobs,
            note_end,
            executor.stop,
            launch.handed_out(len(jobs)),
            {**launch.options, **THREADS},
        )


def _tell_failure(job: Job, end: JobEnd, left: float | None) -> None:
    """The jobs that need a shared stage try it again, each by itself, and tell what is wrong with it."""
    if end.reason is not None:
        log.info("shared stage %s: FAILED: %s", job.folder.name, end.reason)
