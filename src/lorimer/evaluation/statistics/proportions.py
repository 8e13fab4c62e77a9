"""How sure are we? Intervals and tests for right-or-wrong items, with their papers. It knows nothing of answers, adapters or gates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

CONFIDENCE = 0.95
"""Of the intervals that are shown."""
DECISION_CONFIDENCE = 0.90
"""Of the two-sided interval whose ends are the one-sided 95% bounds that decide."""
FEWEST_TO_PASS = 25
"""Independent items (where they come in groups: groups) with fewer of which no interval lets anything pass.

`make bench-gate` simulates 25 and more. With fewer, Tango's interval is too narrow: an adapter just at the margin passes in up to 16% of
runs with 3 items, 10% with 5, instead of 5%; in 7.3% at most from 25 on (exact, over margins of 0 to 50 points and every discordance).
"""
NUM_BISECTIONS = 60  # halves an interval of length 1 to below a double's precision

Decision = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Values the data do not contradict at this confidence."""

    low: float
    high: float
    confidence: float = CONFIDENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Proportion:
    """So many of so many, with the interval of the true share."""

    num_correct: int
    num_items: int
    interval: Interval

    @property
    def value(self) -> float | None:
        """The observed share; None where there are no items."""
        return self.num_correct / self.num_items if self.num_items else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """Candidate and baseline on the same items."""

    num_items: int
    num_both: int
    """Both right."""
    num_only_candidate: int
    num_only_baseline: int
    num_neither: int
    difference: float
    """Candidate's share minus baseline's."""
    interval: Interval
    """Tango's score interval of the difference."""
    mcnemar_p: float
    """Exact, two-sided: the chance of so lopsided a split of the items where only one is right, were both equally good."""

    @property
    def bounds(self) -> Interval:
        """The one-sided 95% bounds of the difference, by which a gate decides: the ends of Tango's two-sided 90% interval."""
        return tango_interval(self.num_only_candidate, self.num_only_baseline, self.num_items, DECISION_CONFIDENCE)


def judge_non_inferior(bounds: Interval, margin: float) -> Decision:
    """Is the candidate not worse than its baseline by `margin` or more, as far as the one-sided 95% bounds can tell?

    PASS where the lower bound is above -margin, FAIL where the upper bound is below it, INCONCLUSIVE between. If the true difference is
    -margin or worse, PASS has a chance of 5% at most (exactly: `make bench-gate`); a bound that is not a number never passes.
    """
    assert margin >= 0, f"a margin is how much worse may be, 0 or more, not {margin}"
    assert bounds.confidence == DECISION_CONFIDENCE, f"bounds at {DECISION_CONFIDENCE}, not an interval at {bounds.confidence}"
    return "PASS" if bounds.low > -margin else "FAIL" if bounds.high < -margin else "INCONCLUSIVE"


def judge_superior(bounds: Interval) -> Decision:
    """Is the candidate better? PASS where the lower one-sided 95% bound is above 0, FAIL where the upper one is not, else INCONCLUSIVE."""
    assert bounds.confidence == DECISION_CONFIDENCE, f"bounds at {DECISION_CONFIDENCE}, not an interval at {bounds.confidence}"
    return "PASS" if bounds.low > 0 else "FAIL" if bounds.high <= 0 else "INCONCLUSIVE"


def wilson_interval(num_correct: int, num_items: int, confidence: float = CONFIDENCE) -> Interval:
    """The score interval of a proportion: the shares p with |observed - p| <= z sqrt(p (1 - p) / n).

    Wilson 1927, J. Am. Stat. Assoc. 22:209-212; method 3 of Newcombe 1998, Stat. Med. 17:857-872 (no continuity correction).
    """
    assert 0 <= num_correct <= num_items, f"{num_correct} correct of {num_items}"
    if num_items == 0:
        return Interval(low=0.0, high=1.0, confidence=confidence)
    z = _two_sided_z(confidence)
    share = num_correct / num_items
    centre = (num_correct + z * z / 2) / (num_items + z * z)
    half = z * math.sqrt(num_items * share * (1 - share) + z * z / 4) / (num_items + z * z)
    low = 0.0 if num_correct == 0 else max(0.0, centre - half)
    high = 1.0 if num_correct == num_items else min(1.0, centre + half)
    return Interval(low=low, high=high, confidence=confidence)


def proportion(num_correct: int, num_items: int, confidence: float = CONFIDENCE) -> Proportion:
    """A count with its Wilson interval."""
    return Proportion(num_correct=num_correct, num_items=num_items, interval=wilson_interval(num_correct, num_items, confidence))


def proportion_of(right: Iterable[bool], confidence: float = CONFIDENCE) -> Proportion:
    """`proportion` of single outcomes."""
    outcomes = list(right)
    return proportion(sum(outcomes), len(outcomes), confidence)


