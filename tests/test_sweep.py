"""Sweeps as a user starts them: shared stages, jobs that misbehave, dead parents, two shells at once."""

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from kdx import cli
from kdx.sweeps.processes import processors
from tests.conftest import SLOW_TEACHER, TINY, Start, finish, same_weights, until, write_experiment
from tests.forks import kdx

PARALLEL = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def rows(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.rglob("sweep.csv")
    with open(path) as file:
        return list(csv.DictReader(file))


def logs(folder: Path, role: str) -> list[Path]:
    return list(folder.rglob(f"{role}/logs/*_log.csv"))


def test_parallel_sweep_trains_shared_stages_once_and_equals_a_sequential_one(tmp_path: Path, kdx_environment) -> None:
    axes = ["kd.temperature=2,4"]
    for name, launcher in (("one", []), ("two", PARALLEL)):
        (tmp_path / name).mkdir()
        sweep = kdx(tmp_path / name, kdx_environment, "--multirun", *TINY, *axes, *launcher)
        output = sweep.stdout
        assert sweep.returncode == 0, sweep.stderr
        assert "2 of 2 jobs finished" in output and "[2/2]" in output
        assert len(logs(tmp_path / name, "teacher")) == 1
        assert len(logs(tmp_path / name, "student")) == 2
        told = "2 jobs, 2 at a time" in output and "1 stage(s) that several jobs share, 1 at a time" in output
        assert told == bool(launcher)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    for first, second in zip(one, two, strict=True):
        assert first["student_fingerprint"] == second["student_fingerprint"]
        assert first["student_test_accuracy"] == second["student_test_accuracy"]  # threads=1 in both
    assert [row["teacher_status"] for row in one] == ["trained", "reused"]


def test_jobs_share_the_threads_unless_their_config_sets_them(tmp_path: Path, kdx_environment) -> None:
    write_experiment(tmp_path / "conf", "own", "epochs: 1\nseed: 1\nthreads: 3")
    write_experiment(tmp_path / "conf", "none", "epochs: 1")
    line = ["--config-dir", "conf", "--multirun", *TINY, "experiment=own,none", "stage=student", "kd=none"]
    line.remove("threads=1")
    sweep = kdx(tmp_path, kdx_environment, *line, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert sweep.returncode == 0, sweep.stderr
    share = f"threads={max(1, processors() // 2)}"
    for row in rows(tmp_path):
        folder = next(tmp_path.rglob("sweep.csv")).parent / row["job"]
        (config,) = folder.glob("student/logs/*_config.json")
        given = [one for one in json.loads((folder / "summary.json").read_text())["overrides"] if "threads" in one]
        own = row["experiment"] == "own"
        assert given == ([] if own else [share])
        assert json.loads(config.read_text())["config"]["threads"] == (3 if own else int(share.split("=")[1]))


def test_whatever_one_job_does_the_others_finish(tmp_path: Path, kdx_environment) -> None:
    bad = ["raises", "unpicklable", "exits", "exits_hard", "killed"]
    networks = ",".join(f"tests.tiny:{name}" for name in ["network", *bad, "wide"])
    only = [override for override in TINY if not override.startswith("model.student")]
    # the dead jobs' networks are built when the plan is checked, so the sweep shares the assistant all the same
    sweep = kdx(tmp_path, kdx_environment, "--multirun", *only, f"model.student={networks}", *PARALLEL)
    output = sweep.stdout + sweep.stderr
    assert sweep.returncode == 2 and "Traceback" not in output
    assert "2 of 7 jobs finished" in output
    by_network = {row["model.student"].split(":")[1]: row for row in rows(tmp_path)}
    assert by_network["network"]["state"] == by_network["wide"]["state"] == "finished"
    reasons = {name: by_network[name]["reason"] for name in bad}
    assert "the network is broken" in reasons["raises"]
    assert "cannot be pickled" in reasons["unpicklable"]
    assert "SystemExit: 0 (" in reasons["exits"] and "exit code 7" in reasons["exits_hard"]
    assert reasons["killed"] == "killed by SIGKILL (out of memory?)"
    for name, reason in reasons.items():
        assert reason in output, name
    assert len(logs(tmp_path, "teacher")) == 1


def test_started_again_a_sweep_runs_what_is_missing_only(tmp_path: Path, kdx_environment) -> None:
    first = kdx(tmp_path, kdx_environment, "--multirun", *TINY, "kd.temperature=2,4")
    assert "2 of 2 jobs finished" in first.stdout
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("best_acc_*.pth")}
    again = kdx(tmp_path, kdx_environment, "--multirun", *TINY, "kd.temperature=4,6,2")
    assert "3 of 3 jobs finished" in again.stdout
    new = set(tmp_path.rglob("best_acc_*.pth")) - set(trained)
    assert {path.parts[-3] for path in new} == {"assistant", "student"} and len(new) == 2
    assert all(path.stat().st_mtime_ns == before for path, before in trained.items())


def alive(folder: Path) -> list[int]:
    return [int(path.name) for path in (folder / "pids").iterdir() if is_running(path.name)]


def is_running(pid: str) -> bool:
    """Also False of a process that has ended and that its parent, which may be gone, has not waited for."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def someone_waits(folder: Path) -> bool:
    return any("waiting for the teacher" in path.read_text() for path in folder.rglob("run.log"))


def test_when_the_parent_dies_nobody_goes_on_training(start: Start, tmp_path: Path, kdx_environment, gate) -> None:
    sweep = start(tmp_path, kdx_environment | gate, "--multirun", *SLOW_TEACHER, "seed=1,2", *PARALLEL)
    until(lambda: len(alive(tmp_path)) == 2 and len(list(tmp_path.rglob("latest.pth"))) == 2)
    sweep.kill()
    until(lambda: not alive(tmp_path))  # the gate stays closed: by themselves they never end
    finish(sweep)


def test_two_shells_train_a_shared_stage_once(start: Start, tmp_path: Path, kdx_environment, gate) -> None:
    first = start(tmp_path, kdx_environment | gate, *SLOW_TEACHER, "stage=teacher")
    until(lambda: bool(list(tmp_path.rglob("*.attempt"))))
    second = start(tmp_path, kdx_environment, *SLOW_TEACHER, "stage=teacher")
    until(lambda: someone_waits(tmp_path))
    (tmp_path / "gate").touch()
    outputs = [finish(first), finish(second)]
    assert first.returncode == second.returncode == 0, outputs
    assert f"waiting for the teacher that process {first.pid} on " in outputs[1]
    assert len(logs(tmp_path, "teacher")) == 1
    summaries = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("summary.json"))]
    assert [summary["teacher"]["status"] for summary in summaries] == ["trained", "reused"]


def test_a_waiting_run_takes_over_and_ends_like_clean(start: Start, tmp_path: Path, kdx_environment, gate) -> None:
    first = start(tmp_path, kdx_environment | gate, *SLOW_TEACHER, "stage=teacher")
    until(lambda: bool(list(tmp_path.rglob("latest.pth"))))
    second = start(tmp_path, kdx_environment, *SLOW_TEACHER, "stage=teacher")
    until(lambda: someone_waits(tmp_path))
    os.kill(first.pid, signal.SIGKILL)
    output = finish(second)
    assert second.returncode == 0 and "resumed after epoch 1 of" in output, output
    (tmp_path / "clean").mkdir()
    kdx(tmp_path / "clean", kdx_environment, *SLOW_TEACHER, "stage=teacher")
    ours, theirs = (next((tmp_path / where).rglob("index/*.json")) for where in ("outputs", "clean"))
    told, expected = json.loads(ours.read_text()), json.loads(theirs.read_text())
    assert told["validation"] == expected["validation"] and told["test"] == expected["test"]
    assert same_weights(tmp_path / "outputs" / told["checkpoint"], tmp_path / "clean/outputs" / expected["checkpoint"])


def test_interrupted_sweep_saves_its_jobs_and_ends_like_clean(
    start: Start, tmp_path: Path, kdx_environment, gate
) -> None:
    sweep = start(tmp_path, kdx_environment | gate, "--multirun", *SLOW_TEACHER, "stage=teacher", "seed=1,2")
    until(lambda: (tmp_path / "gate.reached").exists())
    os.kill(sweep.pid, signal.SIGINT)
    time.sleep(0.5)  # for the job to be asked before its step ends
    (tmp_path / "gate").touch()
    output = finish(sweep)
    assert sweep.returncode == 128 + signal.SIGINT, output
    until(lambda: not alive(tmp_path))
    assert "0 of 2 jobs finished" in output and "Traceback" not in output
    (summary,) = tmp_path.rglob("0/summary.json")
    assert json.loads(summary.read_text())["status"] == "stopped"
    latest = torch.load(summary.parent / "teacher/checkpoints/latest.pth", weights_only=True)
    assert latest["progress"]["epoch_under_way"]["step"] == 3  # of the second epoch: nothing of it is lost
    sweep = ["--multirun", *SLOW_TEACHER, "stage=teacher", "seed=1,2"]
    again = kdx(tmp_path, kdx_environment, *sweep, f"hydra.sweep.dir={summary.parent.parent}").stdout
    assert "2 of 2 jobs finished" in again and "resumed after epoch 1, step 3 of" in again, again
    (tmp_path / "clean").mkdir()
    kdx(tmp_path / "clean", kdx_environment, *SLOW_TEACHER, "stage=teacher", "seed=1")
    (ours,), (theirs,) = summary.parent.rglob("best_acc_*.pth"), (tmp_path / "clean").rglob("best_acc_*.pth")
    assert same_weights(ours, theirs)


@pytest.mark.parametrize(("number", "group"), [(signal.SIGUSR1, False), (signal.SIGHUP, True)])
def test_a_signal_to_the_sweep_or_to_its_whole_group_saves_all_jobs(
    start: Start, tmp_path: Path, kdx_environment, gate, number: signal.Signals, group: bool
) -> None:
    """A terminal that closes sends SIGHUP to the group, SLURM what it is asked to: the server of jobs must not die."""
    sweep = start(tmp_path, kdx_environment | gate, "--multirun", *SLOW_TEACHER, "stage=teacher", "seed=1,2", *PARALLEL)
    until(lambda: len(list(tmp_path.rglob("latest.pth"))) == 2 and (tmp_path / "gate.reached").exists())
    (os.killpg if group else os.kill)(sweep.pid, number)
    time.sleep(0.5)  # for the jobs to be asked before their steps end
    (tmp_path / "gate").touch()
    output = finish(sweep)
    assert sweep.returncode == 128 + number and "Traceback" not in output, output
    assert output.splitlines()[-1] == f"stopped by {number.name}{cli.GO_ON}"
    until(lambda: not alive(tmp_path))
    summaries = list(tmp_path.rglob("[01]/summary.json"))
    assert [json.loads(path.read_text())["status"] for path in summaries] == ["stopped", "stopped"]
    for path in summaries:
        latest = torch.load(path.parent / "teacher/checkpoints/latest.pth", weights_only=True)
        assert latest["progress"]["epoch_under_way"]["step"] in (1, 2, 3)  # of the second epoch


def test_a_signal_to_a_search_saves_its_jobs(start: Start, tmp_path: Path, kdx_environment, gate) -> None:
    overrides = ["experiment=search_kd", *SLOW_TEACHER, "search.prune=false"]
    search = start(tmp_path, kdx_environment | gate, *overrides, module="kdx.search")
    until(lambda: (tmp_path / "gate.reached").exists())
    os.kill(search.pid, signal.SIGTERM)
    time.sleep(0.5)
    (tmp_path / "gate").touch()
    output = finish(search)
    assert search.returncode == 128 + signal.SIGTERM and "Traceback" not in output, output
    assert output.splitlines()[-1] == f"stopped by SIGTERM{cli.GO_ON}"
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["status"] == "stopped"


def test_search_goes_on_where_it_stopped_and_reports(tmp_path: Path, kdx_environment) -> None:
    def run(*extra: str) -> subprocess.CompletedProcess[str]:
        return kdx(tmp_path, kdx_environment, "experiment=search_kd", *TINY, "epochs=1", *extra, module="kdx.search")

    first = run("search.trials=2")
    assert first.returncode == 0, first.stderr
    assert "UserWarning" not in first.stdout + first.stderr
    assert "2 of 2 jobs finished" in first.stdout and "Best on validation: kd.temperature=" in first.stdout
    second = run("search.trials=4", "search.n_jobs=2")
    assert second.returncode == 0, second.stderr
    assert "2 trials, 2 at a time" in second.stdout and "at a time" not in first.stdout
    assert "trial 2 " in second.stdout and "trial 1 " not in second.stdout and "4 of 4 jobs finished" in second.stdout
    assert len(logs(tmp_path, "teacher")) == 1
    assert (tmp_path / "outputs" / "search" / "search_kd" / "report.html").exists()
    wrong = run("~search.space", "+search.space={kd.temprature:{low:1,high:2}}")
    assert wrong.returncode == 2 and "kd.temprature: no such key; did you mean 'kd.temperature'?" in wrong.stderr
