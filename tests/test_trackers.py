"""Trackers get what the CSV gets: every epoch once, also of a stage that was gone on with."""

import importlib.util
from pathlib import Path

import pytest

from kdx.errors import KdxError
from kdx.trackers.trackers import check_tracker, open_tracker
from tests.conftest import TinyRun, until
from tests.test_trainer import rows_of
from tests.training import make_training

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own


def rows(count: int) -> list[dict[str, float]]:
    return [
        {"epoch": n, "train_loss": 1 / n, "val_accuracy": 10.0 * n, "learning_rate": 0.1} for n in range(1, count + 1)
    ]


def test_tensorboard_has_every_epoch_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for epochs in (2, 4):  # the second is a process that goes on
        tracker = open_tracker("tensorboard", tmp_path / "stage", tmp_path, {})
        for done in range(1, epochs + 1):
            tracker.log(rows(done))
        tracker.close()
    events = EventAccumulator(str(tmp_path / "stage" / "tensorboard"))
    events.Reload()
    points = {event.step: event.value for event in events.Scalars("val/accuracy")}
    assert points == {1: 10, 2: 20, 3: 30, 4: 40} and "train/loss" in events.Tags()["scalars"]


def test_mlflow_has_one_run_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for epochs in (1, 3):
        tracker = open_tracker("mlflow", tmp_path / "a's stage", tmp_path, {"kd": {"temperature": 4.0}})
        tracker.log(rows(epochs))
        tracker.close()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("kdx").experiment_id])
    assert run.data.params == {"kd.temperature": "4.0"} and run.data.metrics["val/accuracy"] == 30
    assert {point.step for point in client.get_metric_history(run.info.run_id, "train/loss")} == {1, 2, 3}
    assert run.info.status == "FINISHED"


def test_wandb_stays_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracker = open_tracker("wandb", tmp_path / "stage", tmp_path, {"seed": 1})
    tracker.log(rows(2))
    tracker.close()
    (written,) = (tmp_path / "stage" / "wandb").rglob("*.wandb")
    assert written.parent.name.startswith("offline-run-")
    until(lambda: written.stat().st_size > 100)  # a process of wandb's writes it, and may be later than its word


def test_missing_package_is_told_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KdxError, match=r'logger=wandb: its package is not installed: pip install -e "\.\[wandb\]"'):
        check_tracker("wandb")
    check_tracker("none")


def test_a_run_with_a_tracker_and_pictures_while_it_trains(tiny_run) -> None:
    run: TinyRun = tiny_run("stage.deliver=teacher", "logger=tensorboard", "visualize.every=1", "visualize.samples=1")
    assert len(list((run.folder / "teacher" / "tensorboard").iterdir())) == 1
    drawn = sorted(path.parent.name for path in run.folder.rglob("feature_maps_0_*.png"))
    assert drawn == ["epoch_0001", "epoch_0002", "visualizations"]
    plain: TinyRun = tiny_run("stage.deliver=teacher", "stage.reuse=never")
    assert plain.summary["teacher"]["test"] == run.summary["teacher"]["test"]


class Gone:
    def log(self, rows: object) -> None:
        raise ConnectionError("the server is gone")

    def close(self) -> None:
        pass


def test_tracker_that_fails_does_not_end_a_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = make_training(tmp_path)
    training.keeper.logger.tracker = Gone()
    training.fit()
    training.keeper.logger.close()
    assert len(rows_of(tmp_path / "log.csv")) == 3
    assert caplog.text.count("the tracker fails and gets no more: ConnectionError: the server is gone") == 1


def test_tracker_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("no folder")
    with pytest.raises(KdxError, match="logger=tensorboard: cannot be opened") as error:
        open_tracker("tensorboard", tmp_path, tmp_path, {})
    assert "\n" not in str(error.value)