def tango_interval(num_only_candidate: int, num_only_baseline: int, num_items: int, confidence: float = CONFIDENCE) -> Interval:
    """The score interval of a difference of paired proportions; valid where the two never differ, too.

    Tango 1998, Stat. Med. 17:891-908. The interval holds the differences that the score test does not reject. Each end is found by
    bisection between the observed difference (never rejected) and -1 or 1: no start value, no iteration that could diverge.
    """
    b, c, n = num_only_candidate, num_only_baseline, num_items
    assert 0 <= b <= n - c <= n, f"{b} and {c} of {n}"
    if n == 0:
        return Interval(low=-1.0, high=1.0, confidence=confidence)
    z = _two_sided_z(confidence)
    observed = (b - c) / n
    low, high = _last_accepted(b, c, n, z, observed, -1.0), _last_accepted(b, c, n, z, observed, 1.0)
    return Interval(low=low, high=high, confidence=confidence)


def mcnemar_p(num_only_candidate: int, num_only_baseline: int) -> float:
    """Exact two-sided p of McNemar's test: the items where only one is right are coin tosses if both are equally good.

    McNemar 1947, Psychometrika 12:153-157; exact binomial form. 1 where there are no such items.
    """
    tosses, fewer = num_only_candidate + num_only_baseline, min(num_only_candidate, num_only_baseline)
    term = total = 1  # binomial coefficients, each from the one before
    for k in range(fewer):
        term = term * (tosses - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / (1 << tosses))


def compare_pairs(pairs: Iterable[tuple[bool, bool]], confidence: float = CONFIDENCE) -> PairedComparison:
    """Compare (candidate right, baseline right) item by item."""
    counts = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for candidate, baseline in pairs:
        counts[candidate, baseline] += 1
    num_items, b, c = sum(counts.values()), counts[True, False], counts[False, True]
    return PairedComparison(
        num_items=num_items,
        num_both=counts[True, True],
        num_only_candidate=b,
        num_only_baseline=c,
        num_neither=counts[False, False],
        difference=(b - c) / num_items if num_items else 0.0,
        interval=tango_interval(b, c, num_items, confidence),
        mcnemar_p=mcnemar_p(b, c),
    )


def paired_sample_size(*, margin: float, discordance: float, difference: float = 0.0, alpha: float = 0.05, power: float = 0.8) -> int:
    """Items needed to show, one-sided, that a candidate is not worse than its baseline by `margin` or more.

    `discordance` is the share of items where only one of the two is right, `difference` the true difference. Normal approximation to
    the mean of the item differences (-1, 0, 1), whose variance is discordance - difference^2.
    """
    assert margin + difference > 0, "a candidate worse than the margin cannot be shown to be within it"
    assert abs(difference) <= discordance <= 1, f"a difference of {difference} needs at least that discordance, not {discordance}"
    normal = NormalDist()
    z = normal.inv_cdf(1 - alpha) + normal.inv_cdf(power)
    return max(1, math.ceil(z * z * (discordance - difference * difference) / (margin + difference) ** 2))


def items_to_clear(share: float, threshold: float, confidence: float = CONFIDENCE) -> int | None:
    """Items after which the Wilson interval of an observed `share` would no longer hold `threshold`; None where no number would do.

    The interval is the inverted score test, so that its end meets the threshold t at n = z^2 t (1 - t) / (share - t)^2.
    """
    if share == threshold or threshold in (0.0, 1.0):
        return None
    z = _two_sided_z(confidence)
    return math.floor(z * z * threshold * (1 - threshold) / (share - threshold) ** 2) + 1


def items_to_differ(num_only_candidate: int, num_only_baseline: int, num_items: int, confidence: float = CONFIDENCE) -> int | None:
    """Items after which Tango's interval would no longer hold 0, if the observed rates stay; None where no number would do.

    At a difference of 0 the score test is McNemar's without correction, (b - c)^2 / (b + c), which grows with the items.
    """
    b, c = num_only_candidate, num_only_baseline
    if b == c:
        return None
    z = _two_sided_z(confidence)
    return math.floor(num_items * z * z * (b + c) / (b - c) ** 2) + 1


def _two_sided_z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _last_accepted(b: int, c: int, n: int, z: float, inside: float, outside: float) -> float:
    """The end of the accepted differences between one that is accepted and the limit of the scale."""
    if _is_accepted(outside, b, c, n, z):
        return outside
    for _ in range(NUM_BISECTIONS):
        middle = (inside + outside) / 2
        if _is_accepted(middle, b, c, n, z):
            inside = middle
        else:
            outside = middle
    return inside


def _is_accepted(difference: float, b: int, c: int, n: int, z: float) -> bool:
    """Tango's score test: (b - c - n d)^2 <= z^2 n (2 q + d (1 - d)), q the likeliest P(only baseline right) if d were true."""
    linear = -b - c + (2 * n - b + c) * difference
    constant = -c * difference * (1 - difference)
    q = (math.sqrt(max(0.0, linear * linear - 8 * n * constant)) - linear) / (4 * n)
    variance = n * (2 * q + difference * (1 - difference))
    return (b - c - n * difference) ** 2 <= z * z * max(0.0, variance)
