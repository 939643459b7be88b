"""kdx under torchrun: rank 0 runs the command, the others train what it orders and end as it ends.

Imports no torch.
"""

import json
import os
import secrets
import signal
import socket
import threading
import time
from dataclasses import dataclass
from ipaddress import ip_address
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from types import TracebackType
from typing import TYPE_CHECKING

from kdx.errors import KdxError
from kdx.process import USER_ERROR

if TYPE_CHECKING:
    from torch.distributed import Store

RANK_0 = "kdx/rank 0"  # of torchrun's store: where rank 0 listens, and what a rank must know to be heard
RANK_0_ANSWERS_SECONDS = 60.0
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class World:
    """This process among those that torchrun started, on all machines and on its own."""

    rank: int
    size: int
    local_rank: int
    local_size: int


@dataclass(frozen=True)
class Ended:
    """What rank 0 says last: the code with which it ends, and every rank after it."""

    code: int


def world() -> World | None:
    """This process among several of torchrun's; None elsewhere."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return None
    return World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))


def refuse_torchrun(what: str) -> None:
    """`KdxError` for what would be done by each process of torchrun for itself; rank 0 alone tells it."""
    place = world()
    if place is not None and place.rank > 0:
        raise SystemExit(USER_ERROR)
    if place is not None:
        raise KdxError(f"torchrun trains one run, by `torchrun ... -m kdx.run key=value`: {what}")


class Followers:
    """The other ranks of torchrun, as rank 0 knows them; within its context, at whose end they learn the code."""

    def __init__(self, world: World | None) -> None:
        self.world = world
        self.pipes: list[Connection] = []  # to rank 1 and so on
        self.store: Store | None = None

    def __enter__(self) -> "Followers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        code = 1 if error is not None else 0
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        for pipe in self.pipes:
            try:
                os.dup(pipe.fileno())  # open until this process is gone: torchrun ends the others where one fails first
                pipe.send(Ended(code))
            except OSError:  # it is gone
                continue

    def meet(self) -> None:
        """Wait until every other rank has called; end in order where torchrun is gone."""
        if self.world is None:
            return
        threading.Thread(target=_end_without, args=(os.getppid(),), daemon=True).start()
        self.store = _store()
        alone, key = self.world.local_size == self.world.size, secrets.token_bytes(32)
        with Listener(("127.0.0.1" if alone else "", 0), authkey=key) as listener:
            host = "127.0.0.1" if alone else _own_address()
            self.store.set(RANK_0, json.dumps([host, listener.address[1], key.hex()]))
            called: dict[int, Connection] = {}
            while len(called) < self.world.size - 1:
                try:
                    pipe = listener.accept()
                    called[pipe.recv()] = pipe
                except (AuthenticationError, EOFError, ConnectionError):
                    continue
        self.pipes = [called[rank] for rank in sorted(called)]


def call_rank_0(world: World) -> tuple[Connection, "Store"]:
    """This rank's connection to rank 0, and torchrun's store; `KdxError` where rank 0 does not answer."""
    store, end = _store(), time.monotonic() + RANK_0_ANSWERS_SECONDS
    while True:
        host, port, key = json.loads(store.get(RANK_0))
        try:
            pipe = Client((host, port), authkey=bytes.fromhex(key))
            pipe.send(world.rank)
            return pipe, store
        except (AuthenticationError, EOFError, OSError) as error:  # it may be a rank 0 that torchrun has restarted
            if time.monotonic() > end:
                raise KdxError(f"rank {world.rank}: rank 0 does not answer at {host}, port {port}: {error}") from error
            time.sleep(LOOK_SECONDS)


def _store() -> "Store":
    """The store that torchrun's processes share."""
    from torch.distributed import rendezvous

    store, _, _ = next(rendezvous("env://"))
    return store


def _own_address() -> str:
    """This machine's address for others: that of its way to torchrun's store, or the store's, which is here then."""
    name, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((name, port))
        own = str(way.getsockname()[0])
    return name if ip_address(own).is_loopback else own


def _end_without(torchrun: int) -> None:
    """Where torchrun was killed: its processes are nobody's then, and rank 0 saves and ends."""
    while os.getppid() == torchrun:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
