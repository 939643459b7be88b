"""Runs as a pandas DataFrame, a row a run: `kdx.results.load("outputs")`. pandas is imported only when it is called."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdx.errors import KdxError
from kdx.results.logs import log_of_last_stage, read_csv, read_log
from kdx.results.overrides import as_text, typed_overrides
from kdx.results.records import (
    OPEN,
    SUMMARY,
    SWEEP,
    NetworkCosts,
    Run,
    Stage,
    SweepJob,
    Timing,
    read_costs,
    read_run,
    read_sweep,
)

if TYPE_CHECKING:
    import pandas as pd

SEED = "seed"
FINISHED = "finished"
UNREADABLE, MISSING = "unreadable", "missing"
SKIPPED = ("checkpoints", "logs", "visualizations", "tensorboard", "wandb", "export")  # of a run's folder
SHARED = "shared"  # a sweep's stages that several jobs have
FIRST, LAST = ("folder", "status", "dataset", "data_hash"), ("reason", "worker")
COLUMNS = (*FIRST, SEED, "delivered", "seconds", *LAST)  # the others are overrides or a role's
SCORE_COLUMNS = (
    *("val_selected", "val_accuracy", "val_f1_score", "val_auc", "val_loss"),
    *("test_accuracy", "test_f1_score", "test_auc", "test_ece", "test_agreement"),
)
COST_COLUMNS = ("parameters", "multiply_adds", "file_mb", "latency_ms")
STAGE_COLUMNS = (
    *("network", "stem", "status", "fingerprint", "configuration", "guide", "taught_by"),
    *("epoch", "seconds", "selected_by"),
    *SCORE_COLUMNS,
    *COST_COLUMNS,
    *("test_images", "several_labels", "checkpoint"),
)
NUMBERS = tuple(f"_{name}" for name in (*SCORE_COLUMNS, *COST_COLUMNS[1:]))  # numbers also where no run has one


def load(*folders: str | Path) -> "pd.DataFrame":
    """A row a run: of a run's folder, of a sweep's, or of all that lie below any folder such as `outputs`.

    Columns: folder, status, dataset, data_hash, every override (typed; `seed` also where it was not overridden),
    `delivered` (the role of the last stage), STAGE_COLUMNS of every role as `<role>_<name>`, seconds,
    reason, `worker` (of a cluster, that ran the job). A job of a sweep that has not begun has a row, too; a run whose
    summary.json cannot be read has the status `unreadable` and says why. Raises `KdxError` where there is no run.
    """
    rows: list[dict[str, Any]] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise KdxError(f"{folder}: no such folder")
        found = list(_rows_below(folder))
        if not found:
            raise KdxError(f"{folder}: holds no run and no sweep: neither {SUMMARY} nor {SWEEP}")
        rows += found
    return _as_frame(rows)


def load_sweep(folder: Path) -> "pd.DataFrame":
    """`load` of one sweep's jobs; `KdxError` where the folder is no sweep's."""
    if not folder.is_dir():
        raise KdxError(f"{folder}: no such folder")
    rows = _rows_of_sweep(folder)
    if not rows:
        below = sorted(path.parent.name for path in folder.glob(f"*/{SWEEP}"))
        there = f"; there are sweeps in it: {', '.join(below[:5])}" if below else ""
        raise KdxError(f"{folder}: holds no sweep and no run: neither {SWEEP} nor {SUMMARY}{there}")
    return _as_frame(rows)


def swept_keys(frame: "pd.DataFrame") -> list[str]:
    """The overrides that differ among runs, in the order of the command line."""
    return [key for key in override_keys(frame) if len({as_text(value) for value in frame[key]}) > 1]


def override_keys(frame: "pd.DataFrame") -> list[str]:
    """The columns that are overrides, in the order of the command line; after a concat all that can be one."""
    known = frame.attrs.get("overrides")
    if known is not None:
        return [key for key in known if key in frame]
    of_roles = {f"{role}_{name}" for role in roles_of(frame) for name in STAGE_COLUMNS}
    return [key for key in frame if key not in of_roles and (key not in COLUMNS or key in (SEED, "dataset"))]


def roles_of(frame: "pd.DataFrame") -> list[str]:
    """The roles whose stages the runs have."""
    return [str(key).removesuffix("_fingerprint") for key in frame if str(key).endswith("_fingerprint")]


def epochs(folder: str | Path) -> "pd.DataFrame":
    """The epochs of a stage as its CSV tells them: of the CSV file, of a stage's folder, or of a run's last stage."""
    import pandas as pd

    path = Path(folder)
    if path.is_file():
        rows = read_csv(path)
    elif (path / "logs").is_dir():
        rows = read_log(path)
    else:
        rows = read_csv(_newest_log(path))
    return pd.DataFrame(rows).astype({"epoch": int} if rows else {})


def _newest_log(run_dir: Path) -> Path:
    run = read_run(run_dir)
    role = run.delivered if run.status == FINISHED else None
    path = log_of_last_stage(run_dir, None if role is None else run_dir / run.stages[role].checkpoint)
    if path is None:
        raise KdxError(f"{run_dir}: no epoch log: nothing was trained here")
    return path


def _rows_below(folder: Path, in_run: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of a run, of a sweep's jobs in their order, and of whatever lies below, by path."""
    single = (folder / SUMMARY).exists()
    rows = [_row(folder, None)] if single else _rows_of_sweep(folder)
    yield from rows
    in_run = in_run or single
    skipped = SKIPPED if in_run else {SHARED, *(Path(row["folder"]).name for row in rows)} if rows else ()
    try:
        with os.scandir(folder) as entries:
            inner = sorted(Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as error:
        raise KdxError(f"{folder}: {error.strerror}") from error
    for path in inner:
        if path.name not in skipped and not path.name.startswith("."):
            yield from _rows_below(path, in_run)


def _rows_of_sweep(folder: Path) -> list[dict[str, Any]]:
    """A row a job that sweep.json lists or that has a folder, in their order; none where the folder is no sweep's."""
    found = {path.parent.name for path in folder.glob(f"*/{SUMMARY}") if re.fullmatch("[0-9]{1,9}", path.parent.name)}
    listed = read_sweep(folder)
    rows = [_row(folder / number, listed.get(number)) for number in sorted({*listed, *found}, key=int)]
    _fill_in_costs(rows, read_costs(folder))
    return rows


def _fill_in_costs(rows: Sequence[dict[str, Any]], measured: Sequence[NetworkCosts]) -> None:
    """What each network was measured to cost, in the place of what a job among others measured."""
    known = {fingerprint: costs for costs in measured for fingerprint in costs.fingerprints}
    for row in rows:
        for role in row["_roles"]:
            costs = known.get(row[f"{role}_fingerprint"])
            if costs is not None:
                row[f"{role}_multiply_adds"] = costs.efficiency["multiply_adds"]
                row[f"{role}_latency_ms"] = _latency(costs.efficiency)


def _latency(efficiency: Mapping[str, int | Timing] | None) -> float | None:
    """Milliseconds for one image on the first device that was measured, the CPU."""
    timings = (value for value in (efficiency or {}).values() if not isinstance(value, int))
    return next((timing["latency_ms_batch_1"] for timing in timings), None)


def _row(folder: Path, listed: SweepJob | None) -> dict[str, Any]:
    """One run; `listed` is what sweep.json says of it."""
    try:
        run = read_run(folder) if (folder / SUMMARY).exists() else Run()
    except KdxError as error:
        run = Run(status=UNREADABLE, error=str(error))
    job = listed or SweepJob(overrides=run.overrides)
    recorded = typed_overrides(run.overrides)
    overrides = typed_overrides(job.overrides) or recorded
    overrides |= {key: recorded.get(key, value) for key, value in overrides.items() if "${" in str(value)}
    data = [origin for origin in run.lineage if origin.what == "data"]
    row: dict[str, Any] = {"dataset": None, SEED: run.seed}
    row |= {key: value for key, value in overrides.items() if key not in COLUMNS or key in row}
    row |= {SEED: run.seed} if run.seed is not None else {}
    row |= {"data_hash": data[0].hash} if data else {}
    if data and ("dataset" not in overrides or "dataset.name" in overrides):  # else two options may share a name
        row["dataset"] = data[0].name
    row |= {"folder": str(folder), "reason": job.reason or run.error, "worker": job.worker}
    row["status"] = run.status if job.state == OPEN or run.status == UNREADABLE else job.state
    if row["status"] == FINISHED and run.status == OPEN:
        row |= {"status": MISSING, "reason": f"{SUMMARY} is missing"}
    if run.status == UNREADABLE:
        row["reason"] = run.error
    row["delivered"] = run.delivered if row["status"] == FINISHED else None
    row["seconds"] = job.seconds or sum(stage.seconds for stage in run.stages.values())
    for role, stage in run.stages.items():
        row |= {f"{role}_{name}": value for name, value in _stage_values(folder, stage).items()}
    return row | {"_overrides": list(overrides), "_roles": list(run.stages)}


def _stage_values(folder: Path, stage: Stage) -> dict[str, Any]:
    """The values of STAGE_COLUMNS."""
    calibration = stage.test.get("calibration")
    validation, test = stage.validation, stage.test
    values = (
        *(stage.network, stage.stem, stage.status, stage.fingerprint, stage.configuration),
        *(_joined(stage.guide), _joined(stage.guide_fingerprint)),
        *(stage.epoch, stage.seconds, stage.selected_by, stage.selected),
        *(validation.get("accuracy"), validation.get("f1_score"), validation.get("auc"), validation.get("loss")),
        *(test.get("accuracy"), test.get("f1_score"), test.get("auc")),
        *(calibration and calibration["ece"], test.get("guide_agreement")),
        *(stage.parameters, stage.multiply_adds or None, stage.checkpoint_mb),
        *(_latency(stage.efficiency), test.get("num_samples"), stage.several_labels),
        os.path.normpath(folder / stage.checkpoint),
    )
    return dict(zip(STAGE_COLUMNS, values, strict=True))


def _joined(names: str | Sequence[str] | None) -> str | None:
    return names if isinstance(names, str) else "+".join(names or ()) or None


def _in_one_order(chains: Iterable[Sequence[str]]) -> list[str]:
    """All roles, teachers first, also where some chains leave some out."""
    order: list[str] = []
    for chain in sorted(chains, key=len, reverse=True):
        for position, role in enumerate(chain):
            if role not in order:
                taught = next((later for later in chain[position + 1 :] if later in order), None)
                order.insert(len(order) if taught is None else order.index(taught), role)
    return order


def _as_frame(rows: Sequence[dict[str, Any]]) -> "pd.DataFrame":
    """Rows as columns that keep whole numbers whole and hold NaN, NA or None where a run has no value."""
    import pandas as pd

    overrides = list(dict.fromkeys(key for row in rows for key in row["_overrides"]))
    roles = _in_one_order([row["_roles"] for row in rows])
    names = [*FIRST, *(key for key in overrides if key not in COLUMNS or key == SEED)]
    names += [SEED] if SEED not in names else []
    names += ["delivered", "seconds", *(f"{role}_{name}" for role in roles for name in STAGE_COLUMNS), *LAST]
    frame = pd.DataFrame({name: _column(name, [row.get(name) for row in rows]) for name in names})
    frame.attrs["overrides"] = [key for key in overrides if key in frame]
    return frame


def _column(name: str, values: list[Any]) -> "pd.Series":
    """A column of whole numbers, numbers or booleans where all values are such, else of objects."""
    import pandas as pd

    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean")
    if kinds == {int} and max(abs(value) for value in values if value is not None) < 2**63:
        return pd.Series(values, dtype="Int64")
    if kinds <= {int, float} and (kinds or name.endswith(NUMBERS)):
        return pd.Series([None if value is None else float(value) for value in values], dtype="float64")
    return pd.Series(values, dtype="object")
