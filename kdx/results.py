"""The results of a sweep as rows, read from what its jobs have written; also while it runs. Imports no torch."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from kdx.errors import KdxError
from kdx.files import read_json

SEED = "seed"
SUMMARY = "summary.json"


@dataclass
class JobResult:
    """One job: its overrides, state, and the stages that are done, as summary.json tells them."""

    number: str
    folder: Path
    overrides: dict[str, str]
    state: str
    reason: str = ""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def last(self) -> dict[str, Any]:
        """The stage that the job was to deliver: the last one."""
        return next(reversed(self.stages.values()))

    @property
    def finished(self) -> bool:
        return self.state == "finished"


@dataclass(frozen=True)
class Configuration:
    """Jobs that differ in their seed only: n of them, with mean and sample standard deviation (0 for one)."""

    values: dict[str, str]
    jobs: tuple[JobResult, ...]

    def stages(self, role: str | None = None) -> list[dict[str, Any]]:
        """Every job's stage of a role (None: the last one); jobs that share one count once."""
        found = [job.last if role is None else job.stages[role] for job in self.jobs]
        return list({stage["fingerprint"]: stage for stage in found}.values())

    def scores(self, split: str, name: str, role: str | None = None) -> list[float]:
        """One score of each of these stages."""
        scores = [stage[split].get(name) for stage in self.stages(role)]
        return [score for score in scores if score is not None]


def read_sweep(folder: Path) -> list[JobResult]:
    """The jobs of a sweep's folder in their order, those that failed or have not begun included."""
    if not folder.is_dir():
        raise KdxError(f"{folder}: no such folder")
    listed = read_json(folder / "sweep.json")["jobs"] if (folder / "sweep.json").exists() else {}
    found = {path.parent.name for path in folder.glob("*/summary.json") if path.parent.name.isdigit()}
    numbers = sorted({*listed, *found}, key=int)
    jobs = [_read_job(folder / number, listed.get(number, {})) for number in numbers]
    if not jobs:
        raise KdxError(f"{folder}: holds no sweep: neither sweep.json nor <job number>/summary.json")
    return jobs


def finished_stages(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages of a summary that are done, by role."""
    return {step["role"]: told[step["role"]] for step in told.get("plan", []) if step["role"] in told}


def read_epochs(job: JobResult) -> list[dict[str, float]]:
    """The epochs of a job's last stage, from its CSV; also of a job that still trains it."""
    if job.finished:
        return read_log((job.folder / job.last["checkpoint"]).parent.parent)
    logs = sorted(job.folder.glob("*/logs/*_log.csv"), key=lambda path: path.stat().st_mtime_ns)
    return read_csv(logs[-1]) if logs else []


def read_log(stage_folder: Path) -> list[dict[str, float]]:
    """The epochs of a stage so far, from its folder."""
    logs = sorted((stage_folder / "logs").glob("*_log.csv"))
    return read_csv(logs[0]) if logs else []


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows of an epoch log as numbers."""
    with open(path) as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def swept_keys(jobs: Sequence[JobResult]) -> list[str]:
    """The overrides that differ among jobs, in the order of the command line."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def configurations(jobs: Sequence[JobResult]) -> list[Configuration]:
    """The finished jobs, those that differ in their seed only put together.

    Without distillation the values of kd mean nothing: such jobs are one configuration.
    """
    keys = [key for key in swept_keys(jobs) if key != SEED]
    groups: dict[tuple[tuple[str, str], ...], list[JobResult]] = {}
    for job in jobs:
        if job.finished:
            values = {key: job.overrides.get(key, "") for key in keys}
            if values.get("kd") == "none":
                values = {key: value for key, value in values.items() if not key.startswith("kd.")}
            groups.setdefault(tuple(values.items()), []).append(job)
    return [Configuration(dict(values), tuple(group)) for values, group in groups.items()]


def best_configuration(groups: Sequence[Configuration]) -> Configuration | None:
    """The one with the highest mean validation accuracy: the test split has no say."""
    return max(groups, key=lambda group: fmean(group.scores("validation", "accuracy")), default=None)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean, sample standard deviation and n; NaN mean for no value."""
    if not values:
        return math.nan, math.nan, 0
    return fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values)


def _read_job(folder: Path, listed: dict[str, Any]) -> JobResult:
    path = folder / SUMMARY
    told = read_json(path) if path.exists() else {}
    overrides = listed.get("overrides") or told.get("overrides", [])
    state, reason = listed.get("state"), listed.get("reason")
    if state in (None, "open"):
        state = told.get("status", "open")
    stages = finished_stages(told)
    return JobResult(
        number=folder.name,
        folder=folder,
        overrides=dict(override.replace("\\:", ":").split("=", 1) for override in overrides),  # Hydra escapes colons
        state=state,
        reason=reason or told.get("error") or "",
        stages=stages,
        seconds=listed.get("seconds") or sum(stage["seconds"] for stage in stages.values()),
    )
