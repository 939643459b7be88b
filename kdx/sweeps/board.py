"""What is known of a sweep's jobs, kept in sweep.json and told line by line."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from kdx.errors import KdxError
from kdx.recipe import DECIMALS
from kdx.results import SweepJob, read_sweep, write_sweep
from kdx.sweeps.jobs import Job, JobEnd, finished_before
from kdx.sweeps.words import about_left

log = logging.getLogger(__name__)


class Board:
    """What is known of every job, kept in sweep.json and told line by line.

    `KdxError` where the folder holds a sweep of other jobs.
    """

    def __init__(self, sweep_dir: Path, jobs: Sequence[Job]) -> None:
        self.folder = sweep_dir
        self.jobs = list(jobs)
        self.common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
        self.done: dict[int, JobEnd] = {}
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
                listed = known.get(str(job.number), SweepJob([]))
                self.done[job.number] = replace(end, worker=listed.worker, seconds=listed.seconds or end.seconds)
        if self.done:
            log.info("%d of %d jobs were finished before", len(self.done), len(jobs))
        self.write()

    def unfinished(self) -> list[Job]:
        return [job for job in self.jobs if job.number not in self.done]

    def ends(self) -> list[JobEnd]:
        return [self.done[job.number] for job in self.jobs]

    def name(self, job: Job) -> str:
        """What tells a job from the others."""
        return " ".join(override for override in job.overrides if override not in self.common)

    def note(self, job: Job, end: JobEnd, left: float | None) -> None:
        """Keep and tell how a job ended, and the seconds until the last one will have."""
        self.done[job.number] = end
        self.write()
        ended, total = len(self.done), len(self.jobs)
        how = f"val {end.value:.{DECIMALS[end.selected_by]}f}" if end.value is not None else f"FAILED: {end.reason}"
        rest = about_left(left) if ended < total else ""
        where = f"{end.seconds:.0f} s{'' if end.worker is None else f' on {end.worker}'}{rest}"
        log.info("[%d/%d] job %d %s: %s (%s)", ended, total, job.number, self.name(job), how, where)

    def write(self) -> None:
        listed = dict(self.earlier)
        for job in self.jobs:
            end = self.done.get(job.number)
            ended = {} if end is None else asdict(end)
            listed[str(job.number)] = SweepJob(list(job.overrides), job.folder.name, **ended)
        write_sweep(self.folder, listed)
