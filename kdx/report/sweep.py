"""What a sweep found, as sweep.csv, sweep.md and report.html."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdx.files import from_here, write_atomic
from kdx.recipe import ACCURACY, DECIMALS, LOSS
from kdx.report import html as page
from kdx.report.budget import budget_of, budget_table, recommendation
from kdx.report.gains import (
    NAMES,
    NO_BASELINE,
    OTHER_DATA,
    Comparison,
    compare,
    difference_of,
    digits_of,
    gain_table,
    has_baseline,
    in_words,
    score_of,
    summed_up,
)
from kdx.report.html import REPORT
from kdx.report.statistics import Difference
from kdx.report.sweep_csv import SCORES, jobs_of, sweep_csv, wilson_of
from kdx.report.sweep_pictures import WORDS, budget_pictures, gain_picture, pictures_of
from kdx.report.tables import aligned, markdown, weights
from kdx.results import (
    FINISHED,
    OPEN,
    Configuration,
    as_text,
    best_of,
    grouped,
    keys_of,
    load_sweep,
    mean_of,
    on_one_data_set,
    override_keys,
    rank_of,
    roles_of,
    selection_of,
    swept_keys,
    unlike_losses,
)
from kdx.text import harmless, markdown_text

if TYPE_CHECKING:
    import pandas as pd

JOBS = "Jobs"
GAINS = "Gain over no distillation"
BUDGET = "Students for a budget"
OTHERS = "Difference to the first configuration"
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
    title = f"Sweep {folder.resolve().name}"
    counted = _counted(frame)
    write_atomic(folder / "sweep.csv", sweep_csv(frame, comparisons).encode())
    text = [f"# {markdown_text(title)}", counted + ".", *map(markdown_text, conclusions)]
    text += [part for heading, table in tables.items() for part in (f"## {heading}", markdown(*table))]
    write_atomic(folder / "sweep.md", ("\n\n".join(text) + "\n").encode())
    runs = "" if reload is None else f" The sweep runs: this page is written and loads itself again every {reload} s."
    parts = [page.lead(line) for line in (f"{counted}.{runs}", *conclusions)]
    drawn = pictures_of(frame, groups, rows_key, columns_key)
    for heading, table in tables.items():
        parts += drawn if heading == JOBS else []  # the longest table comes last
        parts += [page.heading(heading), page.table(heading.split()[0].lower(), *table)]
        parts += gain_picture(comparisons) if heading in (GAINS, OTHERS) else []
        parts += budget_pictures(groups) if heading == BUDGET else []
    write_atomic(folder / REPORT, page.page(title, parts, reload).encode())
    shown = [part for heading, table in tables.items() if heading != JOBS for part in (heading, aligned(*table), "")]
    told = f"{counted}; report: {from_here(folder / REPORT)}"
    return "\n".join(["", *shown, *map(harmless, conclusions), "", harmless(told)])


def _counted(frame: "pd.DataFrame") -> str:
    finished, unbegun = ((frame["status"] == status).sum() for status in (FINISHED, OPEN))
    return f"{finished} of {len(frame)} jobs finished" + (f", {unbegun} not begun" if unbegun else "")


def _tables(
    frame: "pd.DataFrame", groups: Sequence[Configuration], comparisons: Sequence[Comparison]
) -> dict[str, Table]:
    """The report's tables by their headings."""
    tables = {"Configurations": _configuration_table(groups)}
    if comparisons:
        tables[GAINS if has_baseline(groups) else OTHERS] = gain_table(comparisons)
    best = _best(groups)
    if best is not None and not _data_sets(groups):
        tables["Stages of the best configuration"] = _stage_table(best)
    budget = budget_of(groups)
    if budget is not None:
        tables[BUDGET] = budget_table(budget)
    begun = frame[~frame["status"].isin([FINISHED, OPEN])]
    if len(begun):
        tables["Unfinished jobs"] = _unfinished_table(begun, swept_keys(frame) or override_keys(frame))
    return {**tables, JOBS: _job_table(frame, groups)}


