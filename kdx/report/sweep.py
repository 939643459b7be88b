"""What a sweep found, as sweep.csv, sweep.md and report.html."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdx.errors import KdxError
from kdx.files import from_here, write_atomic
from kdx.recipe import ACCURACY, AUC, DECIMALS, F1, LOSS
from kdx.recipe import SCORES as IN_LOG
from kdx.report import html as page
from kdx.report.budget import COSTS, budget_of, budget_table, recommendation
from kdx.report.gains import (
    NAMES,
    NO_BASELINE,
    Comparison,
    compare,
    difference_of,
    digits_of,
    gain_table,
    has_baseline,
    in_words,
    score_of,
)
from kdx.report.html import REPORT
from kdx.report.plots import curves, front, heat_map
from kdx.report.sweep_csv import SCORES, jobs_of, sweep_csv, wilson_of
from kdx.report.tables import aligned, markdown
from kdx.results import (
    Configuration,
    as_text,
    best_of,
    grid,
    grouped,
    load_sweep,
    override_keys,
    rank_of,
    read_csv,
    roles_of,
    selection_of,
    swept_keys,
)
from kdx.text import harmless, markdown_text

if TYPE_CHECKING:
    import pandas as pd

GRID = ("kd.temperature", "kd.alpha")  # drawn as a heat map where both were swept
JOBS = "Jobs"
GAINS = "Gain over no distillation"
BUDGET = "Students for a budget"
OTHERS = "Difference to the first configuration"
WORDS = {ACCURACY: "accuracy", AUC: "AUC", F1: "F1", LOSS: "loss"}
Table = tuple[list[str], list[list[str]]]  # header and rows


def write_report(
    folder: Path, rows_key: str | None = None, columns_key: str | None = None, reload: int | None = None
) -> str:
    """Write sweep.csv, sweep.md and report.html into a sweep's folder; the outcome in words for a terminal.

    `reload`: the sweep runs, and its page loads itself again after so many seconds.
    """
    frame = load_sweep(folder)
    groups = grouped(frame)
    comparisons = compare(groups)
    tables, conclusions = _tables(frame, groups, comparisons), _conclusions(groups, comparisons)
    title = f"Sweep {folder.name}"
    counted = f"{(frame['status'] == 'finished').sum()} of {len(frame)} jobs finished"
    write_atomic(folder / "sweep.csv", sweep_csv(frame, comparisons).encode())
    text = [f"# {markdown_text(title)}", counted + ".", *map(markdown_text, conclusions)]
    text += [part for heading, table in tables.items() for part in (f"## {heading}", markdown(*table))]
    write_atomic(folder / "sweep.md", ("\n\n".join(text) + "\n").encode())
    runs = "" if reload is None else f" The sweep runs: this page is written and loads itself again every {reload} s."
    parts = [page.lead(line) for line in (f"{counted}.{runs}", *conclusions)]
    drawn = _pictures(frame, groups, rows_key, columns_key)
    for heading, table in tables.items():
        parts += drawn if heading == JOBS else []  # the longest table comes last
        parts += [page.heading(heading), page.table(heading.split()[0].lower(), *table)]
        parts += _budget_pictures(groups) if heading == BUDGET else []
    write_atomic(folder / REPORT, page.page(title, parts, reload).encode())
    shown = [part for heading, table in tables.items() if heading != JOBS for part in (heading, aligned(*table), "")]
    told = f"{counted}; report: {from_here(folder / 'report.html')}"
    return "\n".join(["", *shown, *map(harmless, conclusions), "", harmless(told)])


def _tables(
    frame: "pd.DataFrame", groups: Sequence[Configuration], comparisons: Sequence[Comparison]
) -> dict[str, Table]:
    """The report's tables by their headings."""
    tables = {"Configurations": _configuration_table(groups)}
    if comparisons:
        tables[GAINS if has_baseline(groups) else OTHERS] = gain_table(comparisons)
    best = best_of(groups) if groups else None
    if best is not None:
        tables["Stages of the best configuration"] = _stage_table(best)
    budget = budget_of(groups)
    if budget is not None:
        tables[BUDGET] = budget_table(budget)
    if not (frame["status"] == "finished").all():
        tables["Unfinished jobs"] = _failure_table(frame)
    return {**tables, JOBS: _job_table(frame)}


