"""What a sweep found, as sweep.csv, sweep.md and report.html."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from kdx.errors import KdxError
from kdx.files import relative, write_atomic
from kdx.report import html as page
from kdx.report.plots import curves, heat_map
from kdx.report.tables import aligned, markdown
from kdx.results import (
    Configuration,
    JobResult,
    best_configuration,
    configurations,
    mean_and_spread,
    read_epochs,
    read_sweep,
    swept_keys,
)
from kdx.text import csv_text, harmless, markdown_text

GRID = ("kd.temperature", "kd.alpha")  # drawn as a heat map where both were swept
JOBS = "Jobs"

Table = tuple[list[str], list[list[str]]]  # header and rows


def write_report(folder: Path, rows_key: str | None = None, columns_key: str | None = None) -> str:
    """Write sweep.csv, sweep.md and report.html into a sweep's folder; the outcome in words for a terminal."""
    jobs = read_sweep(folder)
    groups = configurations(jobs)
    tables, conclusions = _tables(jobs, groups), _conclusions(groups)
    title = f"Sweep {folder.name}"
    counted = f"{sum(job.finished for job in jobs)} of {len(jobs)} jobs finished"
    write_atomic(folder / "sweep.csv", _csv(jobs).encode())
    text = [f"# {markdown_text(title)}", counted + ".", *map(markdown_text, conclusions)]
    text += [part for heading, table in tables.items() for part in (f"## {heading}", markdown(*table))]
    write_atomic(folder / "sweep.md", ("\n\n".join(text) + "\n").encode())
    parts = [page.lead(line) for line in (counted + ".", *conclusions)]
    drawn = _pictures(jobs, groups, rows_key, columns_key)
    for heading, table in tables.items():
        parts += drawn if heading == JOBS else []  # the longest table comes last
        parts += [page.heading(heading), page.table(heading.split()[0].lower(), *table)]
    write_atomic(folder / "report.html", page.page(title, parts).encode())
    shown = [part for heading, table in tables.items() if heading != JOBS for part in (heading, aligned(*table), "")]
    told = f"{counted}; report: {relative(folder / 'report.html', Path.cwd())}"
    return "\n".join(["", *shown, *map(harmless, conclusions), "", harmless(told)])


def _tables(jobs: Sequence[JobResult], groups: Sequence[Configuration]) -> dict[str, Table]:
    """The report's tables by their headings."""
    tables = {"Configurations": _configuration_table(groups)}
    best = best_configuration(groups)
    if best is not None:
        tables["Stages of the best configuration"] = _stage_table(best)
    if not all(job.finished for job in jobs):
        tables["Unfinished jobs"] = _failure_table(jobs)
    return {**tables, JOBS: _job_table(jobs)}


def _conclusions(groups: Sequence[Configuration]) -> list[str]:
    """The best configuration with its test result, and its gain over the baselines in the sweep."""
    best = best_configuration(groups)
    if best is None:
        return []
    chosen = _spread(best, "validation", "accuracy")
    lines = [
        f"Best on validation: {_name(best)} with {chosen} validation accuracy; "
        f"its test accuracy is {_spread(best, 'test', 'accuracy')}."
    ]
    ours = fmean(best.scores("test", "accuracy"))
    alone = [group for group in groups if group.values.get("kd") == "none"]
    baseline, distilled = best_configuration(alone), best_configuration([g for g in groups if g not in alone])
    if baseline is not None and distilled is not None:
        gain = fmean(distilled.scores("test", "accuracy")) - fmean(baseline.scores("test", "accuracy"))
        whose = "" if distilled is best else f", of the best distilled one, {_name(distilled)}"
        lines.append(
            f"Over the same chain without distillation ({_spread(baseline, 'test', 'accuracy')}){whose}: {gain:+.2f}."
        )
    roles = list(best.jobs[0].stages)
    if len(roles) > 1:
        mean, spread, count = mean_and_spread(best.scores("test", "accuracy", roles[0]))
        lines.append(f"Over its teacher ({_words(mean, spread, count)}): {ours - mean:+.2f}.")
    return lines


def _configuration_table(groups: Sequence[Configuration]) -> Table:
    keys = list(dict.fromkeys(key for group in groups for key in group.values))
    header = [*keys, "n", "val acc", "test acc", "test F1", "test AUC"]
    ranked = sorted(groups, key=lambda group: -fmean(group.scores("validation", "accuracy")))
    rows = []
    for group in ranked:
        count = len(group.scores("validation", "accuracy"))
        rows.append([*(group.values.get(key, "-") for key in keys), str(count), *_score_cells(group)])
    return header, rows


def _score_cells(group: Configuration, role: str | None = None) -> list[str]:
    """Validation accuracy, test accuracy, F1 and AUC of a role's stages (None: the last ones)."""
    wanted = [("validation", "accuracy"), ("test", "accuracy"), ("test", "f1_score"), ("test", "auc")]
    return [_spread(group, split, name, role, with_n=False) for split, name in wanted]


def _stage_table(best: Configuration) -> Table:
    """The stages of one configuration: mean and spread over its seeds."""
    rows = []
    for role in best.jobs[0].stages:
        stages = best.stages(role)
        size = f"{stages[0]['parameters'] / 1e6:.2f} M"
        rows.append([role, stages[0]["network"], size, str(len(stages)), *_score_cells(best, role)])
    return ["stage", "network", "parameters", "n", "val acc", "test acc", "test F1", "test AUC"], rows


