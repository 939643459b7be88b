"""Typed records of runs and sweeps: the only reader and writer of summary.json, sweep.json and costs.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, cast

import msgspec
from msgspec import Meta

from kdx.errors import KdxError
from kdx.files import as_record, read_json, read_record, write_json
from kdx.recipe import ACCURACY, SCORES

SUMMARY = "summary.json"
OPEN = "open"  # the state of a job, or a run, of which nothing is there yet
SWEEP = "sweep.json"
COSTS = "costs.json"
COUNTED = ("parameters", "multiply_adds")

Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[float, Meta(gt=0, le=1e300)]
NotNegative = Annotated[float, Meta(ge=0, le=1e300)]
Percent = Annotated[float, Meta(ge=0, le=100.001)]  # means in float32, which files of before hold, end a hair over 100
Share = Annotated[float, Meta(ge=0, le=1)]
FilePath = Annotated[str, Meta(pattern=r"^[^\0]{1,4096}$")]
RoleName = Annotated[str, Meta(pattern=r"^[^\0/]{1,100}$")]  # a folder's name
JobNumber = Annotated[str, Meta(pattern=r"^[0-9]{1,9}$")]


class ScoresOnValidation(TypedDict):
    """What the chosen epoch reached on the validation split; only the loss where no classifier has learnt."""

    accuracy: NotRequired[Percent]
    loss: NotRequired[float]
    precision: NotRequired[Percent]
    recall: NotRequired[Percent]
    f1_score: NotRequired[Percent]
    auc: NotRequired[Share | None]


class ClassScores(TypedDict):
    """Precision, recall and F1 in percent and the number of images, each by class number."""

    precision: list[Percent]
    recall: list[Percent]
    f1_score: list[Percent]
    support: list[Count]


class Calibration(TypedDict):
    """Expected calibration error in percent, and its bins: mean confidence, accuracy, number of images."""

    ece: Percent
    confidence: list[Share]
    accuracy: list[Share]
    count: list[Count]


class ScoresOnTest(TypedDict):
    """All scores on the test split; none where no classifier has learnt.

    The confusion matrix is (C, C), or (L, 2, 2) of a multi-label set; of many classes its cells above 0 are kept.
    """

    accuracy: NotRequired[Percent]
    f1_score: NotRequired[Percent]
    auc: NotRequired[Share | None]
    loss: NotRequired[float]
    precision: NotRequired[Percent]
    recall: NotRequired[Percent]
    confusion_matrix: NotRequired[list[list[Count | list[Count]]] | None]
    confusion_cells: NotRequired[list[tuple[Count, Count, Count]]]  # label, prediction, images
    per_class: NotRequired[ClassScores]
    calibration: NotRequired[Calibration]
    num_samples: NotRequired[Count]
    guide_agreement: NotRequired[Percent]
    guide_agreements: NotRequired[dict[str, Percent]]
    epoch: NotRequired[Count]


class Timing(TypedDict):
    """Costs of a network on one device."""

    latency_ms_batch_1: Positive
    images_per_s_batch_1: Positive
    latency_ms_batch_64: Positive
    images_per_s_batch_64: Positive
    peak_memory_mb: NotNegative


@dataclass(frozen=True)
class Stage:
    """A stage that is done: trained, reused or loaded. `checkpoint` is relative to the run's folder.

    `efficiency` holds `parameters` and `multiply_adds` of one image, and a `Timing` for each device.
    """

    network: str
    status: str
    fingerprint: str
    checkpoint: FilePath
    epoch: Count
    parameters: Count
    validation: ScoresOnValidation
    test: ScoresOnTest
    seconds: NotNegative
    selected_by: Annotated[str, Meta(pattern=f"^({'|'.join(SCORES)})$")] = ACCURACY  # what chose the epoch
    stem: str | None = None
    guide: str | list[str] | None = None  # a role, or several
    start: str | None = None  # a role or a file whose weights it started from
    guide_fingerprint: str | list[str] | None = None
    configuration: str | None = None  # equal for runs that differ in their seed only
    sha256: str | None = None
    checkpoint_mb: NotNegative | None = None
    efficiency: dict[str, Count | Timing] | None = None

    @property
    def selected(self) -> float | None:
        """The value on validation of what chose the epoch; None in a record that does not hold it."""
        return cast(Mapping[str, float], self.validation).get(SCORES[self.selected_by])

    @property
    def classifies(self) -> bool:
        """Whether it has scores; a student of features alone, under no label, learns no classifier."""
        return "accuracy" in self.test

    @property
    def several_labels(self) -> bool:
        """Whether an image may have several labels: its accuracy then counts labels, not images."""
        matrix = self.test.get("confusion_matrix")
        return bool(matrix) and isinstance(matrix[0][0], list)  # type: ignore[index]

    @property
    def timings(self) -> dict[str, Timing]:
        """The measured costs by device."""
        return {name: costs for name, costs in (self.efficiency or {}).items() if not isinstance(costs, int)}

    @property
    def multiply_adds(self) -> int:
        """Of one image; 0 where nothing was measured."""
        counted = (self.efficiency or {}).get("multiply_adds", 0)
        return counted if isinstance(counted, int) else 0


@dataclass(frozen=True)
class PlanEntry:
    """What was to be done about a stage: train, reuse or load it; `epochs` are those that it trains at most."""

    role: RoleName
    action: str = ""
    fingerprint: str = ""
    epochs: Count | None = None
    selected_by: Annotated[str, Meta(pattern=f"^({'|'.join(SCORES)})$")] = ACCURACY  # what chooses the epoch


@dataclass(frozen=True)
class Origin:
    """One file or data set that a result comes from, with its hash."""

    what: str
    name: str
    hash: str


@dataclass(frozen=True)
class Run:
    """A run as summary.json tells it, where each stage that is done is a key of its own beside these."""

    status: str = OPEN
    error: str | None = None
    overrides: list[str] = field(default_factory=list)
    plan: list[PlanEntry] = field(default_factory=list)
    surroundings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    git_commit: str | None = None
    class_names: list[str] = field(default_factory=list)
    data_notes: list[str] = field(default_factory=list)
    seed: int | None = None
    lineage: list[Origin] = field(default_factory=list)
    stages: dict[str, Stage] = field(default_factory=dict)

    @property
    def delivered(self) -> str | None:
        """The role of the stage that a finished run was to deliver: the last one of its plan."""
        return self.plan[-1].role if self.plan and self.plan[-1].role in self.stages else None


@dataclass(frozen=True)
class SweepJob:
    """A job of a sweep: its state, and once it has ended, its seconds and the score that chose, or why it failed.

    `worker` is the machine and the process of a cluster's worker that ran it.
    """

    overrides: list[str]
    folder: str = ""
    state: str = OPEN
    seconds: NotNegative | None = None
    value: float | None = None
    reason: str | None = None
    selected_by: str = ACCURACY  # which score the value is
    worker: str | None = None


@dataclass(frozen=True)
class _Sweep:
    jobs: dict[JobNumber, SweepJob]


@dataclass(frozen=True)
class NetworkCosts:
    """What a network costs to use, as `Stage.efficiency`, and the fingerprints of the stages that have it."""

    network: str
    fingerprints: list[str]
    efficiency: dict[str, Count | Timing]


@dataclass(frozen=True)
class _Costs:
    networks: list[NetworkCosts]


def read_run(folder: Path) -> Run:
    """The run in a folder; `KdxError` where it holds none, or that names what in summary.json is not as it must be."""
    path = folder / SUMMARY
    if not path.exists():
        raise KdxError(f"{folder}: no run: {SUMMARY} is missing")
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise KdxError(f"{path}: not a summary of kdx: an object with a status and a plan is needed")
    head = as_record({key: value for key, value in raw.items() if key != "stages"}, Run, path)
    stages = {}
    for role in (entry.role for entry in head.plan if entry.role in raw):
        stages[role] = as_record(raw[role], Stage, path, role)
        _check_sizes(stages[role], len(head.class_names), f"{path}: {role}")
    return replace(head, stages=stages)


def read_stages(folder: Path) -> dict[str, Stage]:
    """The stages of a run that are done, by role; `KdxError` where there is none yet."""
    stages = read_run(folder).stages
    if not stages:
        raise KdxError(f"{folder}: no stage of this run is finished yet")
    return stages


def write_run(folder: Path, run: Run) -> None:
    """Write summary.json; each role that is done is a key of its own."""
    record = msgspec.to_builtins(run)
    write_json(folder / SUMMARY, record | record.pop("stages"))


def read_sweep(folder: Path) -> dict[str, SweepJob]:
    """The jobs that sweep.json lists, by number; none where there is no such file."""
    path = folder / SWEEP
    return read_record(path, _Sweep).jobs if path.exists() else {}


def write_sweep(folder: Path, jobs: Mapping[str, SweepJob]) -> None:
    """Write sweep.json."""
    write_json(folder / SWEEP, msgspec.to_builtins(_Sweep(dict(jobs))))


def read_costs(folder: Path) -> list[NetworkCosts]:
    """What the networks of a sweep were measured to cost; none where that was not measured."""
    path = folder / COSTS
    found = read_record(path, _Costs).networks if path.exists() else []
    for costs in found:
        _check_costs(costs.efficiency, f"{path}: {costs.network}")
    return found


def write_costs(folder: Path, costs: Sequence[NetworkCosts]) -> None:
    """Write costs.json."""
    write_json(folder / COSTS, msgspec.to_builtins(_Costs(list(costs))))


def _check_costs(costs: Mapping[str, int | Timing], where: str) -> None:
    """`KdxError` unless weights, multiply-adds and the timings of a device are there, and nothing else."""
    counted = all(isinstance(costs.get(key), int) for key in COUNTED)
    timings = [value for value in costs.values() if not isinstance(value, int)]
    if not counted or len(costs) - len(timings) != len(COUNTED) or not timings:
        raise KdxError(f"{where}.efficiency: parameters, multiply_adds and the timings of a device are needed")


def _check_sizes(stage: Stage, names: int, where: str) -> None:
    """`KdxError` unless what is listed by class, by bin and by device has one length, and costs are complete."""
    there = {key in stage.test for key in ("accuracy", "f1_score", "auc")} | {"accuracy" in stage.validation}
    if len(there) > 1:
        raise KdxError(f"{where}: accuracy on validation, and accuracy, f1_score and auc on test: all are needed")
    scores, bins = stage.test.get("per_class"), stage.test.get("calibration")
    if scores is not None:
        classes, matrix = len(scores["support"]), stage.test.get("confusion_matrix") or []
        lengths = {len(values) for values in scores.values()} | {names or classes, len(matrix) or classes}  # type: ignore[arg-type]
        counts = {isinstance(cell, int) for row in matrix for cell in row}
        widths = {len(row) for row in matrix} - {classes if counts == {True} else 2}
        if lengths != {classes} or not classes or widths or len(counts) > 1:
            raise KdxError(f"{where}.test: scores by class of {sorted(lengths | widths)} classes: one number is needed")
    if bins is not None and len({len(bins[key]) for key in ("confidence", "accuracy", "count")}) > 1:
        raise KdxError(f"{where}.test.calibration: its lists differ in length")
    if stage.efficiency is not None:
        _check_costs(stage.efficiency, where)
