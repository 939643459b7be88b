"""kdx as a process: start-up without torch, one-line errors, from a checkout and from a wheel."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdx import cli
from kdx.compose import options_first
from kdx.config.settings import read_settings
from kdx.errors import KdxError
from tests.conftest import CONF, REPO, TINY, write_experiment
from tests.forks import kdx

WITHOUT_TORCH = """
import runpy, sys
sys.argv = ["kdx", *{arguments!r}]
try:
    runpy.run_module("kdx.run", run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"torch", "torchvision", "torchmetrics", "matplotlib", "pandas", "sklearn"}}
assert not heavy & set(sys.modules)
"""


def run_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("summary.json"))


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["--cfg", "job", "experiment=quickstart"]])
def test_help_and_config_answer_without_torch(arguments: list[str], tmp_path: Path, kdx_environment) -> None:
    script = WITHOUT_TORCH.format(arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=kdx_environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "temperature" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("theirs", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_waiting_threads_leave_the_processors_to_other_trainings(
    theirs: dict[str, str], spins: str, tmp_path: Path, kdx_environment
) -> None:
    """Set before torch loads its thread pool, also for the jobs that a sweep starts; a user's own setting stands."""
    script = WITHOUT_TORCH.format(arguments=["--cfg", "job"])
    script += 'import os\nprint("spins", os.environ.get("GOMP_SPINCOUNT"))\n'
    environment = {key: value for key, value in kdx_environment.items() if not key.startswith(("OMP", "GOMP"))}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment | theirs, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == f"spins {spins}", done.stdout + done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path, kdx_environment) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "kdx.run", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=kdx_environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_run_prints_its_plan_and_table_and_a_second_one_reuses(tmp_path: Path, kdx_environment) -> None:
    """pitfall(21): outputs land under the folder where kdx was called, and relative paths hold."""
    first = kdx(tmp_path, kdx_environment, *TINY)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("plan:\n  teacher") and "test acc" in first.stdout and first.stderr == ""
    (folder,) = run_folders(tmp_path)
    assert folder.relative_to(tmp_path).parts[:3] == ("outputs", "from_scratch", "tiny")
    assert {".hydra", "run.log", "summary.json", "teacher", "assistant", "student"} <= {
        p.name for p in folder.iterdir()
    }
    assert "test acc" in (folder / "run.log").read_text()
    planned = kdx(tmp_path, kdx_environment, *TINY, "plan=true")
    assert planned.returncode == 0 and planned.stdout.count(" reuse outputs/") == 3
    assert run_folders(tmp_path) == [folder] and len(list(folder.parent.iterdir())) == 1
    refused = kdx(tmp_path, kdx_environment, *TINY, "model.student=tests.tiny:nothing")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "tests.tiny:nothing" in refused.stderr
    assert len(list(folder.parent.iterdir())) == 1


def test_wrong_value_ends_fast_with_one_line(tmp_path: Path, kdx_environment) -> None:
    done = kdx(tmp_path, kdx_environment, *TINY, "kd.temperature=0")
    assert done.returncode == 2
    assert done.stderr == "error: kd.temperature=0: a finite number above 0 is needed\n"
    assert list(tmp_path.iterdir()) == []


def test_pretrained_runs_are_filed_as_such(tmp_path: Path, kdx_environment) -> None:
    done = kdx(tmp_path, kdx_environment, "--cfg", "all", "--resolve", "-p", "hydra.run", "model.pretrained=true")
    assert "imagenet_pretrained/cifar10" in done.stdout


