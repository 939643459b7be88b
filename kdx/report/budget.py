"""Which student for a budget: accuracy on test against latency, size and multiply-adds, where a sweep has several."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdx.recipe import AUC, DECIMALS
from kdx.report.gains import NAMES, digits_of, score_of
from kdx.results import Configuration, best_of, mean_of, on_one_data_set

CLOSE = {DECIMALS[AUC]: 0.01}  # one point, of scores from 0 to 1; of those in percent it is 1


@dataclass(frozen=True)
class Cost:
    """A column of the stages' table in words; its values are shown divided by `unit`."""

    name: str
    column: str
    words: str
    unit: float = 1.0
    digits: int = 2

    def shown(self, value: float) -> str:
        return "-" if math.isnan(value) else f"{value / self.unit:,.{self.digits}f}"


COSTS = (
    Cost("latency", "latency_ms", "CPU ms, 1 image"),
    Cost("size", "file_mb", "file MB"),
    Cost("multiply-adds", "multiply_adds", "M multiply-adds", 1e6, 1),
)
STUDENT = "student"


@dataclass(frozen=True)
class Candidate:
    """A network with its best configuration's scores and what it costs, NaN where that was not measured.

    `beside` is its validation score and the teacher's, of the seeds that both have, or of all where these are none;
    `of_front` names the costs it is best for.
    """

    network: str
    role: str
    n: int
    validation: float
    test: float
    parameters: int
    costs: dict[str, float]
    beside: tuple[float, float] = (math.nan, math.nan)
    of_front: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        return not any(map(math.isnan, self.costs.values()))


@dataclass(frozen=True)
class Budget:
    """The students of a sweep, smallest first, and the teacher of the best distilled one.

    `unmeasured` names the networks that are left out because what they cost is not known.
    """

    students: list[Candidate]
    teacher: Candidate | None
    score: str
    close: float  # one point
    unmeasured: tuple[str, ...] = ()


def budget_of(groups: Sequence[Configuration]) -> Budget | None:
    """None unless two networks or more were delivered and measured, on one data set.

    Each network stands for its best configuration on validation.
    """
    by_network: dict[str, list[Configuration]] = {}
    for group in groups:
        by_network.setdefault(str(group.stages()["network"].iloc[0]), []).append(group)
    if len(by_network) < 2 or not on_one_data_set(groups):
        return None
    score = score_of(groups)
    column = score.replace("test_", "val_")
    taught = [group for group in groups if group.teacher is not None]
    best = best_of(taught, groups) if taught else None
    teacher = None if best is None else _candidate(best, score, column, best.teacher)
    found = [_candidate(best_of(some, groups), score, column, beside=best) for some in by_network.values()]
    students = [candidate for candidate in found if candidate is not None and candidate.measured]
    unmeasured = tuple(candidate.network for candidate in found if candidate is not None and not candidate.measured)
    if len(students) < 2:
        return None
    fronts = [tuple(cost.name for cost in COSTS if on_front(each, students, cost.column)) for each in students]
    students = [replace(each, of_front=front) for each, front in zip(students, fronts, strict=True)]
    close = CLOSE.get(digits_of(score), 1.0)
    students.sort(key=lambda student: student.parameters)
    return Budget(students, teacher, score, close, unmeasured)


def on_front(candidate: Candidate, others: Sequence[Candidate], cost: str) -> bool:
    """Whether no other is as good for less, or better for as little (Pareto), on the test split."""
    return not any(
        other.test >= candidate.test
        and other.costs[cost] <= candidate.costs[cost]
        and (other.test > candidate.test or other.costs[cost] < candidate.costs[cost])
        for other in others
    )


def recommendation(budget: Budget) -> str:
    """The smallest student within one point of the teacher on validation, with its test score: test chooses nothing.

    It begins with the students that cannot be among them.
    """
    left_out = f"Not among the students, as their costs were not measured: {', '.join(budget.unmeasured)}. "
    return (left_out if budget.unmeasured else "") + _named(budget)


def _named(budget: Budget) -> str:
    if budget.teacher is None:
        return "No job of this sweep has its teacher beside it (a reused student needs none): none can be named."
    digits, teacher = digits_of(budget.score), budget.teacher
    near = [s for s in budget.students if s.beside[0] >= s.beside[1] - budget.close]
    name = NAMES[budget.score]
    point = "1 point" if budget.close == 1 else f"{budget.close:g}"
    within = f"within {point} of the {teacher.role}'s validation {name}"
    if not near:
        nearest = max(budget.students, key=lambda student: student.beside[0] - student.beside[1])
        gap = " against ".join(f"{score:.{digits}f}" for score in nearest.beside)
        return f"No student is {within}; the nearest is {nearest.network}: {gap}."
    chosen = near[0]
    costs = "; ".join(f"{cost.words}: {cost.shown(chosen.costs[cost.column])}" for cost in COSTS)
    on_test = f"test {name} {chosen.test:.{digits}f}, the {teacher.role}'s {teacher.test:.{digits}f}"
    return f"The smallest student {within}: {chosen.network} ({costs}). Its {on_test}."


def budget_table(budget: Budget) -> tuple[list[str], list[list[str]]]:
    """Students and their teacher with scores and costs."""
    digits, name = digits_of(budget.score), NAMES[budget.score]
    costs = [cost.words for cost in COSTS]
    header = ["network", "role", "n", f"val {name}", f"test {name}", "parameters", *costs, "Pareto front by"]
    rows = []
    for each in [*budget.students, *([budget.teacher] if budget.teacher else [])]:
        values = [cost.shown(each.costs[cost.column]) for cost in COSTS]
        fronts = ", ".join(each.of_front) or "-"
        scores = [f"{value:.{digits}f}" for value in (each.validation, each.test)]
        rows.append([each.network, each.role, str(each.n), *scores, f"{each.parameters:,}", *values, fronts])
    return header, rows


def _candidate(
    group: Configuration, score: str, column: str, role: str | None = None, beside: Configuration | None = None
) -> Candidate | None:
    """A network's scores and costs, also `beside` a configuration's teacher; None where it has no score."""
    stages = group.stages(role)
    costs = {cost.column: float(stages[cost.column].astype(float).median()) for cost in COSTS}
    test, validation = (group.scores(name, role) for name in (score, column))
    if not len(test) or not len(validation):
        return None
    name = str(stages["network"].iloc[0])
    parameters, of = int(stages["parameters"].iloc[0]), role or STUDENT
    found = Candidate(name, of, len(test), mean_of(validation), mean_of(test), parameters, costs)
    return found if beside is None else replace(found, beside=_beside(group, beside, column))


def _beside(group: Configuration, taught: Configuration, column: str) -> tuple[float, float]:
    """A configuration's score and that of the teacher of another, or of the same."""
    both = group.by_seed(column).merge(taught.by_seed(column, taught.teacher), on="seed", suffixes=("", "_teacher"))
    if both.empty:
        return group.mean(column), mean_of(taught.scores(column, taught.teacher))
    return mean_of(both["score"]), mean_of(both["score_teacher"])
