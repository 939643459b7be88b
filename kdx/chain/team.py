"""A run on several devices: this process trains as rank 0, and others beside it compute their share of each batch.

They leave nothing on disk, hear no signal, and end with this process, whatever ends it.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch
import torch.distributed as dist

from kdx.chain.context import RunContext, load_dataset, make_run_context
from kdx.chain.stage import FinishedTeacher, load_network, train_beside
from kdx.config.schema import Settings, StageSettings
from kdx.errors import KdxError
from kdx.process import end_with_parent
from kdx.signals import heard_signals, ignored
from kdx.training.distributed import Ranks
from kdx.training.stopping import Stopped
from kdx.users_code import reason_of

log = logging.getLogger(__name__)

READY = ""  # what a rank says when it has its data; anything else is an error
LONGEST_WAIT = timedelta(days=1)  # of the others while rank 0 validates, draws or waits for a disk
ALL_HEARD_SECONDS = 2.0  # from the first rank that is lost to the last that fails because of it
LAST_RESORT_SECONDS = 30.0  # after a rank is lost, for this process to come back from waiting for it


def threads_divided(settings: Settings) -> Settings:
    """The settings in which every rank has its share of the CPU's threads."""
    if settings.world == 1:
        return settings
    return replace(settings, threads=max(1, (settings.threads or torch.get_num_threads()) // settings.world))


def refuse_torchrun() -> None:
    """Its processes would each be a run of their own, and write over each other."""
    count = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in os.environ and count != "1":
        raise KdxError(
            f"torchrun started {count} processes: kdx starts its own on one machine; use devices={count} alone"
        )


@dataclass(frozen=True)
class Order:
    """A stage to train; its teachers, by role, are read from their checkpoints."""

    stage: StageSettings
    teachers: Mapping[str, tuple[StageSettings, Path]]


class Team:
    """The ranks beside this one, which is 0; none is started before there is something to train."""

    def __init__(self, context: RunContext, check_stop: Callable[[], None]) -> None:
        self.context, self.check_stop = context, check_stop
        self.processes: list[SpawnProcess] = []
        self.pipes: list[Connection] = []
        self.said: dict[int, str] = {}
        self.ended = threading.Event()

    @contextmanager
    def training(self, stage: StageSettings, teachers: Mapping[str, tuple[StageSettings, Path]]) -> Iterator[None]:
        """Within, the other ranks train the stage, too; `KdxError` in one line where one of them is lost."""
        if self.context.ranks.world == 1:
            yield
            return
        if not self.processes:
            self._start()
        try:
            for pipe in self.pipes:
                pipe.send(Order(stage, teachers))
            yield
        except (KdxError, Stopped, KeyboardInterrupt):
            raise
        except Exception as error:  # of whatever kind: what waits for a lost rank fails
            lost = self._lost(ALL_HEARD_SECONDS)
            if lost is None:
                raise
            raise KdxError(f"{stage.role}: {lost}; what was saved is sound, resume=true goes on from there") from error

    def end(self) -> None:
        """End the other ranks, which have nothing to save."""
        self.ended.set()
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        if self.processes and dist.is_initialized():
            dist.destroy_process_group()

    def _start(self) -> None:
        """Start the processes, wait until they have their data, and connect all."""
        ranks, context = self.context.ranks, multiprocessing.get_context("spawn")
        store = dist.TCPStore("127.0.0.1", 0, ranks.world, is_master=True, wait_for_workers=False)
        with ignored(heard_signals()):  # a signal to the whole group is for rank 0
            for rank in range(1, ranks.world):
                ours, theirs = context.Pipe()
                work = (theirs, self.context.settings, replace(ranks, rank=rank), store.port)
                process = context.Process(target=_beside, args=work, name=f"rank {rank}")
                process.start()
                theirs.close()
                self.processes.append(process)
                self.pipes.append(ours)
        waiting = set(range(1, ranks.world))
        while waiting:
            wait([self.pipes[rank - 1] for rank in waiting], 0.2)
            self.check_stop()
            self._hear()
            waiting -= {rank for rank in waiting if self.said.get(rank) == READY}
            lost = self._lost(0)
            if lost is not None:
                raise KdxError(lost)
        threading.Thread(target=self._watch, daemon=True).start()
        connect(ranks, store, self.context.device)

    def _hear(self) -> None:
        for rank, pipe in enumerate(self.pipes, start=1):
            try:
                while pipe.poll():
                    self.said[rank] = pipe.recv()
            except (EOFError, OSError):
                continue

    def _lost(self, seconds: float) -> str | None:
        """Which rank failed, and why; of several the one that was killed, or else the first that says more than that
        another one is gone.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(process.is_alive() for process in self.processes):
            time.sleep(0.05)
        self._hear()
        told = {}
        for rank, process in enumerate(self.processes, start=1):
            if process.exitcode is not None and process.exitcode < 0:
                name = signal.Signals(-process.exitcode).name
                return f"rank {rank} was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
            if self.said.get(rank):
                told[rank] = f"rank {rank}: {self.said[rank]}"
            elif process.exitcode is not None:
                told[rank] = f"rank {rank} ended with exit code {process.exitcode}"
        own = [line for line in told.values() if "onnection closed" not in line and "Connection reset" not in line]
        return next(iter([*own, *told.values()]), None)

    def _watch(self) -> None:
        """Where this process waits for a rank that is gone and does not come back, end it: what was saved is sound."""
        wait([process.sentinel for process in self.processes])
        if self.ended.wait(ALL_HEARD_SECONDS):
            return
        if self.context.device.type == "cuda":  # kernels of NCCL wait for ever
            torch.distributed.distributed_c10d._abort_process_group()
        if not self.ended.wait(LAST_RESORT_SECONDS):
            print(f"error: {self._lost(0)}; what was saved is sound, resume=true goes on from there", file=sys.stderr)
            os._exit(1)


def connect(ranks: Ranks, store: dist.Store, device: torch.device) -> None:
    """Make torch's default process group of all ranks."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=LONGEST_WAIT)


def _beside(pipe: Connection, settings: Settings, ranks: Ranks, port: int) -> None:
    """The process of a rank above 0: train what rank 0 orders, and say what goes wrong."""
    end_with_parent()
    logging.disable()  # rank 0 says the same
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    try:
        context = make_run_context(settings, load_dataset(settings), ranks)
        pipe.send(READY)
        connect(ranks, dist.TCPStore("127.0.0.1", port, ranks.world), context.device)
        while True:
            order = pipe.recv()
            loaded = {role: load_network(context, *known) for role, known in order.teachers.items()}
            teachers = {role: FinishedTeacher(one.network, "", one.sha256) for role, one in loaded.items()}
            train_beside(context, order.stage, teachers)
    except BaseException as error:
        pipe.send(str(error) if isinstance(error, KdxError) else reason_of(error))
        pipe.close()
        os._exit(1)  # whatever still computes on other threads


@contextmanager
def team_of(context: RunContext, check_stop: Callable[[], None]) -> Iterator[Team]:
    """The ranks of a run, which end with the context."""
    team = Team(context, check_stop)
    try:
        yield team
    finally:
        team.end()
