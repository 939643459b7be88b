"""The workers of a dask cluster that run the jobs of a sweep. Needs `distributed`: imported where it is used."""

import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client, Future

from kdx.errors import KdxError
from kdx.sweeps.build import build, difference
from kdx.sweeps.worker import Order, join

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between two looks at which workers there are


@dataclass(frozen=True)
class Member:
    """A worker of a cluster: its address, and what people call it."""

    address: str
    name: str


class Cluster:
    """The workers of a cluster that can run a sweep's jobs; those that would compute something else are told of.

    `changed` is notified whenever a worker comes, goes or gets free. `lost` is why the cluster cannot be used any more.
    """

    def __init__(self, client: Client, where: str, order: Order, sweep_dir: Path) -> None:
        self.client, self.where, self.order, self.sweep_dir = client, where, order, sweep_dir
        self.name = f"kdx-{uuid.uuid4().hex[:12]}"
        self.build = build()
        self.changed = threading.Condition()
        self.workers: dict[str, Member] = {}  # by address
        self.busy: set[str] = set()
        self.refused: dict[str, str] = {}  # why, by address
        self.lost: str | None = None
        self.over = threading.Event()

    def watch(self) -> None:
        """Look every second for workers that came and went, until `over`."""
        while self.lost is None and not self.over.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Ask once which workers there are, and those that are new whether they can run the jobs."""
        scheduler: Any = self.client.scheduler
        try:
            told = self.client.sync(scheduler.identity, n_workers=-1)
        except Exception as error:  # whatever dask makes of a broken connection
            return self._lose(error)
        there = {address: worker["status"] for address, worker in told["workers"].items()}
        with self.changed:
            self.workers = {address: member for address, member in self.workers.items() if address in there}
            self.refused = {address: reason for address, reason in self.refused.items() if address in there}
            known = self.workers.keys() | self.refused.keys()
        new = [address for address, status in there.items() if status == "running" and address not in known]
        joined = self._join(new) if new else []
        with self.changed:
            self.workers |= {member.address: member for member in joined}
            self.changed.notify_all()

    def ask(self, function: Callable[..., Any], addresses: list[str], *arguments: Any) -> dict[str, Any]:
        """What `function` returns on each worker, or the exception that it met there."""
        answers: dict[str, Any] = {}
        try:
            answers = self.client.run(function, *arguments, workers=addresses, on_error="return")
        except Exception as error:
            self._lose(error)
        return answers

    def hand_out(self, task: Callable[..., Any], key: str, member: Member, *arguments: Any) -> Future:
        """Let a worker, and no other, do a task."""
        try:
            return self.client.submit(task, *arguments, key=key, workers=[member.address], pure=False)
        except Exception as error:
            self._lose(error)
            raise KdxError(self.lost) from error

    def forget(self, future: Future) -> None:
        """Have a task no more: a worker that is still at it hears of it."""
        try:
            if not future.done():
                future.cancel()
        except Exception as error:
            self._lose(error)

    def take(self, wanted: Callable[[], bool]) -> Member | None:
        """A worker that is free, which then is busy; waits for one while it is `wanted`. `KdxError` without cluster."""
        with self.changed:
            while wanted():
                self.raise_if_lost()
                for address, member in self.workers.items():
                    if address not in self.busy:
                        self.busy.add(address)
                        return member
                self.changed.wait(LOOK_SECONDS)
        return None

    def give_back(self, member: Member, well: bool) -> None:
        """Let others have a worker; one that is not `well` only after it was asked anew whether it can run jobs."""
        with self.changed:
            self.busy.discard(member.address)
            if not well and self.has(member):
                del self.workers[member.address]
            self.changed.notify_all()

    def has(self, member: Member) -> bool:
        """Whether a worker is still there."""
        return self.workers.get(member.address) == member

    def raise_if_lost(self) -> None:
        if self.lost is not None:
            raise KdxError(self.lost)

    def _lose(self, error: Exception) -> None:
        with self.changed:
            self.lost = f"{self.where}: the scheduler is gone ({one_line(error)}); start the same command again"
            self.changed.notify_all()

    def _join(self, new: list[str]) -> list[Member]:
        """Get new workers ready; one that does not fit is told once and never used."""
        has = self.ask(_question(str(self.sweep_dir)), new)
        problems = {address: self._problem(answer) for address, answer in has.items()}
        fit = [address for address, problem in problems.items() if problem is None and not _is_gone(has[address])]
        joined = []
        for address, answer in (self.ask(join, fit, self.name, self.order) if fit else {}).items():
            if isinstance(answer, str):
                joined.append(Member(address, answer))
            elif not _is_gone(answer):
                problems[address] = f"cannot run jobs: {one_line(answer)}"
        for address, problem in problems.items():
            if problem is not None:
                self.refused[address] = f"the worker {address} {problem}"
                log.warning("%s: it gets no job", self.refused[address])
        return joined

    def _problem(self, answer: Any) -> str | None:
        """Why a worker cannot run the jobs, from its answer to the question what it has."""
        if _is_gone(answer):
            return None
        if not isinstance(answer, dict):
            return f"cannot run kdx: {one_line(answer)}"
        if not answer.pop("folder"):
            return f"does not see {self.sweep_dir}: a file system that all share is needed"
        return difference(answer, self.build)


def _question(folder: str) -> Callable[[], dict[str, Any]]:
    """Asks a worker what it would compute with and whether it sees a folder.

    A function within one is sent as it is, and not by its name: the worker need not have kdx to be asked.
    """

    def question() -> dict[str, Any]:
        import os

        from kdx.sweeps.build import build

        return {**build(), "folder": os.path.isdir(folder)}

    return question


def _is_gone(answer: Any) -> bool:
    """Whether a worker went before it could answer."""
    return isinstance(answer, OSError)


def one_line(error: object) -> str:
    """What an exception of dask's says, as a part of a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."
