"""The launcher's keys, and the processes that jobs are: what joblib schedules, ends, and what is told of it."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdx import cli
from kdx.config_loader import add_plugins
from kdx.errors import KdxError
from kdx.explain import explain
from kdx.sweeps.jobs import Job, JobEnd, Program
from kdx.sweeps.launch import Launch
from kdx.sweeps.parallel import THREADS, run_parallel
from kdx.sweeps.processes import JobProcesses
from tests.acts import SlowToLoad, act
from tests.conftest import CONF, TINY, until


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[object]:
    program = Program(act, CONF, (), lambda conf, base, jobs: [])
    everyone: list[JobProcesses] = []

    def make(at_once: int, **options: float) -> JobProcesses:
        everyone.append(JobProcesses(program, at_once, **options))  # type: ignore[arg-type]
        return everyone[-1]

    yield make
    for processes in everyone:
        processes.stop()


def jobs(folder: Path, *overrides: str) -> list[Job]:
    return [Job(number, (override,), folder / str(number)) for number, override in enumerate(overrides)]


def ends_of(processes: JobProcesses, todo: list[Job], at_once: int, options: dict = THREADS) -> dict[int, JobEnd]:
    ends: dict[int, JobEnd] = {}

    def note(result: tuple[Job, JobEnd | None]) -> None:
        job, end = result
        assert end is not None
        ends[job.number] = end

    run_parallel(lambda job: (job, processes.run(job)), todo, note, processes.stop, at_once, options)
    return ends


def test_a_timeout_ends_the_one_job_and_is_told(begin, tmp_path: Path) -> None:
    todo = jobs(tmp_path, "act.exit=3", f"act.sleep={tmp_path / 'asleep'}", "act.exit=4", "act.exit=5")
    ends = ends_of(begin(2, timeout=30), todo[:1], 1)  # the server of processes is there by now
    ends |= ends_of(begin(2, timeout=3), todo[1:], 2)
    assert ends[1].reason == "took longer than 3 s (hydra.launcher.timeout)" and ends[1].state == "failed"
    assert [f"exit code {code} " in str(ends[number].reason) for number, code in ((0, 3), (2, 4), (3, 5))] == [True] * 3
    assert 3 <= ends[1].seconds < 30


@pytest.mark.parametrize("options", [{}, {"batch_size": 3, "pre_dispatch": "all"}])
def test_jobs_that_end_at_one_time_keep_their_own_exit_codes(begin, tmp_path: Path, options: dict) -> None:
    """Starting a process looks at the ends of all others: who reads an exit code twice gets 255."""
    codes = list(range(1, 13))
    ends = ends_of(begin(8), jobs(tmp_path, *(f"act.exit={code}" for code in codes)), 8, {**THREADS, **options})
    assert [f"exit code {code} " in str(ends[code - 1].reason) for code in codes] == [True] * len(codes)


def test_an_error_of_the_sweep_itself_ends_the_jobs_and_starts_no_more(begin, tmp_path: Path) -> None:
    asleep = tmp_path / "asleep"
    todo = jobs(tmp_path, f"act.sleep={asleep}", "act.exit=3", *(f"act.sleep={tmp_path / 'late'}",) * 4)
    processes = begin(2)

    def note(result: tuple[Job, JobEnd | None]) -> None:
        if result[1] is not None:
            until(asleep.exists)
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run_parallel(lambda job: (job, processes.run(job)), todo, note, processes.stop, 2, THREADS)
    assert not processes.running
    assert processes.run(todo[-1]) is None


def test_a_job_whose_process_is_still_being_made_is_stopped_too(tmp_path: Path) -> None:
    """It ignores signals until then, as the server does that it is a fork of."""
    begun, asleep = tmp_path / "begun", tmp_path / "asleep"
    processes = JobProcesses(Program(SlowToLoad(begun), CONF, (), lambda conf, base, jobs: []))  # type: ignore[arg-type]
    (job,) = jobs(tmp_path, f"act.sleep={asleep}")
    running = threading.Thread(target=processes.run, args=(job,))
    running.start()
    until(begun.exists)
    processes.stop()
    running.join()
    assert not asleep.exists() and not processes.running and not processes.ended


def test_an_error_while_a_job_is_waited_for_ends_that_job(begin, tmp_path: Path) -> None:
    processes = begin(1)

    def give_up() -> str | None:
        raise OSError("no study")

    (job,) = jobs(tmp_path, f"act.sleep={tmp_path / 'asleep'}")
    with pytest.raises(OSError, match="no study"):
        processes.run(job, give_up)
    assert not processes.running
    processes.stop()  # does not wait for what is gone


def test_jobs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdx.sweeps.launch.processors", lambda: 4)
    assert [Launch(n).at_once(10) for n in (1, 3, 16, -1, -2, -9)] == [1, 3, 10, 4, 3, 1]
    assert [Launch(n, (0, 1)).at_once(10) for n in (1, 3, -1, -2)] == [1, 3, 2, 1]


REFUSED = {
    "hydra.launcher.n_jobs=0": "hydra.launcher.n_jobs=0: a whole number of at least 1 is needed; or",
    "hydra.launcher.n_jobs=two": "hydra.launcher.n_jobs=two: Value 'two' of type 'str' could not be converted to Integer",
    "hydra.launcher.gpu_ids=[0,-1]": "hydra.launcher.gpu_ids=[0, -1]: -1: a whole number of at least 0 is needed, or null",
    "hydra.launcher.gpu_ids=a": "hydra.launcher.gpu_ids=a: Invalid value assigned",
    "hydra.launcher.timeout=0": "hydra.launcher.timeout=0.0: a finite number above 0 is needed, or null",
    "hydra.launcher.timeout=nan": "hydra.launcher.timeout=nan: a finite number above 0",
    "hydra.launcher.backend=loky": "hydra.launcher.backend=loky: choose threading, dask",
    "hydra.launcher.prefer=process": "hydra.launcher.prefer=process: choose processes, threads; did you mean 'processes'?",
    "hydra.launcher.require=x": "hydra.launcher.require=x: choose sharedmem, or null",
    "hydra.launcher.verbose=-1": "hydra.launcher.verbose=-1: a whole number of at least 0 is needed",
    "hydra.launcher.pre_dispatch=n_job": "hydra.launcher.pre_dispatch=n_job: all, a number or e.g. 2*n_jobs is needed",
    "hydra.launcher.batch_size=0": "hydra.launcher.batch_size=0: auto or a number is needed",
    "hydra.launcher.max_nbytes=1X": "hydra.launcher.max_nbytes=1X: a number of bytes such as 1M is needed, or null",
    "hydra.launcher.mmap_mode=z": "hydra.launcher.mmap_mode=z: choose r, r+, w+, c, or null",
    "+hydra.launcher.n_job=2": "hydra.launcher.n_job: no such key; did you mean 'n_jobs'?",
    "hydra.launcher=3": "hydra.launcher=3: an option of the group, such as hydra/launcher=basic, is needed",
    "hydra.launcher._target_=os.system": "hydra.launcher._target_=os.system: no such plugin",
    "hydra.launcher._target_=hydra_plugins.no.One": "hydra.launcher._target_=hydra_plugins.no.One: no such plugin",
    "hydra.sweeper=3": "hydra.sweeper._target_=None: no such plugin",
}


@pytest.mark.parametrize("override", REFUSED)
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_wrong_key_of_the_launcher_is_one_line_before_any_job(override: str, launcher: str, tmp_path: Path) -> None:
    line = [
        "--multirun",
        *TINY,
        "seed=1,2",
        f"hydra/launcher={launcher}",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        override,
    ]
    with pytest.raises(Exception) as error:
        cli.check_jobs(CONF, line)
    told = explain(error.value, CONF)
    assert told.startswith(REFUSED[override]) and "\n" not in told
    assert not (tmp_path / "sweep").exists()


def test_what_a_cluster_needs_is_told_before_any_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = ["--multirun", *TINY, "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.backend=dask"]
    line += ["hydra.launcher.gpu_ids=[0]", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    with pytest.raises(KdxError) as error:
        cli.check_jobs(CONF, line)
    assert "hydra.launcher.backend=dask: needs distributed: pip install" in str(error.value)
    assert "hydra.launcher.gpu_ids=[0]: a worker of backend=dask has its own GPUs" in str(error.value)
    assert not (tmp_path / "sweep").exists()


def test_every_key_of_joblibs_launcher_is_taken(tmp_path: Path) -> None:
    keys = ["n_jobs=2", "backend=threading", "prefer=threads", "require=sharedmem", "verbose=1", "timeout=1.5"]
    keys += ["pre_dispatch=all", "batch_size=2", "temp_folder=/tmp", "max_nbytes=1M", "mmap_mode=c", "gpu_ids=[0,0]"]
    for launcher in ("basic", "joblib"):
        line = [
            "--multirun",
            *TINY,
            "seed=1,2",
            f"hydra/launcher={launcher}",
            *(f"hydra.launcher.{key}" for key in keys),
        ]
        assert not cli.check_jobs(CONF, line).answers


def test_the_launcher_is_joblibs() -> None:
    add_plugins()
    from hydra.core.config_store import ConfigStore
    from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
    from hydra_plugins.kdx_launcher import ProcessLauncher

    assert issubclass(ProcessLauncher, JoblibLauncher)
    for name in ("basic", "joblib"):
        node = ConfigStore.instance().load(f"hydra/launcher/{name}.yaml").node
        assert set(JobLibLauncherConf.__dataclass_fields__) | {"gpu_ids"} == set(node)
        assert node._target_ == "hydra_plugins.kdx_launcher.ProcessLauncher"
