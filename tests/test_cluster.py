"""Jobs on the workers of a dask cluster: two of them, processes of their own, with a scheduler of its own."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdx.compose import compose_line
from kdx.errors import KdxError
from kdx.search import OWN, as_overrides, read_search
from kdx.sweeps.build import build
from kdx.sweeps.jobs import Job, JobEnd, Program
from kdx.sweeps.launch import Executors, Launch, executors
from kdx.sweeps.parallel import THREADS, run_parallel
from tests.acts import act
from tests.conftest import CONF, REPO, SLOW_TEACHER, Start, finish, until
from tests.test_sweep import is_running, rows

pytest.importorskip("distributed")
from kdx.sweeps.cluster_jobs import ClusterJobs  # noqa: E402

ON_CLUSTER = ["hydra/launcher=joblib", "hydra.launcher.backend=dask"]
PROGRAM = Program(act, CONF, (), lambda conf, base, jobs: [])
Begin = Callable[..., Executors]


class Processes:
    """A scheduler and two workers, whose slow networks wait for `gate`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.gate = folder, folder / "gate"
        (folder / "pids").mkdir()
        gated = {"TINY_GATE": str(self.gate), "TINY_PIDS": str(folder / "pids")}
        self.environment = {**os.environ, "PYTHONPATH": str(REPO), "PYTHONWARNINGS": ""} | gated
        told = folder / "scheduler.json"
        self.all = [self.start("dask_scheduler", "--port", "0", "--host", "127.0.0.1", "--scheduler-file", str(told))]
        until(lambda: told.exists() and told.read_text().endswith("}"))
        self.address = json.loads(told.read_text())["address"]
        self.workers = [self.work() for _ in range(2)]
        until(lambda: (folder / "dask_worker.log").read_text().count("Registered to:") == 2)

    def work(self) -> subprocess.Popen[bytes]:
        return self.start("dask_worker", self.address, "--no-nanny", "--nthreads", "1")

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--no-dashboard", *arguments]
        with open(self.folder / f"{module}.log", "ab") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)
        return process


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    processes = Processes(tmp_path_factory.mktemp("cluster"))
    yield processes
    for process in [*processes.all, *processes.workers]:
        process.kill()
        process.wait()


@pytest.fixture
def on_cluster(cluster: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.address)
    opened = []

    def begin(**options: float) -> Executors:
        opened.append(executors(PROGRAM, Launch(-1, cluster=True, **options), 9, tmp_path))  # type: ignore[arg-type]
        return opened[-1].__enter__()

    yield begin
    for entered in opened:
        entered.__exit__(None, None, None)


def ends_of(executor: Executors, *overrides: str, folder: Path) -> list[JobEnd]:
    jobs, ends = [Job(number, (what,), folder / str(number)) for number, what in enumerate(overrides)], {}
    on = executor(len(jobs))
    run_parallel(lambda job: (job, on.run(job)), jobs, lambda told: ends.update([told]), on.stop, len(jobs), THREADS)
    return [ends[job] for job in jobs]


def test_a_killed_workers_job_goes_on_elsewhere_and_the_table_says_who_ran_what(
    cluster: Processes, start: Start, tmp_path: Path, kdx_environment: dict[str, str]
) -> None:
    cluster.gate.touch()
    environment = kdx_environment | {"DASK_SCHEDULER_ADDRESS": cluster.address}
    axes = ["stage=teacher", "seed=1,2,3,4,5,6,7,8", "hydra.sweep.dir=sweep"]
    sweep = start(tmp_path, environment, "--multirun", *SLOW_TEACHER, *axes, *ON_CLUSTER)
    until(lambda: len(ended(tmp_path)) >= 2)
    cluster.gate.unlink()
    time.sleep(1)  # for those that were past the gate
    until(lambda: len(list(tmp_path.glob("sweep/*/teacher/checkpoints/latest.pth"))) == len(ended(tmp_path)) + 2)
    victim = cluster.workers[0]
    victim.kill()
    victim.wait()
    cluster.gate.touch()
    output = finish(sweep)
    assert sweep.returncode == 0 and "8 of 8 jobs finished" in output and "Traceback" not in output, output
    assert "2 worker(s), a job a worker" in output and "8 jobs, 2 at a time" in output
    assert output.count("is gone; it runs again on another") == 1
    ran = [row["worker"] for row in rows(tmp_path)]
    names = [f"{socket.gethostname()} {worker.pid}" for worker in cluster.workers]
    assert set(ran) == set(names) and ran.count(names[1]) > ran.count(names[0])
    assert names[0] in (tmp_path / "sweep" / "sweep.md").read_text()
    assert sum("resumed after epoch 1" in path.read_text() for path in tmp_path.glob("sweep/*/run.log")) == 1
    cluster.workers[0] = cluster.work()