def test_users_own_folder_of_configs(tmp_path: Path, kdx_environment) -> None:
    """--config-dir: an experiment, a loss, a data set, a network and a longer chain of the user's own."""
    (tmp_path / "my_conf" / "experiment").mkdir(parents=True)
    (tmp_path / "my_conf" / "stage").mkdir()
    (tmp_path / "my_conf" / "kd").mkdir()
    (tmp_path / "mine.py").write_text(
        "import torch.nn.functional as F\n"
        "class Matching:\n"
        "    def __init__(self, weight):\n"
        "        self.weight = weight\n"
        "    def __call__(self, student, guide, labels):\n"
        "        return F.cross_entropy(student, labels) + self.weight * F.mse_loss(student, guide)\n"
    )
    (tmp_path / "my_conf" / "kd" / "matching.yaml").write_text("_target_: mine.Matching\nweight: 0.5\n")
    (tmp_path / "my_conf" / "stage" / "four.yaml").write_text(
        "# @package _global_\n"
        "defaults: [all@stage]\n"
        "stage: {professor: {guide: null}, teacher: {guide: professor}}\n"
        "model: {professor: tests.tiny:wide}\n"
    )
    (tmp_path / "my_conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /dataset: digits}, {override /kd: matching}, {override /stage: four}]\n"
        "dataset: {name: tiny, augment: [crop], source: {_target_: tests.tiny.dataset}}\n"
        "model: {teacher: tests.tiny:wide, assistant: tests.tiny:network, student: tests.tiny:network}\n"
        "epochs: 1\nbatch_size: 8\nthreads: 1\namp: 'off'\n"
    )
    environment = {**kdx_environment, "PYTHONPATH": f"{REPO}{os.pathsep}{tmp_path}"}
    done = kdx(tmp_path, environment, "--config-dir", "my_conf", "experiment=mine")
    assert done.returncode == 0, done.stderr + done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[1:5]] == [
        "professor",
        "teacher",
        "assistant",
        "student",
    ]


def test_basic_multirun_trains_one_teacher(tmp_path: Path, kdx_environment) -> None:
    """pitfall(26): jobs have folders of their own, numbered."""
    done = kdx(tmp_path, kdx_environment, "--multirun", *TINY, "kd.temperature=2,4")
    assert done.returncode == 0, done.stderr
    folders = run_folders(tmp_path)
    assert [folder.name for folder in folders] == ["0", "1"]
    assert folders[0].relative_to(tmp_path).parts[:3] == ("outputs", "sweeps", "tiny")
    assert len(list(tmp_path.rglob("*_teacher_log.csv"))) == 1
    assert len(list(tmp_path.rglob("*_student_log.csv"))) == 2


