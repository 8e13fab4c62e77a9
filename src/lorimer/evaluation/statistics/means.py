"""How far two mean scores lie apart, for scores that are not just right or wrong, and for items that come in groups.

Each end of an interval is the wider of two: Student's t with the (cluster-robust) standard error, and the BCa bootstrap with percentiles
for small samples. Either alone falls short where the other holds: BCa where most items do not differ at all, t where a few lose much.
`make bench-gate` measures both and the two together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from lorimer.evaluation.statistics.proportions import CONFIDENCE, DECISION_CONFIDENCE, Interval

NUM_RESAMPLES = 10_000
FEWEST_ALIKE = 59  # with so many alike, fewer than one in twenty can be otherwise (one-sided, 95%)
MAX_DRAWS = 4_000_000  # of a chunk of resamples: tens of megabytes, however many items there are

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanComparison:
    """Candidate's mean score minus baseline's, on the same items."""

    num_items: int
    num_groups: int
    """Groups are what is independent of each other; an item of no group is one."""
    difference: float
    interval: Interval
    """Two-sided 95%, to be shown."""
    bounds: Interval
    """The one-sided 95% bounds, by which a gate decides."""


def compare_means(
    differences: Sequence[float],
    groups: Sequence[str] | None = None,
    *,
    limits: tuple[float, float] | None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> MeanComparison:
    """The mean of item differences (candidate minus baseline), with its interval.

    `groups` names what items share: paraphrases of one question, turns of one conversation. Groups are then resampled whole (Field and
    Welsh 2007, J. R. Stat. Soc. B 69:369-390) and the standard error is that of their sums; "" is an item on its own.

    `limits` are the least and the largest difference there can be: (-1, 1) for scores in [0, 1], None for scores without limits. With
    limits the bounds also allow for kinds of items that no group showed: a share of more than 1 - .05^(1/groups) would have been seen
    with 95%, a smaller one may be there, and lose all. So no drop below 2 points is shown by fewer than 149 groups, however alike they
    are. The interval, which is shown, allows for them only where all differences are equal. Without limits, equal differences of fewer
    than 59 groups give an infinite interval, which decides nothing.

    Raises:
        ValueError: if a difference is not a finite number or lies outside the limits, or the groups are not as many as the differences.
    """
    values = np.asarray(differences, dtype=float)
    low, high = limits or (-math.inf, math.inf)
    wrong = [index for index, value in enumerate(values.tolist()) if not (math.isfinite(value) and low <= value <= high)]
    if wrong:
        raise ValueError(
            f"{len(wrong)} differences are not numbers from {low} to {high}; the first is number {wrong[0]}: {values[wrong[0]]}"
        )
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"{len(values)} differences, but {len(groups)} groups: give each item's group, '' if it has none")
    sums, sizes = sum_groups(values, groups)
    difference = float(values.mean()) if len(values) else 0.0
    shown, decided = mean_intervals(sums[:, None], sizes[:, None], limits=limits, num_resamples=num_resamples, seed=seed)
    return MeanComparison(
        num_items=len(values),
        num_groups=len(sums),
        difference=difference,
        interval=Interval(low=float(shown[0, 0]), high=float(shown[1, 0]), confidence=CONFIDENCE),
        bounds=Interval(low=float(decided[0, 0]), high=float(decided[1, 0]), confidence=DECISION_CONFIDENCE),
    )


def sum_groups(values: Floats, groups: Sequence[str] | None) -> tuple[Floats, Floats]:
    """Each group's sum and size; "" is a group of one."""
    if groups is None:
        return values, np.ones_like(values)
    index_of: dict[str | int, int] = {}
    indexes = [index_of.setdefault(group or item, len(index_of)) for item, group in enumerate(groups)]
    sums, sizes = np.zeros(len(index_of)), np.zeros(len(index_of))
    np.add.at(sums, indexes, values)
    np.add.at(sizes, indexes, 1.0)
    return sums, sizes


