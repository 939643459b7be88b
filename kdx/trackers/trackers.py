"""Trackers that people already use, fed by the epoch log: TensorBoard, MLflow, Weights & Biases."""

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdx.epoch_log import Tracker, Untracked
from kdx.errors import KdxError
from kdx.files import relative

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
PROJECT = "kdx"


def check_tracker(kind: str) -> None:
    """`KdxError` with the line that installs it where the tracker's package is not there."""
    if kind != "none" and importlib.util.find_spec(PACKAGES[kind]) is None:
        raise KdxError(f'logger={kind}: its package is not installed: pip install -e ".[{kind}]"')


def open_tracker(kind: str, folder: Path, outputs: Path, config: dict[str, Any]) -> Tracker:
    """The tracker of a stage that is trained in `folder`, below `outputs`; `none` tracks nothing.

    `KdxError` where it cannot be opened, such as a server that does not answer.
    """
    try:
        if kind == "tensorboard":
            return TensorBoard(folder)
        if kind == "mlflow":
            return MLflow(folder, outputs, config)
        if kind == "wandb":
            return WandB(folder, outputs, config)
    except Exception as error:  # each package raises classes of its own
        raise KdxError(f"logger={kind}: cannot be opened ({' '.join(str(error).split())[:200]})") from error
    return Untracked()


class TensorBoard:
    """Event files in `<stage>/tensorboard`: tensorboard --logdir outputs."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder / "tensorboard", purge_step=1)  # a stage gone on with is told anew
        self.sent = 0

    def log(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows[self.sent :]:
            for name, value in _numbers(row).items():
                self.writer.add_scalar(name, value, row["epoch"])
        self.sent = len(rows)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class MLflow:
    """A run in MLFLOW_TRACKING_URI, or in `outputs/mlflow.db`, whose writers take turns: sqlite has room for one."""

    def __init__(self, folder: Path, outputs: Path, config: dict[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        outputs.mkdir(parents=True, exist_ok=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self.turn = FileLock(outputs / "mlflow.lock") if uri is None else contextlib.nullcontext()
        name = relative(folder, outputs)
        with self.turn:
            self.client = MlflowClient(uri or f"sqlite:///{outputs.resolve() / 'mlflow.db'}")
            known = self.client.get_experiment_by_name(PROJECT)
            experiment = (
                known.experiment_id if known else self.client.create_experiment(PROJECT, str(outputs / "mlruns"))
            )
            identity = _identity(name)  # a path may hold quotes, which the search cannot escape
            earlier = self.client.search_runs([experiment], f"tags.`kdx.id` = '{identity}'")
            if earlier:
                self.run = earlier[0].info.run_id
            else:
                self.run = self.client.create_run(experiment, run_name=name, tags={"kdx.id": identity}).info.run_id
                for key, value in _flat(config).items():
                    self.client.log_param(self.run, key, value)
        self.sent = 0

    def log(self, rows: Sequence[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        new = [
            Metric(name, value, 0, row["epoch"]) for row in rows[self.sent :] for name, value in _numbers(row).items()
        ]
        with self.turn:
            for start in range(0, len(new), 1000):  # the most that one call takes
                self.client.log_batch(self.run, new[start : start + 1000])
        self.sent = len(rows)

    def close(self) -> None:
        with self.turn:
            self.client.set_terminated(self.run)


class WandB:
    """A run of Weights & Biases, offline unless WANDB_MODE says otherwise: `wandb sync` sends it later."""

    def __init__(self, folder: Path, outputs: Path, config: dict[str, Any]) -> None:
        import wandb

        name = relative(folder, outputs)
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=PROJECT,
            name=name,
            id=_identity(name),
            resume="allow",
            dir=folder,
            config=config,
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.sent = 0

    def log(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows[self.sent :]:
            self.run.log(_numbers(row), step=row["epoch"])
        self.sent = len(rows)

    def close(self) -> None:
        self.run.finish()


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """The columns of an epoch, `train_loss` as `train/loss` and so on."""
    named = {key.replace("train_", "train/", 1).replace("val_", "val/", 1): value for key, value in row.items()}
    return {key: float(value) for key, value in named.items() if key != "epoch" and value is not None}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
        flat |= inner
    return flat


def _identity(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
