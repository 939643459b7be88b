"""How a sweep gets a dask cluster. Needs `distributed`: imported where it is used."""

import logging
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from distributed import Client, LocalCluster

from kdx.errors import KdxError
from kdx.signals import heard_signals, ignored
from kdx.sweeps.cluster import Cluster, one_line
from kdx.sweeps.jobs import Program
from kdx.sweeps.launch import Launch
from kdx.sweeps.processes import processors
from kdx.sweeps.worker import Order, leave

log = logging.getLogger(__name__)

ADDRESS = "DASK_SCHEDULER_ADDRESS"
CONNECT_SECONDS = 10.0
EARLY = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # of the environment; read when torch is imported


@contextmanager
def open_cluster(program: Program, launch: Launch, jobs: int, sweep_dir: Path) -> Iterator[Cluster]:
    """The cluster that DASK_SCHEDULER_ADDRESS names, else one of this machine with as many workers as run at a time."""
    address = os.environ.get(ADDRESS)
    _leave_the_log_alone()
    with ExitStack() as stack:
        if address and launch.n_jobs < -1:
            raise KdxError(f"hydra.launcher.n_jobs={launch.n_jobs}: on a cluster choose a number, or -1: one a worker")
        workers = launch.at_once(jobs)
        client = _client_of(address, stack) if address else _local_client(workers, stack)
        environment = {name: value for name, value in os.environ.items() if name.startswith("KDX_")}
        early = {name: os.environ[name] for name in EARLY if name in os.environ}
        order = Order(program, Path.cwd(), launch.timeout, environment, early, ours=not address)
        cluster = Cluster(
            client, f"{ADDRESS}={address}" if address else "the local cluster", order, sweep_dir.absolute()
        )
        cluster.look()
        cluster.raise_if_lost()
        _tell(cluster)
        thread = threading.Thread(target=cluster.watch, name="workers", daemon=True)
        thread.start()
        try:
            yield cluster
        finally:
            cluster.over.set()
            thread.join()
            if cluster.lost is None and cluster.workers:
                cluster.ask(leave, list(cluster.workers), cluster.name)


def _tell(cluster: Cluster) -> None:
    """Say what there is to work with; `KdxError` where no worker fits."""
    if cluster.workers:
        log.info("%s: %d worker(s), a job a worker", cluster.where, len(cluster.workers))
    elif cluster.refused:
        raise KdxError(f"{cluster.where}: {next(iter(cluster.refused.values()))}")
    else:
        log.info("%s: waiting for its first worker", cluster.where)


def _client_of(address: str, stack: ExitStack) -> Client:
    """A client of the scheduler at an address. A handshake with what is no scheduler may last for ever: it is left."""
    answers: queue.SimpleQueue[Client | Exception] = queue.SimpleQueue()

    def connect() -> None:
        try:
            answers.put(Client(address, timeout=CONNECT_SECONDS, set_as_default=False))
        except Exception as error:  # an address that is none, nothing that listens, whatever dask makes of it
            answers.put(error)

    threading.Thread(target=connect, name="connect", daemon=True).start()
    try:
        answer = answers.get(timeout=CONNECT_SECONDS + 1)
    except queue.Empty:
        answer = TimeoutError(f"nothing within {CONNECT_SECONDS:g} s")
    if isinstance(answer, Exception):
        raise KdxError(f"{ADDRESS}={address}: no scheduler of dask answers: {one_line(answer)}") from answer
    return stack.enter_context(answer)


def _local_client(workers: int, stack: ExitStack) -> Client:
    """A cluster of this machine, whose workers share its processors."""
    threads = max(1, processors() // workers)
    with ignored(heard_signals()):  # else Ctrl-C ends the workers before their jobs have saved
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            dashboard_address=":0",
            memory_limit=None,
            silence_logs=logging.CRITICAL,
        )
    stack.enter_context(cluster)
    return stack.enter_context(Client(cluster, set_as_default=False))


def _leave_the_log_alone() -> None:
    """What dask logs is not the sweep's to tell; what matters of it is told in the sweep's own words."""
    for name in ("distributed", "tornado"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
