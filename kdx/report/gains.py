"""Which configurations of a sweep are compared with which, and what the seeds show: `kdx.report.gains.gains(frame)`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdx.recipe import ACCURACY, AUC, DECIMALS, F1
from kdx.report.statistics import MOST_SEEDS, Difference, corrected, paired_difference, unpaired_difference
from kdx.results import Configuration, as_text, grouped, is_of_distillation, keys_of, same_data, selection_of
from kdx.results.groups import SETTINGS

if TYPE_CHECKING:
    import pandas as pd

ON_TEST = {AUC: "test_auc", F1: "test_f1_score"}  # the test score that answers; of all else the accuracy
NAMES = {"test_accuracy": "accuracy", "test_auc": "AUC", "test_f1_score": "F1"}
NO_BASELINE = (
    "No finished job of this sweep is without distillation (kd=none): "
    "whether distillation helps cannot be told from it."
)
FOUND = ("n", "paired", "difference", "low", "high", "p", "p_holm", "shown", "seeds_needed")  # columns of `gains`
OTHER_DATA = "not compared: other data"


@dataclass(frozen=True)
class Comparison:
    """A configuration's test score less that of its `reference`; `difference` None where they cannot be compared.

    One reason is that their data are not the same.
    """

    one: Configuration
    reference: Configuration | None
    score: str
    difference: Difference | None
    same_data: bool = True

    @property
    def digits(self) -> int:
        return digits_of(self.score)


def score_of(groups: Sequence[Configuration]) -> str:
    """The test score that says what was gained: of what chose on validation, where the test split has it."""
    score = ON_TEST.get(selection_of(groups)[0], "test_accuracy")
    return score if any(len(group.scores(score)) for group in groups) else "test_accuracy"


def digits_of(score: str) -> int:
    """Decimals of a score, whose name may begin with a role or a split."""
    return DECIMALS[AUC if score.endswith("_auc") else ACCURACY]


def has_baseline(groups: Sequence[Configuration]) -> bool:
    """Whether some configurations are distilled and some are not."""
    return len({group.distilled for group in groups}) == 2


def compare(groups: Sequence[Configuration]) -> list[Comparison]:
    """Every distilled configuration with the undistilled one that is the same otherwise.

    Without one that is distilled and one that is not, all others with the first of the command line. p is corrected
    over all of them.
    """
    score = score_of(groups)
    if has_baseline(groups):
        alone = [group for group in groups if not group.distilled]
        pairs = [(group, _baseline(group, alone)) for group in groups if group.distilled]
    else:
        pairs = [(group, groups[0]) for group in groups[1:]]
    return compared(pairs, score)


def compared(pairs: Sequence[tuple[Configuration, Configuration | None]], score: str) -> list[Comparison]:
    """Pairs of configurations with their difference of a score, corrected over all pairs that have the same data."""
    same = [other is None or same_data(one, other) for one, other in pairs]
    found = [
        difference_of(one, other, score) if other is not None and alike else None
        for (one, other), alike in zip(pairs, same, strict=True)
    ]
    known = iter(corrected([difference for difference in found if difference is not None]))
    told = [None if difference is None else next(known) for difference in found]
    return [
        Comparison(*pair, score, difference, alike) for pair, difference, alike in zip(pairs, told, same, strict=True)
    ]


def difference_of(
    one: Configuration, other: Configuration, score: str, role: str | None = None, other_role: str | None = None
) -> Difference | None:
    """The difference of a score, paired by seed; unpaired where two seeds or more on each side meet less than two."""
    ours, theirs = one.by_seed(score, role), other.by_seed(score, other_role)
    both = ours.merge(theirs, on="seed", suffixes=("", "_other"))
    pairs = both.drop_duplicates(["stage", "stage_other"])  # stages that several jobs share are one answer
    if len(pairs) > 1:
        return paired_difference(pairs["score"].tolist(), pairs["score_other"].tolist())
    arms = [arm.drop_duplicates("stage")["score"].tolist() for arm in (ours, theirs)]
    if pairs.empty or min(map(len, arms)) > 1:
        return unpaired_difference(*arms) if all(arms) else None
    return paired_difference(pairs["score"].tolist(), pairs["score_other"].tolist())


def gains(frame: "pd.DataFrame") -> "pd.DataFrame":
    """A row a comparison: the configuration's keys, what it is compared with, and what `Difference` says of it."""
    import pandas as pd

    groups, rows = grouped(frame), []
    for comparison in compare(groups):
        found, reference = comparison.difference, comparison.reference
        row = {**comparison.one.values, "against": None if reference is None else reference.name}
        row |= {"score": comparison.score}
        if found is not None:
            row |= {"n": found.n, "paired": found.paired, "difference": found.mean, "low": found.low}
            row |= {"high": found.high, "p": found.p, "p_holm": found.corrected, "shown": found.shown}
            row |= {"seeds_needed": None if found.shown else found.seeds_needed}
        rows.append(row)
    return pd.DataFrame(rows, columns=[*keys_of(groups), "against", "score", *FOUND])