def mean_intervals(
    sums: Floats, sizes: Floats, *, limits: tuple[float, float] | None, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[Floats, Floats]:
    """Intervals of several means at once, two-sided 95% and 90%: each an array of low and high ends by means.

    `sums` and `sizes` are those of the groups (rows) of each mean (column). All columns share their resamples.
    """
    num_groups, num_means = sums.shape
    if num_groups == 0:
        nothing = np.repeat(np.array(limits or (-math.inf, math.inf))[:, None], num_means, axis=1)
        return nothing, nothing
    means = sums.sum(0) / sizes.sum(0)
    shown, bounds = np.stack([means, means]), np.stack([means, means])
    differ = (np.ptp(sums / sizes, axis=0) > 1e-12 * (1 + np.abs(means))) & (num_groups > 1)
    if differ.any():
        resampled = np.sort(resample(sums[:, differ], sizes[:, differ], num_resamples, seed), axis=0)
        for ends, confidence in ((shown, CONFIDENCE), (bounds, DECISION_CONFIDENCE)):
            student = student_ends(sums[:, differ], sizes[:, differ], confidence)
            bca = bca_ends(sums[:, differ], sizes[:, differ], resampled, confidence)
            ends[:, differ] = np.minimum(student[0], bca[0]), np.maximum(student[1], bca[1])
    if limits is not None:
        shown[:, ~differ] = _allow_unseen(shown, means, num_groups, limits, CONFIDENCE)[:, ~differ]
        bounds = _allow_unseen(bounds, means, num_groups, limits, DECISION_CONFIDENCE)
    elif num_groups < FEWEST_ALIKE:
        for ends in (shown, bounds):
            ends[0, ~differ], ends[1, ~differ] = -math.inf, math.inf
    return shown, bounds


def _allow_unseen(ends: Floats, means: Floats, num_groups: int, limits: tuple[float, float], confidence: float) -> Floats:
    """Ends no closer than they would be if the largest share of groups that these could have missed were at the limit."""
    share = 1 - ((1 - confidence) / 2) ** (1 / num_groups)
    low, high = ((1 - share) * means + share * limit for limit in limits)
    return np.stack([np.maximum(limits[0], np.minimum(ends[0], low)), np.minimum(limits[1], np.maximum(ends[1], high))])


def student_ends(sums: Floats, sizes: Floats, confidence: float = CONFIDENCE) -> tuple[Floats, Floats]:
    """Student's interval of the mean, its standard error from the groups' sums (the CR1 sandwich), with groups - 1 degrees of freedom.

    Cameron and Miller 2015, J. Hum. Resour. 50:317-372; for evaluations of language models Miller 2024, arXiv:2411.00640.
    """
    num_groups, means = len(sums), sums.sum(0) / sizes.sum(0)
    influence = (sums - means * sizes) / sizes.sum(0)
    error = np.sqrt(num_groups / (num_groups - 1) * (influence**2).sum(0))
    half = student_quantile((1 + confidence) / 2, num_groups - 1) * error
    return means - half, means + half


def bca_ends(
    sums: Floats, sizes: Floats, resampled: Floats, confidence: float = CONFIDENCE, *, is_expanded: bool = True
) -> tuple[Floats, Floats]:
    """BCa interval of the mean, from sorted resampled means (rows); the acceleration is the jackknife's, over groups.

    Efron 1987, J. Am. Stat. Assoc. 82:171-185. The expansion puts t sqrt(n / (n - 1)) for the normal quantile, for the bootstrap's
    spread is too small by that much (Hesterberg 2015, Am. Stat. 69:371-386).
    """
    num_groups, num_resamples = len(sums), len(resampled)
    means = sums.sum(0) / sizes.sum(0)
    left_out = (sums.sum(0) - sums) / (sizes.sum(0) - sizes)
    deviations = left_out.mean(0) - left_out
    acceleration = (deviations**3).sum(0) / (6 * np.maximum((deviations**2).sum(0), 1e-300) ** 1.5)
    at_or_below = ((resampled < means).mean(0) + (resampled <= means).mean(0)) / 2
    bias = _normal_quantiles(np.clip(at_or_below, 1 / num_resamples, 1 - 1 / num_resamples))
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    if is_expanded:
        z = student_quantile((1 + confidence) / 2, num_groups - 1) * math.sqrt(num_groups / (num_groups - 1))
    ends = []
    for side in (-z, z):
        scale = 1 - acceleration * (bias + side)
        # past its pole the correction would turn round: the outermost resample then
        shifted = np.where(scale > 0, bias + (bias + side) / np.where(scale > 0, scale, 1), math.copysign(math.inf, side))
        ends.append(_column_quantiles(resampled, _normal_shares(shifted)))
    return ends[0], ends[1]


@cache
def student_quantile(share: float, degrees: int) -> float:
    """The quantile of Student's t for a whole number of degrees of freedom.

    Abramowitz and Stegun 1964: the distribution in closed form (26.7.3, 26.7.4), turned by bisection; from 200 degrees the expansion
    26.7.5, which is then right to nine digits.
    """
    assert degrees >= 1, f"{degrees} degrees of freedom"
    assert 0 < share < 1, f"a share of {share}"
    if share < 0.5:
        return -student_quantile(1 - share, degrees)
    x = NormalDist().inv_cdf(share)
    if degrees >= 200:
        g1, g2, g3 = (x**3 + x) / 4, (5 * x**5 + 16 * x**3 + 3 * x) / 96, (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384
        return x + g1 / degrees + g2 / degrees**2 + g3 / degrees**3
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(degrees)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 + _central_share(middle, degrees)) / 2 < share else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _central_share(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) tan(angle))."""
    cosine, sine = math.cos(angle), math.sin(angle)
    is_odd = degrees % 2
    term, total = (cosine if is_odd else 1.0), 0.0
    for k in range(2 + is_odd, degrees + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total


def resample(sums: Floats, sizes: Floats, num_resamples: int, seed: int) -> Floats:
    """Means of groups drawn with replacement: resamples by columns."""
    num_groups = len(sums)
    generator, means = np.random.default_rng(seed), []
    for start in range(0, num_resamples, max(1, MAX_DRAWS // num_groups)):
        rows = min(max(1, MAX_DRAWS // num_groups), num_resamples - start)
        drawn = generator.integers(0, num_groups, (rows, num_groups)) + num_groups * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * num_groups).reshape(rows, num_groups).astype(float)
        means.append((times @ sums) / (times @ sizes))
    return np.concatenate(means)


def _column_quantiles(values: Floats, shares: Floats) -> Floats:
    """A quantile of each sorted column, at a share of its own."""
    positions = np.clip(shares * (len(values) + 1) - 1, 0, len(values) - 1)
    below = np.floor(positions).astype(int)
    above, columns = np.minimum(below + 1, len(values) - 1), np.arange(values.shape[1])
    part = positions - below
    return np.asarray(values[below, columns] * (1 - part) + values[above, columns] * part, dtype=float)


def _normal_quantiles(shares: Floats) -> Floats:
    return np.array([NormalDist().inv_cdf(share) for share in shares.tolist()])


def _normal_shares(values: Floats) -> Floats:
    return np.array([NormalDist().cdf(value) for value in values.tolist()])
