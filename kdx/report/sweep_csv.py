"""sweep.csv: a row a job, with the same digits as `kdx.results.load` has."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdx.report.gains import Comparison
from kdx.report.statistics import wilson
from kdx.results import as_text, override_keys, roles_of
from kdx.text import csv_text

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("val_accuracy", "test_accuracy", "test_f1_score", "test_auc")
CSV_COLUMNS = (
    *(*SCORES, "seconds", "status", "fingerprint"),
    *("network", "epoch", "parameters", "test_ece", "test_agreement", "latency_ms"),
    *("val_f1_score", "val_auc", "val_loss", "guide", "multiply_adds", "file_mb", "test_images"),
)
INTERVAL = ("test_accuracy_low", "test_accuracy_high")  # Wilson's, over the test images


def sweep_csv(frame: "pd.DataFrame", comparisons: Sequence[Comparison]) -> str:
    """A row a job: overrides, then for each role accuracies, F1, AUC, seconds and whether it was trained or reused.

    `gain` is the test score of what the job delivered less that of its baseline with the same seed.
    """
    keys, roles = override_keys(frame), roles_of(frame)
    names = [f"{role}_{column}" for role in roles for column in (*CSV_COLUMNS, *INTERVAL)]
    gained = _gains_by_folder(comparisons)
    rows: list[list[Any]] = [["job", *keys, "state", "seconds", *names, "gain", "reason", "worker"]]
    for job, run in jobs_of(frame):
        row = [job, *(as_text(run[key]) for key in (*keys, "status")), run["seconds"]]
        for role in roles:
            row += [as_text(run[f"{role}_{column}"]) for column in CSV_COLUMNS]
            row += wilson_of(run, role) or ["", ""]
        rows.append([*row, as_text(gained.get(run["folder"])), run["reason"], run["worker"]])
    return csv_text(rows)


def _gains_by_folder(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """The gain of each job that has a baseline with its seed."""
    gained = {}
    for comparison in comparisons:
        reference = comparison.reference
        if reference is None or reference.distilled or not comparison.one.distilled or not comparison.same_data:
            continue
        baseline = reference.by_seed(comparison.score).set_index("seed")["score"]
        for run in comparison.one.runs.to_dict("records"):
            score, seed = run[f"{run['delivered']}_{comparison.score}"], as_text(run["seed"])
            if seed in baseline.index and as_text(score):
                gained[run["folder"]] = float(score - baseline[seed])
    return gained


def jobs_of(frame: "pd.DataFrame") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every job's number with its row."""
    for run in frame.to_dict("records"):
        yield Path(run["folder"]).name, {str(key): value for key, value in run.items()}


def wilson_of(run: dict[str, Any], role: str | None) -> list[float]:
    """Wilson's interval of a stage's test accuracy over its test images; nothing where it counts no images."""
    accuracy: Any = run.get(f"{role}_test_accuracy")
    images: Any = run.get(f"{role}_test_images")
    if not as_text(accuracy) or not as_text(images) or not images or run[f"{role}_several_labels"]:
        return []
    return list(wilson(accuracy, int(images)))