def test_wheel_in_an_empty_folder(tmp_path: Path) -> None:
    """The wheel carries its configs, and console script and module both work away from the checkout."""
    wheel_dir, site, empty = tmp_path / "wheel", tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheel_dir)]
    subprocess.run(build, cwd=REPO, check=True, capture_output=True)
    (wheel,) = wheel_dir.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(site)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = [sys.executable, "-c", "import kdx; print(kdx.__file__)"]
    found = subprocess.run(where, cwd=empty, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(site))
    done = kdx(
        empty, environment, "experiment=quickstart", "plan=true", "model.teacher=resnet18", "model.assistant=resnet18"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" train 4 epochs") == 3 and not (empty / "data").exists()
    script = (
        "import sys; sys.argv=['kdx', '--cfg', 'job']; from kdx.run import main; main()"  # as the console script does
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=empty, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "temperature: 4.0" in done.stdout


def test_a_refused_or_planned_run_leaves_every_folder_as_it_was(tmp_path: Path, kdx_environment) -> None:
    """Also one that holds other runs, an earlier run's own, an empty one, and those above a new one."""
    for folder in ("shared/other", "earlier/.hydra", "empty", "outputs/from_scratch"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("shared/other/x", "earlier/.hydra/config.yaml", "earlier/.hydra/mine", "earlier/run.log"):
        (tmp_path / name).write_text("old")

    def told() -> dict[str, str]:
        return {str(p.relative_to(tmp_path)): p.read_text() if p.is_file() else "" for p in tmp_path.rglob("*")}

    before = told()
    for wish in (["plan=true"], ["model.student=tests.tiny:nothing"]):
        for where in ("shared", "earlier", "empty", "new/er", None):
            own = [] if where is None else [f"hydra.run.dir={where}"]
            done = kdx(tmp_path, kdx_environment, *TINY, *wish, *own)
            assert done.returncode == (0 if wish == ["plan=true"] else 2), done.stderr
            after = told()
            assert after.pop("earlier/run.log").startswith("old")
            assert after == {name: text for name, text in before.items() if name != "earlier/run.log"}, (wish, where)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--cfg", "nix"], "--cfg/-c: invalid choice: 'nix' (choose from 'job', 'hydra', 'all'); see kdx --hydra-help"),
        (["--config-name"], "--config-name/-cn: expected one argument; see kdx --hydra-help"),
        (["--run", "-m"], "--run --multirun: choose one"),
        (["--resolve"], "--resolve: only with --cfg or --help"),
        (["--experiment", "quickstart"], "unknown option --experiment: keys are written key=value, without dashes; did you mean experiment=...?"),
        (["quickstart"], "quickstart: a value is missing, write quickstart=VALUE; did you mean experiment=quickstart?"),
        (["--experimental-rerun", "x"], "--experimental-rerun: starts what a pickle holds; use the run's command, in summary.json"),
        (["--config-path", "x"], "--config-path: kdx needs its own configs; add yours with --config-dir"),
        (["--epochs=3"], "unknown option --epochs=3: keys are written key=value, without dashes; did you mean epochs=...?"),
        (["kd=none", "-m", "seed=0,1", "epochs=0"], "epochs=0: a whole number of at least 1 is needed (in the job kd=none seed=0 epochs=0)"),
        (["~scheduler"], "scheduler: it is left out, and needed; write scheduler=none to do without"),
        (["~dataset"], "dataset.name: it is left out, and needed"),
        (["~hydra/job_logging"], "~hydra/job_logging: it is needed; write hydra/job_logging=none to do without"),
        (["~nix"], "Could not delete from config. 'nix' does not exist."),
        (["+x=1"], "x: no such key"),
        (["++x=1"], "x: no such key"),
        (["hydra.verbose=5"], "hydra.verbose=5: "),
        (["dataset=pathmnist", "~dataset.name"], "dataset.name: it is left out, and needed"),  # others refer to it
        (["~epochs", "~data_dir"], "epochs: it is left out, and needed; data_dir: it is left out, and needed"),
        (["optimizer=sgd", "optimizer.betas=[0,0]"], "optimizer.betas: optimizer=sgd has no such key; its keys: decay, lr, weight_decay, momentum"),
        (["dataset.white=5"], "dataset.white=5: dataset=cifar10 reads no picture files; choose dataset=imagefolder"),
        (["optimizer.eps=1e-7"], "optimizer.eps: not among the keys of the chosen option; write +optimizer.eps=VALUE"),
        (["optimizer.betta=5"], "optimizer.betta: no such key; did you mean 'optimizer.betas'?"),
        (["hydra.mode=x"], "Error merging override hydra.mode=x Invalid value 'x', expected one of [RUN, MULTIRUN]"),
        (["hydra.job.name=a/b"], "hydra.job.name=a/b: a plain name is needed: it becomes that of the log file"),
    ],
)  # fmt: skip
def test_command_lines_that_are_wrong_are_told_by_what_was_written(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kdx", *arguments])  # of which the error tells
    with pytest.raises(SystemExit) as end, cli.one_line_errors(CONF):
        cli.check_jobs(CONF, arguments)
    errors = capsys.readouterr().err
    assert end.value.code == 2 and errors.startswith(f"error: {told}") and errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("swept", "checked", "wrong"),
    [
        (["seed=0,1,2", "epochs=1,2,3"], 5, None),  # three seeds and three numbers, of which the first job has one each
        (["seed=0,1,2"], 3, None),
        (["seed=0,1,x"], 3, "seed=x: "),
        (["seed=0,1", "epochs=1,2,0"], 4, "epochs=0: "),
        (["batch_size=16,8", "seed=2,5", "micro_batches=${seed}"], 4, "micro_batches=5: "),
        (["batch_size=16,8", "seed=2,5", "micro_batches='${oc.select:seed}'"], 4, "micro_batches=5: "),
        (["experiment=none,tied", "seed=2,5", "epochs=1"], 4, "micro_batches=5: "),  # of an option that is swept
    ],
)
def test_of_jobs_that_differ_in_the_seed_alone_one_is_checked(
    swept: list[str], checked: int, wrong: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path / "mine", "none", "log_interval: 3")
    write_experiment(tmp_path / "mine", "tied", "micro_batches: ${seed}")
    read: list[object] = []
    monkeypatch.setattr(cli, "read_settings", lambda config: read.append(config) or read_settings(config))
    with contextlib.nullcontext() if wrong is None else pytest.raises(KdxError, match=f"^{wrong}"):
        cli.check_jobs(CONF, ["--config-dir", "mine", "--multirun", *TINY, *swept])
    assert len(read) == checked