def _best(groups: Sequence[Configuration]) -> Configuration | None:
    """The best configuration; none where none has the score that compares them."""
    best = best_of(groups) if groups else None
    return None if best is None or math.isnan(best.mean(selection_of(groups)[1])) else best


def _conclusions(groups: Sequence[Configuration], comparisons: Sequence[Comparison]) -> list[str]:
    """The best configuration with its test result, and its gain over the baselines in the sweep."""
    best = best_of(groups) if groups else None
    if best is None:
        return []
    every = [summed_up(comparisons)] if len(comparisons) > 1 else []
    data_sets = _data_sets(groups)
    if data_sets:
        told = f"Runs on {data_sets}: nothing is best among different data sets, and none is compared with another."
        return [told, *every]
    select, column = selection_of(groups)
    unlike = _unlike_losses(groups)
    if unlike and _best(groups) is None:
        return [f"Nothing is best on validation: {unlike}, and nobody has an accuracy."]
    score = score_of(groups)
    on_test = [f"its test accuracy is {_spread(best, 'test_accuracy')}"]
    on_test += [] if score == "test_accuracy" else [f"its test {NAMES[score]} {_spread(best, score)}"]
    if not len(best.scores("test_accuracy")):
        on_test = ["it has learnt no classifier and has no accuracy"]
    lines = [
        f"Best on validation: {best.name} with {_spread(best, column, digits=DECIMALS[select])} "
        f"validation {WORDS[select]}; {', '.join(on_test)}."
    ]
    lines += [f"By accuracy: {unlike}."] if unlike else []
    lines += _how_sure(groups, best)
    budget = budget_of(groups)
    lines += every if has_baseline(groups) else []
    lines += _over_baseline(groups, comparisons, best) + _over_teacher(best, score)
    return lines + ([] if budget is None else [recommendation(budget)])


def _how_sure(groups: Sequence[Configuration], best: Configuration) -> list[str]:
    """Why another configuration could as well be the best: as good ones, and more seeds of the others."""
    rank = rank_of(groups)
    equal = sum(rank(group) == rank(best) for group in groups)
    lines = [f"{equal} configurations are equal on validation; this one came first."] if equal > 1 else []
    own, most = len(best.stages()), max(len(group.stages()) for group in groups)
    if own < most:
        lines.append(f"It has n={own}, others up to n={most}: of few seeds the best is easily so by chance.")
    return lines


def _data_sets(groups: Sequence[Configuration]) -> str:
    """The data sets that the configurations ran on, where they are not one; else nothing."""
    if on_one_data_set(groups):
        return ""
    names = dict.fromkeys(text for group in groups for text in map(as_text, group.runs["dataset"]) if text)
    return ", ".join(names) if len(names) > 1 else f"several contents of {next(iter(names), 'the data')}"


def _unlike_losses(groups: Sequence[Configuration]) -> str:
    """Why configurations whose epochs the loss chose are not compared by it; nothing where they are."""
    keys = unlike_losses(groups)
    by_loss = any((group.stages()["selected_by"] == LOSS).any() for group in groups)
    return f"the losses under different {', '.join(keys)} are not one quantity" if keys and by_loss else ""


def _over_baseline(
    groups: Sequence[Configuration], comparisons: Sequence[Comparison], best: Configuration
) -> list[str]:
    """What the best distilled configuration gains over the same one without distillation, or why that is not known."""
    if not has_baseline(groups):
        return [NO_BASELINE] if best.distilled else []
    distilled = best_of([group for group in groups if group.distilled], groups)
    found = next(comparison for comparison in comparisons if comparison.one is distilled)
    whose = "" if distilled is best else f", of the best distilled one, {distilled.name}"
    if not len(distilled.scores(found.score)):
        return []
    if found.reference is None:
        return [f"No finished job is as {found.one.name} but without distillation: its gain is not known."]
    alone = _of_compared(found.reference, found.score, found.difference)
    told = in_words(found.difference, found.digits) if found.same_data else OTHER_DATA
    return [f"Over the same chain without distillation ({alone}){whose}{_which(found.score)}: {told}."]


