"""A rank above 0: it trains what rank 0 orders, leaves nothing on disk and hears no signal."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from kdx.chain.context import load_dataset, make_run_context
from kdx.chain.loaded import load_network
from kdx.chain.stage import FinishedTeacher, train_beside
from kdx.config.schema import Settings, StageSettings
from kdx.errors import KdxError
from kdx.process import USER_ERROR, end_with_parent
from kdx.signals import heard_signals
from kdx.torchrun import Ended, World, call_rank_0
from kdx.training.distributed import Ranks
from kdx.users_code import reason_of

READY = ""  # what a rank says when it has its data; anything else is an error
LONGEST_WAIT = timedelta(days=1)  # of the others while rank 0 validates, draws or waits for a disk
RANK_0_FIRST_SECONDS = 0.5  # where a rank fails because rank 0 has ended, it ends with that one's code


@dataclass(frozen=True)
class Begin:
    """What a rank of torchrun is told first; `prefix` stands before this run's names in the store."""

    settings: Settings
    ranks: Ranks
    digest: str  # of rank 0's data
    prefix: str


@dataclass(frozen=True)
class Order:
    """A stage to train; its teachers, by role, are read from their checkpoints."""

    stage: StageSettings
    teachers: Mapping[str, tuple[StageSettings, Path]]


def connect(ranks: Ranks, store: dist.Store, device: torch.device) -> None:
    """Make torch's default process group of all ranks."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=LONGEST_WAIT)


def run_spawned(pipe: Connection, settings: Settings, ranks: Ranks, digest: str, port: int) -> NoReturn:
    """The process of a rank that rank 0 started."""
    end_with_parent()
    _hush()
    _serve(pipe, pipe.recv, settings, ranks, digest, lambda: dist.TCPStore("127.0.0.1", port, ranks.world))


def run_beside(world: World) -> NoReturn:
    """A process of torchrun's above rank 0, which ends as rank 0 does, as soon as that one is gone."""
    try:
        pipe, store = call_rank_0(world)
    except KdxError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None
    for number in heard_signals():  # torchrun passes what it hears on to all; rank 0 saves, and the others wait for it
        signal.signal(number, signal.SIG_IGN)
    _hush()
    orders: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, orders), daemon=True).start()
    begin = orders.get()
    settings = replace(begin.settings, torchrun=world)
    _serve(pipe, orders.get, settings, begin.ranks, begin.digest, lambda: dist.PrefixStore(begin.prefix, store))


def _listen(pipe: Connection, orders: "SimpleQueue[Any]") -> None:
    """Pass on what rank 0 orders until it is gone, whatever this rank waits for then."""
    code = 1
    while True:
        try:
            said = pipe.recv()
        except (EOFError, OSError):
            os._exit(code)
        except BaseException as error:  # it cannot be read here: a user's module is missing
            _fail(pipe, error)
        if isinstance(said, Ended):
            code = said.code
        else:
            orders.put(said)


def _hush() -> None:
    """Say nothing: rank 0 says the same."""
    logging.disable()
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)


def _serve(
    pipe: Connection,
    next_order: Callable[[], Order],
    settings: Settings,
    ranks: Ranks,
    digest: str,
    meet: Callable[[], dist.Store],
) -> NoReturn:
    """Train what is ordered, one stage after the other, and say what goes wrong."""
    try:
        context = make_run_context(settings, load_dataset(settings), ranks)
        if context.dataset.digest != digest:
            raise KdxError(f"dataset={context.dataset.name}: other data than rank 0 has, on {socket.gethostname()}")
        pipe.send(READY)
        connect(ranks, meet(), context.device)
        while True:
            order = next_order()
            loaded = {role: load_network(context, *known) for role, known in order.teachers.items()}
            teachers = {role: FinishedTeacher(one.network, "", one.sha256) for role, one in loaded.items()}
            train_beside(context, order.stage, teachers)
    except BaseException as error:
        _fail(pipe, error)


def _fail(pipe: Connection, error: BaseException) -> NoReturn:
    """Say what went wrong and end, whatever still computes on other threads."""
    with suppress(OSError):
        pipe.send(str(error) if isinstance(error, KdxError) else reason_of(error))
    time.sleep(RANK_0_FIRST_SECONDS)
    os._exit(USER_ERROR)