@pytest.mark.parametrize(("line", "key"), [("on: 2", "True"), ("1: 2", "1")])
def test_a_key_that_yaml_does_not_read_as_text_is_unknown_too(
    line: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path / "mine", "odd", line)
    with pytest.raises(KdxError, match=f"^{key}: no such key"):
        cli.check_jobs(CONF, ["--config-dir", "mine", *TINY, "experiment=odd"])


def test_overrides_may_stand_on_both_sides_of_an_option() -> None:
    line = ["experiment=quickstart", "-m", "seed=0,1", "--config-dir", "mine", "kd=none"]
    expected = ["-m", "--config-dir", "mine", "experiment=quickstart", "seed=0,1", "kd=none"]
    assert options_first(line) == expected == options_first(expected)


@pytest.mark.parametrize("logging", ["hydra/job_logging=disabled", "hydra/job_logging=none", "hydra.verbose=true"])
def test_logging_as_the_user_wants_it(logging: str, tmp_path: Path, kdx_environment) -> None:
    """Errors are told all the same."""
    done = kdx(
        tmp_path, kdx_environment, *TINY, logging, "hydra/hydra_logging=none", "model.student=tests.tiny:nothing"
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "tests.tiny:nothing" in done.stderr, done.stderr
    done = kdx(tmp_path, kdx_environment, *TINY, "stage=teacher", "hydra.job.name=mine", logging)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert ("test acc" in done.stdout) == (logging != "hydra/job_logging=disabled")
    broken = kdx(tmp_path, kdx_environment, *TINY, logging, "hydra.job_logging.root.level=NIX")
    assert broken.returncode in (0, 2) and "Traceback" not in broken.stderr and broken.stderr.count("\n") <= 1


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("job_logging.root.level=NIX", "hydra.job_logging: Unable to configure root logger: Unknown level: 'NIX'"),
        ("job_logging.handlers=5", "hydra.job_logging: 'int' object is not iterable"),
        ("hydra_logging.version=5", "hydra.hydra_logging: Unsupported version: 5"),
    ],
)
def test_logging_that_cannot_be_set_up_is_one_line_and_leaves_nothing(
    key: str, told: str, tmp_path: Path, kdx_environment
) -> None:
    done = kdx(tmp_path, kdx_environment, *TINY, f"++hydra.{key}")
    assert (done.returncode, done.stderr) == (2, f"error: {told}\n") and not list(tmp_path.iterdir())


def test_paths_in_messages_can_be_used_where_the_user_is(tmp_path: Path, kdx_environment) -> None:
    """Also where Hydra changes into the run's folder."""
    for own, expected in (([], "results: o/run\n"), (["hydra.job.chdir=true"], f"results: {tmp_path}/o/two\n")):
        folder = "o/two" if own else "o/run"
        done = kdx(tmp_path, kdx_environment, *TINY, "stage=teacher", "epochs=1", f"hydra.run.dir={folder}", *own)
        assert done.returncode == 0 and done.stdout.endswith(expected), done.stdout + done.stderr
    assert f"reuse {tmp_path}/o/run/teacher/checkpoints/" in done.stdout
