"""The drawings of a sweep's page: curves, a heat map, gains with intervals, what students reach for what they cost."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdx.errors import KdxError
from kdx.recipe import ACCURACY, AUC, DECIMALS, F1, LOSS
from kdx.recipe import SCORES as IN_LOG
from kdx.report import html as page
from kdx.report.budget import COSTS, budget_of
from kdx.report.gains import NAMES, ON_TEST, Comparison
from kdx.report.plots import curves, front, heat_map, intervals
from kdx.report.sweep_csv import jobs_of
from kdx.results import (
    Configuration,
    as_text,
    grid,
    keys_of,
    on_one_data_set,
    override_keys,
    read_csv,
    selection_of,
    swept_keys,
)
from kdx.results.frame import SEED
from kdx.results.logs import log_of_last_stage

if TYPE_CHECKING:
    import pandas as pd

GRID = ("kd.temperature", "kd.alpha")  # drawn as a heat map where both were swept
MOST_INTERVALS = 60  # of one picture
WORDS = {ACCURACY: "accuracy", AUC: "AUC", F1: "F1", LOSS: "loss"}


def pictures_of(
    frame: "pd.DataFrame", groups: Sequence[Configuration], rows_key: str | None, columns_key: str | None
) -> list[str]:
    """The heat map over two swept keys, and the curves of all jobs, those of a configuration in one colour."""
    parts = []
    drawn = _heat_map(frame, groups, rows_key, columns_key)
    if drawn is not None:
        parts += [page.heading(f"Mean validation {WORDS[selection_of(groups)[0]]}"), drawn]
    lines, select = [], selection_of(groups)[0]
    names = brief_names([key for key in swept_keys(frame) if key != SEED])
    for job, run in jobs_of(frame):
        points = _points_of(run, f"val_{IN_LOG[select]}")
        if points:
            values = " ".join(f"{name}={as_text(run[key])}" for key, name in names.items())
            lines.append((values or f"job {job}", points))
    if lines:
        drawing = curves(lines, "epoch", f"validation {WORDS[select]}{_unit(select)}")
        of_one = ", those of a configuration in one colour" if names else ""
        caption = f"Validation {WORDS[select]} of each job's last stage{of_one}."
        parts += [page.heading("All jobs"), page.picture(drawing, caption)]
    return parts


def brief_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key's shortest end of whole words that is no other's: `labelled` of `stage.student.labelled`."""

    def ends(key: str) -> list[str]:
        words = key.split(".")
        return [".".join(words[start:]) for start in reversed(range(len(words)))]

    taken = Counter(end for key in keys for end in ends(key))
    return {key: next((end for end in ends(key) if taken[end] == 1), key) for key in keys}


def gain_picture(comparisons: Sequence[Comparison]) -> list[str]:
    """The difference of every comparison with its interval, the largest first; of two and more."""
    names = brief_names(keys_of(comparison.one for comparison in comparisons))
    rows = []
    for comparison in comparisons:
        found = comparison.difference
        if found is not None and found.low is not None and found.high is not None:
            values = comparison.one.values.items()
            told = " ".join(f"{names[key]}={text}" for key, value in values if (text := as_text(value)))
            rows.append((told, found.mean, found.low, found.high, found.shown))
    if not 1 < len(rows) <= MOST_INTERVALS:
        return []
    score = comparisons[0].score
    rows.sort(key=lambda row: -row[1])
    unit = "" if score == ON_TEST[AUC] else ", points"
    caption = "Differences with their 95 % intervals; filled: shown, after Holm's correction."
    return [page.picture(intervals(rows, f"difference in test {NAMES[score]}{unit}"), caption)]


def budget_pictures(groups: Sequence[Configuration]) -> list[str]:
    """Test scores of the students against each of their costs."""
    budget = budget_of(groups)
    if budget is None:
        return []
    name, parts = NAMES[budget.score], []
    for cost in COSTS:
        all_of = [*budget.students, *([budget.teacher] if budget.teacher else [])]
        points = [
            (f"{c.network} ({c.role})", c.costs[cost.column] / cost.unit, c.test, cost.name in c.of_front)
            for c in all_of
            if not math.isnan(c.costs[cost.column])
        ]
        caption = f"Test {name} of each network by {cost.name}; filled: no student is better for less."
        parts.append(page.picture(front(points, (cost.words, f"test {name}")), caption))
    return parts


def _points_of(run: dict[str, Any], column: str) -> list[tuple[float, float]]:
    """One column of the log by epoch of a job's last stage, also of one that it still trains; none without a log."""
    delivered = run["delivered"]
    log = log_of_last_stage(Path(run["folder"]), delivered and Path(run[f"{delivered}_checkpoint"]))
    try:
        rows = read_csv(log) if log else []
    except KdxError as error:
        logging.getLogger(__name__).warning("%s: drawn without its curve", error)
        return []
    return [(row["epoch"], row[column]) for row in rows if column in row]


def _heat_map(
    frame: "pd.DataFrame", groups: Sequence[Configuration], rows_key: str | None, columns_key: str | None
) -> str | None:
    """Mean of what chooses on validation over two swept keys; the mean over all others."""
    known = override_keys(frame)
    keys = [key for key in keys_of(groups) if key in known]  # the data's hash and a sweep's name are none
    for requested in (rows_key, columns_key):
        if requested is not None and requested not in keys:
            raise KdxError(f"{requested}: not swept here; choose two of {', '.join(keys)}")
    preferred = [*(key for key in GRID if key in keys), *(key for key in keys if key not in (*GRID, "kd"))]
    chosen = [rows_key, columns_key]
    for position in (0, 1):
        if chosen[position] is None:
            chosen[position] = next((key for key in preferred if key not in chosen), None)
    first, second = chosen
    if first is None or second is None:
        return None
    of_data = any(key.startswith("dataset") for key in (first, second))
    if not of_data and not on_one_data_set(groups):
        return None  # a cell would be a mean over data sets
    select, column = selection_of(groups)
    table = grid(frame, first, second, column)
    if not table.size:
        return None
    cells = {
        (as_text(row), as_text(column)): float(table.loc[row, column])
        for row in table.index
        for column in table.columns
        if table.loc[row, column] == table.loc[row, column]
    }
    rows, columns = ([as_text(value) for value in axis] for axis in (table.index, table.columns))
    drawing = heat_map(rows, columns, cells, (first, second), DECIMALS[select])
    unit = _unit(select).replace(",", " in")
    return page.picture(drawing, f"Mean validation {WORDS[select]}{unit} over {first} and {second}.")


def _unit(select: str) -> str:
    return ", %" if DECIMALS[select] == 2 else ""
