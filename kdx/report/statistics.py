"""Whether a difference is more than luck: intervals, p-values, and how many seeds it takes. scipy comes when called."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdx.results import mean_of

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8  # of the test that `seeds_needed` plans
MOST_SEEDS = 10_000
EQUAL = 1e-6  # of the scores: what differs by less is the same number, which was a float32 once


@dataclass(frozen=True)
class Difference:
    """The mean of `one` arm less that of the `other`, over what was compared.

    `n` counts pairs of seeds, of unpaired arms the seeds of the smaller one. The 95 % interval and p are of Student's
    t: None for one seed, and where all differences are equal. `spread` is a difference's standard deviation;
    `corrected` is p after Holm's correction over `family` tests.
    """

    one: float
    other: float
    n: int
    paired: bool = True
    low: float | None = None
    high: float | None = None
    p: float | None = None
    spread: float | None = None
    corrected: float | None = None
    family: int = 1

    @property
    def mean(self) -> float:
        """The difference; 0 where it is a rounding's."""
        difference = self.one - self.other
        return 0.0 if abs(difference) < EQUAL * max(abs(self.one), abs(self.other)) else difference

    @property
    def holds_zero(self) -> bool:
        """Whether the interval holds zero; true where there is none."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high

    @property
    def shown(self) -> bool:
        """Whether an effect is shown: the interval excludes zero and so does the corrected p-value."""
        p = self.p if self.corrected is None else self.corrected
        return not self.holds_zero and p is not None and p < ALPHA

    @property
    def seeds_needed(self) -> int | None:
        """`seeds_needed` of what was found; None where nothing can be said, or `MOST_SEEDS` are not enough."""
        return seeds_needed(self.mean, self.spread, self.family) if self.spread else None


def paired_difference(one: Sequence[float], other: Sequence[float]) -> Difference:
    """The difference of two arms' scores, seed by seed, with the paired t-test's interval and p."""
    differences = [ours - theirs for ours, theirs in zip(one, other, strict=True)]
    found = Difference(mean_of(one), mean_of(other), len(differences))
    if found.n < 2:
        return found
    if max(differences) - min(differences) < EQUAL * max(map(abs, (*one, *other))):
        return replace(found, spread=0.0)
    from scipy.stats import ttest_rel

    test = ttest_rel(one, other)
    return _tested(found, test.confidence_interval(CONFIDENCE), test.pvalue, _std(differences))


def unpaired_difference(one: Sequence[float], other: Sequence[float]) -> Difference:
    """The difference of arms that share no seeds, with Welch's interval and p."""
    found = Difference(mean_of(one), mean_of(other), min(len(one), len(other)), paired=False)
    if found.n < 2:
        return found
    spread = math.hypot(_std(one), _std(other))
    if spread < EQUAL * max(map(abs, (*one, *other))):
        return replace(found, spread=0.0)
    from scipy.stats import ttest_ind

    test = ttest_ind(one, other, equal_var=False)
    return _tested(found, test.confidence_interval(CONFIDENCE), test.pvalue, spread)


def _tested(found: Difference, interval: Any, p: float, spread: float) -> Difference:
    return replace(found, low=float(interval.low), high=float(interval.high), p=float(p), spread=spread)


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The differences with p corrected over all of two seeds and more (Holm 1979, step-down Bonferroni).

    Equal differences have no p; they were compared as well, so they count as the least sure of all.
    """
    tested = sorted((d.p, i) for i, d in enumerate(differences) if d.p is not None)
    family = sum(d.n > 1 for d in differences)
    result, least = list(differences), 0.0
    for rank, (p, i) in enumerate(tested):
        least = max(least, min(1.0, p * (family - rank)))
        result[i] = replace(differences[i], corrected=least, family=family)
    return result


def seeds_needed(mean: float, spread: float, tests: int = 1) -> int | None:
    """The fewest seeds with which a paired t-test sees `mean` with `POWER`, at 5 % divided by `tests` (Bonferroni).

    It takes what was found for the truth: from few seeds the number is a guide, not a promise. None above `MOST_SEEDS`.
    """
    if not spread > 0 or not abs(mean) > 0:
        return None
    from scipy.stats import nct, t

    def power(n: int) -> float:
        limit = t.ppf(1 - ALPHA / tests / 2, n - 1)
        return float(nct.sf(limit, n - 1, abs(mean) / spread * math.sqrt(n)))

    if abs(mean) / spread * math.sqrt(MOST_SEEDS) < 2:  # the t-test's limit of many seeds
        return None
    few, enough = 1, 2
    while not power(enough) >= POWER:
        few, enough = enough, enough * 2
        if few >= MOST_SEEDS:
            return None
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if power(middle) >= POWER else (middle, enough)
    return enough


def wilson(accuracy: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy in percent on so many images, in percent (1927)."""
    from scipy.stats import binomtest

    right = min(images, max(0, round(accuracy * images / 100)))
    interval = binomtest(right, images).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def _std(values: Sequence[float]) -> float:
    mean = mean_of(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