def _job_table(jobs: Sequence[JobResult]) -> Table:
    keys = swept_keys(jobs)
    header = ["job", *keys, "state", "val acc", "test acc", "trained", "reused", "s"]
    rows = []
    for job in jobs:
        done = [f"{job.last[split]['accuracy']:.2f}" for split in ("validation", "test")] if job.finished else ["", ""]
        trained = [role for role, stage in job.stages.items() if stage["status"] == "trained"]
        reused = [role for role in job.stages if role not in trained]
        values = [job.overrides.get(key, "") for key in keys]
        rows.append([job.number, *values, job.state, *done, " ".join(trained), " ".join(reused), f"{job.seconds:.0f}"])
    return header, rows


def _failure_table(jobs: Sequence[JobResult]) -> Table:
    rows = [[j.number, " ".join(f"{k}={v}" for k, v in j.overrides.items()), j.state, j.reason] for j in jobs]
    return ["job", "overrides", "state", "why"], [row for row, job in zip(rows, jobs, strict=True) if not job.finished]


def _csv(jobs: Sequence[JobResult]) -> str:
    """A row a job: overrides, then for each role accuracies, F1, AUC, seconds and whether it was trained or reused."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    roles = list(dict.fromkeys(role for job in jobs for role in job.stages))
    columns = ["val_accuracy", "test_accuracy", "test_f1_score", "test_auc", "seconds", "status", "fingerprint"]
    head = ["job", *keys, "state", "seconds", *(f"{role}_{column}" for role in roles for column in columns), "reason"]
    rows: list[list[Any]] = [head]
    for job in jobs:
        cells = [job.number, *(job.overrides.get(key, "") for key in keys), job.state, job.seconds]
        for role in roles:
            stage = job.stages.get(role)
            if stage is None:
                cells += [""] * len(columns)
            else:
                test = stage["test"]
                cells += [stage["validation"]["accuracy"], test["accuracy"], test["f1_score"], test["auc"]]
                cells += [stage["seconds"], stage["status"], stage["fingerprint"]]
        rows.append([*cells, job.reason])
    return csv_text(rows)


def _pictures(
    jobs: Sequence[JobResult], groups: Sequence[Configuration], rows_key: str | None, columns_key: str | None
) -> list[str]:
    """The heat map over two swept keys, and the curves of all jobs."""
    parts = []
    drawn = _heat_map(groups, rows_key, columns_key)
    if drawn is not None:
        parts += [page.heading("Mean validation accuracy"), drawn]
    lines = {}
    for job in jobs:
        points = [(row["epoch"], row["val_accuracy"]) for row in read_epochs(job)]
        if points:
            lines[job.number + " " + " ".join(f"{k}={job.overrides.get(k)}" for k in swept_keys(jobs))] = points
    if lines:
        drawing = curves(lines, "epoch", "validation accuracy, %")
        parts += [page.heading("All jobs"), page.picture(drawing, "Validation accuracy of each job's last stage.")]
    return parts


def _heat_map(groups: Sequence[Configuration], rows_key: str | None, columns_key: str | None) -> str | None:
    """Mean accuracy on validation, which chooses, over two swept keys; the mean over all others."""
    keys = list(dict.fromkeys(key for group in groups for key in group.values))
    for wish in (rows_key, columns_key):
        if wish is not None and wish not in keys:
            raise KdxError(f"{wish}: not swept here; choose two of {', '.join(keys)}")
    preferred = [*(key for key in GRID if key in keys), *(key for key in keys if key not in (*GRID, "kd"))]
    chosen = [rows_key, columns_key]
    for position in (0, 1):
        if chosen[position] is None:
            chosen[position] = next((key for key in preferred if key not in chosen), None)
    first, second = chosen
    if first is None or second is None:
        return None
    cells: dict[tuple[str, str], list[float]] = {}
    for group in groups:
        if first in group.values and second in group.values:
            cell = cells.setdefault((group.values[first], group.values[second]), [])
            cell += group.scores("validation", "accuracy")
    if not cells:
        return None
    rows = sorted({row for row, _ in cells}, key=_as_number)
    columns = sorted({column for _, column in cells}, key=_as_number)
    means = {cell: fmean(values) for cell, values in cells.items()}
    drawing = heat_map(rows, columns, means, (first, second))
    return page.picture(drawing, f"Mean validation accuracy in % over {first} and {second}.")


def _as_number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return math.inf, text


def _spread(group: Configuration, split: str, name: str, role: str | None = None, with_n: bool = True) -> str:
    return _words(*mean_and_spread(group.scores(split, name, role)), digits=4 if name == "auc" else 2, with_n=with_n)


def _words(mean: float, spread: float, count: int, digits: int = 2, with_n: bool = True) -> str:
    if count == 0:
        return "-"
    text = f"{mean:.{digits}f}" if count == 1 else f"{mean:.{digits}f} ± {spread:.{digits}f}"
    return f"{text} (n={count})" if with_n else text


def _name(group: Configuration) -> str:
    return " ".join(f"{key}={value}" for key, value in group.values.items()) or "the one configuration"
