"""What is finished is taken up again only where it is what is configured: folders, sweeps, searches."""

import json
import subprocess
from pathlib import Path

import pytest

from kdx.chain.chain import run_chain
from kdx.config.paths import anchored
from kdx.errors import KdxError
from tests.conftest import TINY, Start, TinyRun, compose_config, settings_of, write_experiment
from tests.forks import kdx

ONE = ["stage.deliver=teacher", "epochs=1"]


def run_in(folder: Path, *overrides: str) -> TinyRun:
    folder.mkdir(parents=True, exist_ok=True)
    run_chain(settings_of(f"output_dir={folder.parent}", *overrides), folder, overrides)
    return TinyRun(folder)


def test_folder_of_a_finished_run_stays_that_runs(tmp_path: Path) -> None:
    """Also where nothing would be trained in it: its numbers would become another run's."""
    first = run_in(tmp_path / "A", *ONE, "seed=1")
    run_in(tmp_path / "B", *ONE, "seed=2")
    with pytest.raises(KdxError, match="A: holds a finished run; choose another folder"):
        run_in(tmp_path / "A", *ONE, "seed=2")
    assert TinyRun(first.folder).summary == first.summary
    assert run_in(tmp_path / "A", *ONE, "seed=1").statuses() == {"teacher": "reused"}  # its own


def test_run_that_is_repeated_in_its_folder_keeps_the_record_of_its_teachers(tmp_path: Path) -> None:
    """The second plan needs the student only."""
    chain = ["stage.deliver=student", "stage.student.guide=teacher", "epochs=1"]
    first = run_in(tmp_path / "A", *chain)
    again = run_in(tmp_path / "A", *chain)
    assert again.summary == first.summary and again.roles() == ["teacher", "student"]