def _over_teacher(best: Configuration, score: str) -> list[str]:
    teacher = best.teacher
    if teacher is None or not len(best.scores(score, teacher)) or not len(best.scores(score)):
        return []
    found = difference_of(best, best, score, other_role=teacher)
    whose = f"its {teacher}" if best.distilled else f"the chain's {teacher}, which did not teach it"
    beside = f"({_of_compared(best, score, found, teacher)}){_which(score)}"
    return [f"Over {whose} {beside}: {in_words(found, digits_of(score))}."]


def _of_compared(other: Configuration, score: str, found: Difference | None, role: str | None = None) -> str:
    """The scores of what is compared with; only the mean of the seeds compared where it has more."""
    if found is None or found.n >= len(other.scores(score, role)):
        return _spread(other, score, role)
    return f"{found.other:.{digits_of(score)}f}"


def _which(score: str) -> str:
    return "" if score == "test_accuracy" else f", test {NAMES[score]}"


def _configuration_table(groups: Sequence[Configuration]) -> Table:
    keys = keys_of(groups)
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
        size = weights(int(stages["parameters"].iloc[0]))
        rows.append([role, stages["network"].iloc[0], size, str(len(stages)), *_score_cells(best, role)])
    return ["stage", "network", "parameters", "n", "val acc", "test acc", "test F1", "test AUC"], rows


def _job_table(frame: "pd.DataFrame", groups: Sequence[Configuration]) -> Table:
    keys, roles, rows = swept_keys(frame), roles_of(frame), []
    select, column = selection_of(groups)
    shown = {f"val {WORDS[select]}": (column, DECIMALS[select])} if select != ACCURACY else {}
    shown |= {"val acc": ("val_accuracy", 2), "test acc": ("test_accuracy", 2)}
    on_cluster = bool(frame["worker"].notna().any())
    for job, run in jobs_of(frame):
        delivered = run["delivered"]
        done = []
        for name, digits in shown.values():
            known = delivered is not None and as_text(run[f"{delivered}_{name}"])  # else no classifier has learnt
            done.append(f"{run[f'{delivered}_{name}']:.{digits}f}" if known else "" if delivered is None else "-")
        done.append(" to ".join(f"{bound:.2f}" for bound in wilson_of(run, delivered)))
        statuses = {role: run[f"{role}_status"] for role in roles if run[f"{role}_status"] is not None}
        trained = " ".join(role for role, status in statuses.items() if status == "trained")
        reused = " ".join(role for role, status in statuses.items() if status != "trained")
        values = [as_text(run[key]) for key in keys]
        cells = [_page_of(job, run), *values, run["status"], *done, trained, reused]
        cells.append("" if run["status"] == OPEN else f"{run['seconds']:.0f}")
        rows.append(cells + ([as_text(run["worker"])] if on_cluster else []))
    return ["job", *keys, "state", *shown, "95 % interval", "trained", "reused", "s", *(["ran on"] * on_cluster)], rows


def _page_of(job: str, run: dict[str, Any]) -> str:
    """A job's number, which leads to its own page, or to its folder where it has none."""
    own = Path(run["folder"]) / REPORT
    return page.Linked(job, f"{job}/{REPORT if own.exists() else ''}") if own.parent.exists() else job


def _unfinished_table(begun: "pd.DataFrame", keys: Sequence[str]) -> Table:
    rows = []
    for job, run in jobs_of(begun):
        given = " ".join(f"{key}={value}" for key in keys if (value := as_text(run[key])))
        rows.append([_page_of(job, run), given, run["status"], run["reason"] or ""])
    return ["job", "overrides", "state", "why"], rows


def _spread(
    group: Configuration, name: str, role: str | None = None, with_n: bool = True, digits: int | None = None
) -> str:
    scores = group.scores(name, role)
    if not len(scores):
        return "-"
    digits = digits_of(name) if digits is None else digits
    text = f"{mean_of(scores):.{digits}f}" + ("" if len(scores) == 1 else f" ± {scores.std():.{digits}f}")
    return f"{text} (n={len(scores)})" if with_n else text
