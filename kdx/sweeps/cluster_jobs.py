"""The jobs of a sweep on the workers of a dask cluster: handed out, waited for, given to another where one is lost."""

import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from distributed import Future

from kdx.errors import KdxError
from kdx.sweeps.cluster import Cluster, Member, one_line
from kdx.sweeps.jobs import GiveUp, Job, JobEnd
from kdx.sweeps.processes import POLL_SECONDS, STOP_SECONDS
from kdx.sweeps.words import title
from kdx.sweeps.worker import end_job

log = logging.getLogger(__name__)

MOST_LOST = 5  # workers that may be lost while they run one job: it may be the job that ends them


class ClusterJobs:
    """Runs at most `handed_out` jobs at a time on a cluster, one a worker; an `Executor`.

    A job whose worker is lost runs again on another, where it resumes from its own checkpoint.
    """

    quiet = True

    def __init__(self, cluster: Cluster, handed_out: int) -> None:
        self.cluster, self.handed_out = cluster, handed_out
        self.running: dict[Job, tuple[Member, float]] = {}  # and since when, as time.monotonic() counts
        self.ended: list[JobEnd] = []
        self.stopping = False

    @property
    def at_once(self) -> int:
        return max(1, min(self.handed_out, len(self.cluster.workers)))

    def run(self, job: Job, give_up: GiveUp | None = None) -> JobEnd | None:
        """Run a job on a worker that is free; None where all jobs are asked to stop. Blocks its thread."""
        lost = 0
        while (member := self.cluster.take(lambda: not self.stopping)) is not None:
            began, end = time.monotonic(), None
            with self.cluster.changed:
                self.running[job] = member, began
            try:
                end = self._run_on(member, job, give_up)
            finally:
                with self.cluster.changed:
                    del self.running[job]
                self.cluster.give_back(member, well=end is not None)
            lost += end is None
            if end is None and lost == MOST_LOST:
                end = _failed(f"{lost} workers were lost while they ran it", member, began)
            if self.stopping:
                return None
            if end is not None:
                self.ended.append(end)
                return end
            log.info("%s: the worker %s is gone; it runs again on another", title(job), member.name)
        return None

    def at_work(self) -> dict[Job, float]:
        """The jobs that run, each with the seconds since its start."""
        with self.cluster.changed:
            return {job: time.monotonic() - since for job, (_, since) in self.running.items()}

    def stop(self) -> None:
        """Ask all jobs to save and stop, and wait until they have; a second signal ends this process, and they stop.

        No job is started any more.
        """
        with self.cluster.changed:
            self.stopping = True
            self.cluster.changed.notify_all()
            busy = [member.address for member, _ in self.running.values()]
        if busy and self.cluster.lost is None:
            self.cluster.ask(end_job, busy, self.cluster.name, None)
        told = time.monotonic()
        with self.cluster.changed:
            while self.running:
                self.cluster.changed.wait(POLL_SECONDS)
                if time.monotonic() - told > STOP_SECONDS:
                    told = time.monotonic()
                    names = ", ".join(map(title, self.running))
                    log.info("waiting for %s to save; interrupt again to lose what is not saved", names)

    def _run_on(self, member: Member, job: Job, give_up: GiveUp | None) -> JobEnd | None:
        """Run a job on a worker; None where the worker is lost before the job has ended, or was asked to stop."""
        began, key = time.monotonic(), f"{self.cluster.name}-{job.number}-{uuid.uuid4().hex}"
        work = key, job.number, list(job.overrides), str(job.folder.absolute())
        future = self.cluster.hand_out(_task(self.cluster.name), key, member, *work)
        reason = None
        try:
            while self.cluster.has(member):
                self.cluster.raise_if_lost()
                if (ended := _outcome(future)) is not None:
                    answer, error = ended
                    if error is not None:
                        return _failed(f"its worker could not run it: {one_line(error)}", member, began)
                    return None if answer is None else JobEnd(**answer)
                if give_up is not None and reason is None and (reason := give_up()) is not None:
                    self.cluster.ask(end_job, [member.address], self.cluster.name, reason)
            return None
        finally:
            self.cluster.forget(future)


def _outcome(future: Future) -> tuple[dict[str, Any] | None, BaseException | None] | None:
    """What a task has returned or raised; None where it has not ended within a second."""
    try:
        error = future.exception(timeout=POLL_SECONDS)
        return (None if error is not None else future.result()), error
    except TimeoutError:
        return None
    except Exception as error:  # whatever dask makes of a scheduler that is gone
        told = f"dask has given up the jobs ({one_line(error)}); start the same command again"
        raise KdxError(told) from error


def _failed(reason: str, member: Member, began: float) -> JobEnd:
    return JobEnd("failed", round(time.monotonic() - began, 1), reason=reason, worker=member.name)


def _task(name: str) -> Callable[..., dict[str, Any] | None]:
    """What a worker does for a job. A function within one is sent as it is: the scheduler need not have kdx."""

    def run_job(key: str, number: int, overrides: list[str], folder: str) -> dict[str, Any] | None:
        from distributed import get_worker

        runner: Any = get_worker().plugins.get(name)
        return None if runner is None else runner.run(key, number, overrides, folder)

    return run_job