def test_folder_of_an_unfinished_run_keeps_the_stages_that_it_trained(tmp_path: Path) -> None:
    chain = ["stage.deliver=assistant", "epochs=1"]
    first = run_in(tmp_path / "A", *chain)
    summary = first.summary | {"status": "stopped"}
    (first.folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(KdxError, match="A: holds the teacher of another run"):
        run_in(tmp_path / "A", *chain, "seed=2")
    (best,) = (first.folder / "teacher" / "checkpoints").glob("best_acc_*.pth")
    assert best.resolve() == first.checkpoint("teacher").resolve()
    assert set(run_in(tmp_path / "A", *chain).statuses().values()) == {"reused"}


def sweep_in(folder: Path, environment: dict[str, str], *overrides: str) -> tuple[int, str]:
    done = kdx(folder, environment, "--multirun", *overrides, *TINY, "epochs=1", "hydra.sweep.dir=swept")
    return done.returncode, done.stdout + done.stderr


def test_relaunched_sweep_whose_config_file_was_edited_is_not_done(
    tmp_path: Path, kdx_environment: dict[str, str]
) -> None:
    write_experiment(tmp_path / "conf", "mine", "optimizer: {weight_decay: 0.1}")
    own = ["--config-dir", "conf", "experiment=mine", "seed=1,2", "stage.deliver=teacher"]
    code, output = sweep_in(tmp_path, kdx_environment, *own)
    assert code == 0 and "2 of 2 jobs finished" in output, output
    before = (tmp_path / "swept" / "0" / "summary.json").read_bytes()
    code, output = sweep_in(tmp_path, kdx_environment, *own)
    assert code == 0 and "2 of 2 jobs were finished before" in output, output
    write_experiment(tmp_path / "conf", "mine", "optimizer: {weight_decay: 0.2}")
    code, output = sweep_in(tmp_path, kdx_environment, *own)
    assert code == 2 and "Traceback" not in output, output
    assert "hydra.sweep.dir=swept: job 0 was finished with another teacher" in output, output
    assert (tmp_path / "swept" / "0" / "summary.json").read_bytes() == before
    write_experiment(tmp_path / "conf", "mine", "optimizer: {weight_decay: 0.1}\nlog_interval: 3")  # changes no weights
    code, output = sweep_in(tmp_path, kdx_environment, *own)
    assert code == 0 and "2 of 2 jobs were finished before" in output, output


def test_relaunched_sweep_of_the_latest_teacher_is_done_whichever_is_the_latest_now(
    tmp_path: Path, kdx_environment: dict[str, str]
) -> None:
    latest = ["stage.deliver=student", "stage.student.guide=teacher", "stage.reuse=latest", "kd.temperature=2,4"]
    code, output = sweep_in(tmp_path, kdx_environment, *latest)
    assert code == 0, output
    run_in(tmp_path / "outputs" / "newer", *ONE, "seed=9")
    code, output = sweep_in(tmp_path, kdx_environment, *latest)
    assert code == 0 and "2 of 2 jobs were finished before" in output, output
    code, output = sweep_in(tmp_path, kdx_environment, *latest, "stage.student.epochs=2")
    assert code == 2 and "holds a sweep with another job 0" in output, output


def test_search_goes_on_only_as_the_search_that_it_was(tmp_path: Path, kdx_environment: dict[str, str]) -> None:
    def search(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = ["experiment=search_kd", *TINY, "epochs=1", "stage.deliver=student", "stage.student.guide=teacher"]
        return kdx(tmp_path, kdx_environment, *command, *overrides, module="kdx.search")

    first = search("search.trials=1")
    assert first.returncode == 0, first.stderr
    other = search("search.trials=2", "+dataset.source.seed=4")
    assert other.returncode == 2 and other.stdout == "", other.stdout
    (line,) = other.stderr.splitlines()
    assert "holds a search with another student, teacher (settings, code or data differ); choose another name" in line
    assert "kd.temperature" not in line
    again = search("search.trials=2", "kd.temperature=3", "log_interval=5")  # inside the space; changes no weights
    assert again.returncode == 0 and "trial 1 " in again.stdout, again.stderr


def test_paths_mean_the_folder_of_the_command_also_where_the_run_works_in_its_own(
    tmp_path: Path, kdx_environment: dict[str, str]
) -> None:
    """hydra.job.chdir=true is Hydra's wish to work in the run's folder."""
    command = [*TINY, *ONE, "hydra.job.chdir=true"]
    first = kdx(tmp_path, kdx_environment, *command)
    assert first.returncode == 0, first.stderr
    assert len(list((tmp_path / "outputs" / "index").glob("*.json"))) == 1
    assert not list((tmp_path / "outputs").rglob("outputs"))
    (best,) = (tmp_path / "outputs").rglob("best_acc_*.pth")
    named = [f"stage.teacher.checkpoint='{best.relative_to(tmp_path)}'", "stage.reuse=never"]
    second = kdx(tmp_path, kdx_environment, *command, *named)
    assert second.returncode == 0 and " load " in second.stdout, second.stdout + second.stderr


def test_every_path_of_a_config_is_anchored() -> None:
    overrides = ["dataset.path=pictures", "stage.student.checkpoint=a/b.pth", "data_dir=/data", "output_dir=o"]
    config = compose_config("dataset=imagefolder", *overrides)
    moved = anchored(config, Path("/start"))
    assert (moved.dataset.path, moved.data_dir, moved.output_dir) == ("/start/pictures", "/data", "/start/o")
    assert moved.stage.student.checkpoint == "/start/a/b.pth" and moved.stage.teacher.checkpoint is None
    assert moved.dataset.source.path == "/start/pictures"
    assert config.dataset.path == "pictures"


def test_folder_of_a_job_is_its_number(start: Start, tmp_path: Path, kdx_environment: dict[str, str]) -> None:
    code, output = sweep_in(tmp_path, kdx_environment, "seed=1,2", "hydra.sweep.subdir=s${seed}")
    assert code == 2
    assert output.strip() == (
        "error: hydra.sweep.subdir=s${seed}: each job's folder is its number; choose hydra.sweep.dir only"
    )
    assert not (tmp_path / "swept").exists()