def _conclusions(groups: Sequence[Configuration], comparisons: Sequence[Comparison]) -> list[str]:
    """The best configuration with its test result, and its gain over the baselines in the sweep."""
    best = best_of(groups) if groups else None
    if best is None:
        return []
    select, column = selection_of(groups)
    score = score_of(groups)
    on_test = [f"accuracy is {_spread(best, 'test_accuracy')}"]
    on_test += [] if score == "test_accuracy" else [f"{NAMES[score]} {_spread(best, score)}"]
    lines = [
        f"Best on validation: {best.name} with {_spread(best, column, digits=DECIMALS[select])} "
        f"validation {WORDS[select]}; "
        f"its test {', its test '.join(on_test)}."
    ]
    budget = budget_of(groups)
    lines += _over_baseline(groups, comparisons, best) + _over_teacher(best, score)
    return lines + ([] if budget is None else [recommendation(budget)])


def _over_baseline(
    groups: Sequence[Configuration], comparisons: Sequence[Comparison], best: Configuration
) -> list[str]:
    """What the best distilled configuration gains over the same one without distillation, or why that is not known."""
    if not has_baseline(groups):
        return [NO_BASELINE] if best.distilled else []
    distilled = best_of([group for group in groups if group.distilled])
    found = next(comparison for comparison in comparisons if comparison.one is distilled)
    whose = "" if distilled is best or distilled is None else f", of the best distilled one, {distilled.name}"
    if found.reference is None:
        return [f"No finished job is as {found.one.name} but without distillation: its gain is not known."]
    alone = _spread(found.reference, found.score)
    told = in_words(found.difference, found.digits)
    return [f"Over the same chain without distillation ({alone}){whose}{_which(found.score)}: {told}."]


def _over_teacher(best: Configuration, score: str) -> list[str]:
    roles = best.roles
    if len(roles) < 2 or not len(best.scores(score, roles[0])):
        return []
    found = difference_of(best, best, score, other_role=roles[0])
    digits = digits_of(score)
    return [f"Over its teacher ({_spread(best, score, roles[0])}){_which(score)}: {in_words(found, digits)}."]


def _which(score: str) -> str:
    return "" if score == "test_accuracy" else f", test {NAMES[score]}"


def _configuration_table(groups: Sequence[Configuration]) -> Table:
    keys = list(dict.fromkeys(key for group in groups for key in group.values))
    select, column = selection_of(groups)
    chosen = [] if select == ACCURACY else [f"val {WORDS[select]}"]  # a column of its own, where it is not there
    header = [*keys, "n", *chosen, "val acc", "test acc", "test F1", "test AUC"]
    rank, rows = rank_of(groups), []
    for group in sorted(groups, key=lambda group: -rank(group)):
        values = [as_text(group.values.get(key)) or "-" for key in keys]
        selected = [_spread(group, column, with_n=False, digits=DECIMALS[select]) for _ in chosen]
        rows.append([*values, str(len(group.stages())), *selected, *_score_cells(group)])
    return header, rows


def _score_cells(group: Configuration, role: str | None = None) -> list[str]:
    """Validation accuracy, test accuracy, F1 and AUC of a role's stages (None: the delivered ones)."""
    return [_spread(group, name, role, with_n=False) for name in SCORES]


def _stage_table(best: Configuration) -> Table:
    """The stages of one configuration: mean and spread over its seeds."""
    rows = []
    for role in best.roles:
        stages = best.stages(role)
        size = f"{stages['parameters'].iloc[0] / 1e6:.2f} M"
        rows.append([role, stages["network"].iloc[0], size, str(len(stages)), *_score_cells(best, role)])
    return ["stage", "network", "parameters", "n", "val acc", "test acc", "test F1", "test AUC"], rows


