"""A run on several devices: this process trains as rank 0, and others beside it compute their share of each batch.

It starts them itself, or torchrun has started them. They leave nothing on disk, hear no signal, and end with this
process, whatever ends it.
"""

import logging
import multiprocessing
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch
import torch.distributed as dist

from kdx.chain.beside import READY, Begin, Order, connect, run_spawned
from kdx.chain.context import RunContext
from kdx.config.schema import Settings, StageSettings
from kdx.errors import KdxError
from kdx.signals import heard_signals, ignored
from kdx.torchrun import Followers
from kdx.training.stopping import Stopped

log = logging.getLogger(__name__)

ALL_HEARD_SECONDS = 2.0  # from the first rank that is lost to the last that fails because of it
LAST_RESORT_SECONDS = 30.0  # after a rank is lost, for this process to come back from waiting for it
SOUND = "what was saved is sound, resume=true goes on from there"


def threads_divided(settings: Settings) -> Settings:
    """The settings in which every rank has its share of the CPU's threads; torchrun has divided those of torch."""
    if settings.world == 1 or (settings.torchrun is not None and settings.threads is None):
        return settings
    here = settings.world if settings.torchrun is None else settings.torchrun.local_size
    return replace(settings, threads=max(1, (settings.threads or torch.get_num_threads()) // here))


@dataclass
class Member:
    """A rank above 0, as rank 0 knows it. `process` is None where torchrun has started it."""

    rank: int
    pipe: Connection
    process: SpawnProcess | None = None
    said: str | None = None
    gone: bool = False

    def hear(self) -> None:
        """Take in what it has said, and whether it is gone."""
        try:
            while self.pipe.poll():
                self.said = self.pipe.recv()
        except (EOFError, OSError):
            self.gone = True
        if self.process is not None:
            self.gone = self.process.exitcode is not None

    def killed(self) -> str | None:
        """How it was killed, of one that is gone without a word."""
        if self.process is None:
            return f"rank {self.rank} is gone (killed, out of memory?)" if self.gone and not self.said else None
        if self.process.exitcode is None or self.process.exitcode >= 0:
            return None
        name = signal.Signals(-self.process.exitcode).name
        return f"rank {self.rank} was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def failed(self) -> str | None:
        """What it failed of."""
        if self.said:
            return f"rank {self.rank}: {self.said}"
        if self.process is not None and self.gone:
            return f"rank {self.rank} ended with exit code {self.process.exitcode}"
        return None


class Team:
    """The ranks beside this one, which is 0; none is started before there is something to train."""

    def __init__(self, context: RunContext, check_stop: Callable[[], None], followers: Followers | None) -> None:
        self.context, self.check_stop, self.followers = context, check_stop, followers
        self.members: list[Member] = []
        self.ended = threading.Event()

    @contextmanager
    def training(self, stage: StageSettings, teachers: Mapping[str, tuple[StageSettings, Path]]) -> Iterator[None]:
        """Within, the other ranks train the stage, too; `KdxError` in one line where one of them is lost."""
        if self.context.ranks.world == 1:
            yield
            return
        if not self.members:
            self._start()
        try:
            for member in self.members:
                member.pipe.send(Order(stage, teachers))
            yield
        except (KdxError, KeyboardInterrupt):
            raise
        except Stopped as stopped:  # torchrun asks all to end where it has lost one
            lost = self._lost(0)
            if lost is None:
                raise
            raise KdxError(f"{stage.role}: {lost}; {SOUND}") from stopped
        except Exception as error:  # of whatever kind: what waits for a lost rank fails
            lost = self._lost(ALL_HEARD_SECONDS)
            if lost is None:
                raise
            raise KdxError(f"{stage.role}: {lost}; {SOUND}") from error

    def end(self) -> None:
        """End the other ranks, which have nothing to save; those of torchrun end after this process."""
        self.ended.set()
        processes = [member.process for member in self.members if member.process is not None]
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        if self.members and dist.is_initialized():
            dist.destroy_process_group()

    def _start(self) -> None:
        """Start the processes, wait until they have their data, and connect all."""
        ranks = self.context.ranks
        store = self._spawn() if self.followers is None else self._begin(self.followers)
        while not all(member.said == READY for member in self.members):
            wait([member.pipe for member in self.members if member.said != READY], 0.2)
            self.check_stop()
            lost = self._lost(0)
            if lost is not None:
                raise KdxError(lost)
        threading.Thread(target=self._watch, daemon=True).start()
        connect(ranks, store, self.context.device)

    def _spawn(self) -> dist.Store:
        """Start the other ranks; the store by which all find each other."""
        ranks, context = self.context.ranks, multiprocessing.get_context("spawn")
        store = dist.TCPStore("127.0.0.1", 0, ranks.world, is_master=True, wait_for_workers=False)
        with ignored(heard_signals()):  # a signal to the whole group is for rank 0
            for rank in range(1, ranks.world):
                ours, theirs = context.Pipe()
                work = (
                    theirs,
                    self.context.settings,
                    replace(ranks, rank=rank),
                    self.context.dataset.digest,
                    store.port,
                )
                process = context.Process(target=run_spawned, args=work, name=f"rank {rank}")
                process.start()
                theirs.close()
                self.members.append(Member(rank, ours, process))
        return store

    def _begin(self, followers: Followers) -> dist.Store:
        """Tell torchrun's ranks what the run is; the store by which all find each other."""
        ranks, prefix = self.context.ranks, secrets.token_hex(8)  # torchrun's store may know an earlier try
        for rank, pipe in enumerate(followers.pipes, start=1):
            self.members.append(Member(rank, pipe))
            pipe.send(Begin(self.context.settings, replace(ranks, rank=rank), self.context.dataset.digest, prefix))
        assert followers.store is not None
        return dist.PrefixStore(prefix, followers.store)

    def _lost(self, seconds: float) -> str | None:
        """Which rank failed, and why; of several the one that was killed, or else the first that says more than that
        another one is gone.
        """
        end = time.monotonic() + seconds
        while True:
            for member in self.members:
                member.hear()
            if time.monotonic() >= end or all(member.gone for member in self.members):
                break
            time.sleep(0.05)
        killed = [line for member in self.members if (line := member.killed())]
        told = [line for member in self.members if (line := member.failed())]
        own = [line for line in told if "onnection closed" not in line and "Connection reset" not in line]
        return next(iter([*killed, *own, *told]), None)

    def _watch(self) -> None:
        """Where this process waits for a rank that is gone and does not come back, end it: what was saved is sound."""
        wait([member.pipe if member.process is None else member.process.sentinel for member in self.members])
        if self.ended.wait(ALL_HEARD_SECONDS):
            return
        if self.context.device.type == "cuda":  # kernels of NCCL wait for ever
            torch.distributed.distributed_c10d._abort_process_group()
        if not self.ended.wait(LAST_RESORT_SECONDS):
            print(f"error: {self._lost(0)}; {SOUND}", file=sys.stderr)
            os._exit(1)


@contextmanager
def team_of(context: RunContext, check_stop: Callable[[], None], followers: Followers | None) -> Iterator[Team]:
    """The ranks of a run, which end with the context."""
    team = Team(context, check_stop, followers)
    try:
        yield team
    finally:
        team.end()
