"""kdx.run_experiment: a run from Python, several in one process."""

import logging
from pathlib import Path

import pytest
import torch

import kdx
from kdx.config.paths import anchored
from kdx.errors import KdxError
from tests.conftest import TINY, compose_config


def test_several_runs_in_a_process_share_stages_and_leave_their_logs(tmp_path: Path) -> None:
    line = [*TINY, f"output_dir={tmp_path / 'o'}", "stage.deliver=assistant", "stage.teacher.epochs=1"]
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(False)
    first = kdx.run_experiment(line)
    second = kdx.run_experiment(" ".join([*line, "kd.temperature=2"]))
    assert first.folder != second.folder and first.run.status == second.run.status == "finished"
    assert (first.stages["teacher"].status, second.stages["teacher"].status) == ("trained", "reused")
    assert first.value == first.stages["assistant"].validation["accuracy"]
    assert list(second.frame()["kd.temperature"]) == [2] and "kd.temperature=2" in second.run.overrides
    assert "assistant epoch 2/2" in (first.folder / "run.log").read_text()
    assert "reuse" in (second.folder / "run.log").read_text() and not logging.getLogger("kdx").handlers
    assert torch.get_num_threads() == threads and not torch.are_deterministic_algorithms_enabled()


def test_errors_and_plans_leave_nothing(tmp_path: Path) -> None:
    outputs = tmp_path / "o"
    for override, message in {
        "epocs=3": "epocs: no such key; did you mean 'epochs'",
        "epochs=0": "epochs=0: a whole number of at least 1",
        "dataset=cifar11": "dataset=cifar11: no such option",
        "model.teacher=tests.tiny:raises": "the network is broken",
        "optimizer.lr=1,2": "optimizer.lr",
        "--multirun": "--multirun: has no meaning here",
    }.items():
        with pytest.raises(KdxError, match=message):
            kdx.run_experiment([*TINY, f"output_dir={outputs}", override])
    planned = kdx.run_experiment([*TINY, f"output_dir={outputs}", "plan=true"])
    assert not planned.stages and planned.value is None
    assert not outputs.exists()


def test_a_role_to_start_from_is_no_path() -> None:
    config = compose_config(*TINY, "stage.student.start=teacher", "stage.assistant.start=w.pth")
    paths = anchored(config, Path("/there"))
    assert (paths.stage.student.start, paths.stage.assistant.start) == ("teacher", "/there/w.pth")