def _job_table(frame: "pd.DataFrame") -> Table:
    keys, roles, rows = swept_keys(frame), roles_of(frame), []
    select, column = selection_of(grouped(frame))
    shown = {f"val {WORDS[select]}": (column, DECIMALS[select])} if select != ACCURACY else {}
    shown |= {"val acc": ("val_accuracy", 2), "test acc": ("test_accuracy", 2)}
    for job, run in jobs_of(frame):
        delivered = run["delivered"]
        done = [
            "" if delivered is None else f"{run[f'{delivered}_{name}']:.{digits}f}" for name, digits in shown.values()
        ]
        done.append(" to ".join(f"{bound:.2f}" for bound in wilson_of(run, delivered)))
        statuses = {role: run[f"{role}_status"] for role in roles if run[f"{role}_status"] is not None}
        trained = " ".join(role for role, status in statuses.items() if status == "trained")
        reused = " ".join(role for role, status in statuses.items() if status != "trained")
        values = [as_text(run[key]) for key in keys]
        rows.append([_page_of(job, run), *values, run["status"], *done, trained, reused, f"{run['seconds']:.0f}"])
    return ["job", *keys, "state", *shown, "95 % interval", "trained", "reused", "s"], rows


def _page_of(job: str, run: dict[str, Any]) -> str:
    """A job's number, which leads to its own page, or to its folder where it has none."""
    own = Path(run["folder"]) / REPORT
    return page.Linked(job, f"{job}/{REPORT if own.exists() else ''}") if own.parent.exists() else job


def _failure_table(frame: "pd.DataFrame") -> Table:
    rows = []
    for job, run in jobs_of(frame[frame["status"] != "finished"]):
        values = {key: as_text(run[key]) for key in override_keys(frame)}
        given = " ".join(f"{key}={value}" for key, value in values.items() if value)
        rows.append([_page_of(job, run), given, run["status"], run["reason"] or ""])
    return ["job", "overrides", "state", "why"], rows


def _pictures(
    frame: "pd.DataFrame", groups: Sequence[Configuration], rows_key: str | None, columns_key: str | None
) -> list[str]:
    """The heat map over two swept keys, and the curves of all jobs."""
    parts = []
    drawn = _heat_map(frame, groups, rows_key, columns_key)
    if drawn is not None:
        parts += [page.heading(f"Mean validation {WORDS[selection_of(groups)[0]]}"), drawn]
    lines, keys, select = {}, swept_keys(frame), selection_of(groups)[0]
    for job, run in jobs_of(frame):
        points = _points_of(run, f"val_{IN_LOG[select]}")
        if points:
            name = job + " " + " ".join(f"{key}={as_text(run[key])}" for key in keys)
            lines[name] = points
    if lines:
        drawing = curves(lines, "epoch", f"validation {WORDS[select]}{_unit(select)}")
        caption = f"Validation {WORDS[select]} of each job's last stage."
        parts += [page.heading("All jobs"), page.picture(drawing, caption)]
    return parts


def _budget_pictures(groups: Sequence[Configuration]) -> list[str]:
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
        ]
        caption = f"Test {name} of each network by {cost.name}; filled: no student is better for less."
        parts.append(page.picture(front(points, (cost.words, f"test {name}")), caption))
    return parts


def _points_of(run: dict[str, Any], column: str) -> list[tuple[float, float]]:
    """One column of the log by epoch of a job's last stage, also of one that it still trains; none without a log."""
    logs = sorted(Path(run["folder"]).glob("*/logs/*_log.csv"), key=lambda path: path.stat().st_mtime_ns)
    if run["delivered"] is not None:
        logs = list(Path(run[f"{run['delivered']}_checkpoint"]).parent.parent.glob("logs/*_log.csv"))
    rows = read_csv(logs[-1]) if logs else []
    return [(row["epoch"], row[column]) for row in rows if column in row]


def _heat_map(
    frame: "pd.DataFrame", groups: Sequence[Configuration], rows_key: str | None, columns_key: str | None
) -> str | None:
    """Mean of what chooses on validation over two swept keys; the mean over all others."""
    keys = list(dict.fromkeys(key for group in groups for key in group.values))
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


def _spread(
    group: Configuration, name: str, role: str | None = None, with_n: bool = True, digits: int | None = None
) -> str:
    scores = group.scores(name, role)
    digits = (4 if name == "test_auc" else 2) if digits is None else digits
    return _words(scores.mean(), scores.std(), len(scores), digits=digits, with_n=with_n)


def _words(mean: float, spread: float, count: int, digits: int = 2, with_n: bool = True) -> str:
    if count == 0:
        return "-"
    text = f"{mean:.{digits}f}" if count == 1 else f"{mean:.{digits}f} ± {spread:.{digits}f}"
    return f"{text} (n={count})" if with_n else text