def gain_table(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """What was compared with what, its interval, and what follows; the scores are those of the seeds compared."""
    keys = keys_of(comparison.one for comparison in comparisons)
    rows = []
    for comparison in comparisons:
        values = [as_text(comparison.one.values.get(key)) or "-" for key in keys]
        rows.append([*values, _against(comparison), *gain_cells(comparison)])
    return [*keys, "against", *gain_header(comparisons)], rows


def summed_up(comparisons: Sequence[Comparison]) -> str:
    """How many comparisons show what, corrected over all of them."""
    known = [comparison.difference for comparison in comparisons if comparison.difference is not None]
    tested = [each for each in known if each.n > 1]
    gained, lost = (sum(each.shown and (each.mean > 0) is up for each in tested) for up in (True, False))
    told = f"{gained} show{'s' if gained == 1 else ''} a gain and {lost} a loss"
    if not tested:
        few = " (one seed each: none can)" if known else ""
        return f"Of {len(known)} configurations that were compared, {told}{few}."
    one = len(known) - len(tested)
    rest = f"; {one} more {'has' if one == 1 else 'have'} one seed, which shows nothing" if one else ""
    return f"Of {len(tested)} configurations that were compared, {told}{rest}."


def _against(comparison: Comparison) -> str:
    """What the reference has otherwise."""
    if comparison.reference is None:
        return "-"
    own = comparison.one.values
    values = {key: as_text(value) for key, value in comparison.reference.values.items()}
    told = [f"{key}={text}" for key, text in values.items() if text and text != as_text(own.get(key))]
    return " ".join(told) or comparison.reference.name


def gain_header(comparisons: Sequence[Comparison]) -> list[str]:
    """The names of `gain_cells`."""
    score = NAMES[comparisons[0].score] if comparisons else ""
    return ["n", f"test {score}", "of the other", "difference", "95 % interval", "p (Holm)", "what the seeds show"]


def gain_cells(comparison: Comparison) -> list[str]:
    """Seeds, both scores, difference, interval, corrected p and verdict, for a row of a table."""
    found, digits = comparison.difference, comparison.digits
    if found is None:
        own = comparison.one.mean(comparison.score)
        said = verdict(found) if comparison.same_data else OTHER_DATA
        return ["0", "-" if math.isnan(own) else f"{own:.{digits}f}", "-", "-", "-", "-", said]
    scores = [f"{score:.{digits}f}" for score in (found.one, found.other)]
    n = str(found.n) if found.paired else f"{found.n}, unpaired"
    return [n, *scores, f"{found.mean:+.{digits}f}", interval(found, digits), _p(found), verdict(found)]


def interval(found: Difference, digits: int) -> str:
    """The 95 % interval in words."""
    if found.low is None or found.high is None:
        return "-"
    return f"{found.low:+.{digits}f} to {found.high:+.{digits}f}"


def verdict(found: Difference | None) -> str:
    """What the seeds show, and where they show nothing how many would."""
    if found is None:
        return "nothing to compare it with"
    if found.n < 2:
        return "one seed: no interval, nothing is shown"
    if found.low is None:
        return "no effect shown: equal" if found.mean == 0 else "the same difference for all seeds: no interval"
    side = "a gain" if found.mean > 0 else "a loss"
    if found.shown:
        return side
    needed = found.seeds_needed
    seeds = f"{f'about {needed:,}' if needed else f'more than {MOST_SEEDS:,}'} seeds would show"
    if not found.holds_zero:
        return f"{side} taken alone, not shown among {found.family} comparisons; {seeds} it"
    return f"no effect shown; {seeds} such a difference"


def in_words(found: Difference | None, digits: int) -> str:
    """A difference with its interval, n and verdict, for a sentence."""
    if found is None:
        return verdict(found)
    of = f"n={found.n}" + ("" if found.paired else ", no seeds in common")
    if found.low is None:
        return f"{found.mean:+.{digits}f} ({of}): {verdict(found)}"
    return (
        f"{found.mean:+.{digits}f} (95 % interval {interval(found, digits)}, {of}, {_p_words(found)}): {verdict(found)}"
    )


def _p(found: Difference) -> str:
    """p, after the correction where there was one."""
    p = found.p if found.corrected is None else found.corrected
    return "-" if p is None else "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _p_words(found: Difference) -> str:
    told = _p(found)
    over = f" corrected over {found.family}" if found.family > 1 else ""
    return f"p {told}{over}" if told.startswith("<") else f"p={told}{over}"


def _baseline(group: Configuration, alone: Sequence[Configuration]) -> Configuration | None:
    """The undistilled configuration that is the same in all that is not distillation's own."""
    own = {key: as_text(value) for key, value in group.values.items()}
    fixed = {key for key in own if not is_of_distillation(key) and key != SETTINGS}
    fitting = [other for other in alone if all(as_text(other.values.get(key)) == own[key] for key in fixed)]
    if len({as_text(other.values.get(SETTINGS)) for other in fitting}) > 1:
        return None  # the one that is the same otherwise cannot be told
    return max(
        fitting,
        key=lambda other: sum(as_text(value) == own.get(key) for key, value in other.values.items()),
        default=None,
    )
