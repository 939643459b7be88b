"""How far the jobs of a sweep are that run together, and how long all of them will take."""

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kdx.errors import KdxError
from kdx.results import UnderWay, read_under_way
from kdx.sweeps.jobs import Job
from kdx.sweeps.launch import Executor


@dataclass(frozen=True)
class Doing:
    """A job that runs since `spent` seconds: the stage that it trains, None before and after, and the seconds left."""

    job: Job
    spent: float
    stage: UnderWay | None
    left: float | None


class Outlook:
    """How far `total` jobs are that `executor` runs; it learns from each how long an epoch of a role takes."""

    def __init__(self, executor: Executor, total: int) -> None:
        self.executor, self.total = executor, total
        self.pace: dict[str, float] = {}

    @property
    def ended(self) -> int:
        return len(self.executor.ended)

    def look(self) -> list[Doing]:
        """What each job that runs is doing; reads its files."""
        spent = self.executor.at_work()
        stages = {job: _stage_of(job) for job in spent}
        for stage in stages.values():
            if stage is not None and stage.an_epoch is not None:
                self.pace[stage.role] = stage.an_epoch
        now = time.time()
        lefts = {job: None if stage is None else stage.left(self.pace, now) for job, stage in stages.items()}
        return [Doing(job, spent[job], stages[job], lefts[job]) for job in sorted(spent, key=lambda job: job.number)]

    def left(self, running: Sequence[Doing]) -> float | None:
        """The seconds until the last job ends, `running` and those that wait; None where nothing tells it yet."""
        well = [end.seconds for end in self.executor.ended if end.reason is None]
        waiting = self.total - self.ended - len(running)
        return seconds_left([(doing.spent, doing.left) for doing in running], waiting, self.executor.at_once, well)


def seconds_left(
    running: Sequence[tuple[float, float | None]], waiting: int, at_once: int, ended: Sequence[float]
) -> float | None:
    """The seconds until jobs that run and `waiting` ones that follow, `at_once` at a time, have ended.

    `running` holds the seconds that each has taken and has left, None where that is unknown; `ended` those that others
    took. A job of which nothing is known takes as long as the mean of these; None where there is none.
    """
    known = [*ended, *(spent + left for spent, left in running if left is not None)]
    if not known:
        return None
    a_job = sum(known) / len(known)
    free = [max(0.0, a_job - spent) if left is None else left for spent, left in running]
    free += [0.0] * (at_once - len(free))
    heapq.heapify(free)
    for _ in range(waiting):
        heapq.heappush(free, heapq.heappop(free) + a_job)
    return max(free)


def _stage_of(job: Job) -> UnderWay | None:
    try:
        return read_under_way(job.folder)
    except KdxError:  # what somebody else writes there: the job or the report at the end tells it
        return None