def ended(folder: Path) -> list[Path]:
    return [
        path for path in folder.glob("sweep/*/summary.json") if json.loads(path.read_text())["status"] == "finished"
    ]


def test_whatever_a_job_does_its_worker_tells_it_and_takes_the_next(on_cluster: Begin, tmp_path: Path) -> None:
    wanted = ["act.exit=3", "act.kill=9", "act.exit=7", f"act.sleep={tmp_path / 'asleep'}", "act.exit=4"]
    ends_of(on_cluster(), "act.exit=0", "act.exit=0", folder=tmp_path)  # the servers of processes are there by now
    ends = ends_of(on_cluster(timeout=2), *wanted, folder=tmp_path)
    reasons = [str(end.reason) for end in ends]
    assert ["exit code 3 " in reasons[0], "exit code 7 " in reasons[2], "exit code 4 " in reasons[4]] == [True] * 3
    assert reasons[1] == "killed by SIGKILL (out of memory?)"
    assert reasons[3] == "took longer than 2 s (hydra.launcher.timeout)"
    assert all(str(end.worker).startswith(socket.gethostname()) for end in ends)


@pytest.mark.parametrize("how", ["stop", "give up", "the sweep is gone"])
def test_a_job_ends_with_its_sweep(on_cluster: Begin, tmp_path: Path, how: str) -> None:
    asleep, ends = tmp_path / "asleep", []
    executor = on_cluster()(2)
    assert isinstance(executor, ClusterJobs) and executor.at_once == 2
    job = Job(0, (f"act.sleep={asleep}",), tmp_path / "0")

    def run() -> None:
        try:
            ends.append(executor.run(job, lambda: "pruned" if how == "give up" and asleep.exists() else None))
        except KdxError as error:
            ends.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    until(asleep.exists)
    assert list(executor.at_work()) == [job]
    if how == "stop":
        executor.stop()
    elif how == "the sweep is gone":
        executor.cluster.client.close()
    until(lambda: not is_running(asleep.read_text()))
    thread.join()
    if how == "give up":
        assert [end.reason for end in ends] == ["pruned"]
    else:
        assert ends == [None] if how == "stop" else "start the same command again" in ends[0]
    assert not executor.at_work()


def test_a_worker_with_other_code_gets_no_job(on_cluster: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdx.sweeps.cluster.build", lambda: build() | {"torch": "1.0"})
    with pytest.raises(KdxError) as error:
        on_cluster()
    assert f"has torch {build()['torch']} instead of 1.0" in str(error.value) and "\n" not in str(error.value)


def test_a_worker_that_does_not_see_the_folder_gets_no_job(
    cluster: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.address)
    with pytest.raises(KdxError, match="does not see .*nowhere: a file system that all share is needed"):
        with executors(PROGRAM, Launch(-1, cluster=True), 1, tmp_path / "nowhere"):
            pass


def test_what_is_no_scheduler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdx.sweeps.cluster_open.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute, socket.create_server(("127.0.0.1", 0)) as closed:
        addresses = [f"tcp://127.0.0.1:{mute.getsockname()[1]}", "nonsense://x"]
        addresses.append(f"127.0.0.1:{closed.getsockname()[1]}")
        closed.close()
        for address in addresses:
            monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
            with pytest.raises(KdxError) as error, executors(PROGRAM, Launch(2, cluster=True), 2, tmp_path):
                pass
            told = str(error.value)
            assert told.startswith(f"DASK_SCHEDULER_ADDRESS={address}: no scheduler of dask answers: ")
            assert "\n" not in told


def test_without_an_address_the_workers_are_this_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    with executors(PROGRAM, Launch(1, cluster=True), 2, tmp_path) as executor:
        ends = ends_of(executor, "act.exit=3", "act.exit=4", folder=tmp_path)
    assert ["exit code 3 " in str(ends[0].reason), "exit code 4 " in str(ends[1].reason)] == [True, True]
    assert len({end.worker for end in ends}) == 1


def test_how_many_jobs_are_handed_out() -> None:
    assert [Launch(n, cluster=True).handed_out(10) for n in (-1, 1, 3, 16)] == [10, 1, 3, 10]


def test_a_search_takes_every_key_of_its_own() -> None:
    own = {"name": "x", "trials": "3", "n_jobs": "2", "prune": "false", "backend": "dask"}
    assert own.keys() == OWN.keys()
    line = as_overrides(["experiment=search_kd", *(f"{key}={value}" for key, value in own.items())])
    requested = read_search(compose_line(CONF, line)[0])
    assert (requested.n_jobs, requested.prune, requested.backend) == (2, False, "dask")
