"""What a gate can find out with so many items, said before the run: power of the paired rules, and the items that a power needs."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lorimer.evaluation.statistics.means import student_quantile
from lorimer.evaluation.statistics.proportions import paired_sample_size

ALPHA = 0.05
POWER = 0.8
LOG_TAIL = 23.0  # counts rarer than about e^-23 = 1e-10 are left out

Floats = npt.NDArray[np.float64]


class Shares(NamedTuple):
    """How often a rule would say what, over all the runs that could come."""

    passed: float
    failed: float
    inconclusive: float


def paired_shares(num_items: int, *, discordance: float, margin: float, difference: float = 0.0, alpha: float = ALPHA) -> Shares:
    """How often the paired rule for right-or-wrong items passes, fails and stays open: exact, by going through the counts.

    `discordance` is the share of items where only one of the two is right, `difference` the true difference (candidate minus baseline);
    margin 0 is the rule of superiority. The counts (b, c) of items where only one is right are trinomial; those outside ranges that hold
    all but about 1e-9 of the probability are left out.
    """
    assert abs(difference) <= discordance <= 1, f"a difference of {difference} needs at least that discordance, not {discordance}"
    share_b, share_c = (discordance + difference) / 2, (discordance - difference) / 2
    b, c = _likely_counts(num_items, share_b)[:, None], _likely_counts(num_items, share_c)[None, :]
    rest = num_items - b - c
    logs = _log_factorials(1 << num_items.bit_length())
    log_shares = [math.log(max(share, 1e-300)) for share in (share_b, share_c, 1 - discordance)]
    possible = np.maximum(rest, 0)
    log_probability = (
        logs[num_items] - logs[b] - logs[c] - logs[possible] + b * log_shares[0] + c * log_shares[1] + possible * log_shares[2]
    )
    probability = np.where(rest >= 0, np.exp(log_probability), 0.0)
    z = NormalDist().inv_cdf(1 - alpha)
    statistic = score_statistic(b, c, num_items, -margin)
    passed, failed = float(probability[statistic > z].sum()), float(probability[statistic < -z].sum())
    return Shares(passed=passed, failed=failed, inconclusive=max(0.0, 1 - passed - failed))


def items_for_power(*, margin: float, discordance: float, difference: float = 0.0, alpha: float = ALPHA, power: float = POWER) -> int:
    """The fewest items from which on the paired rule passes with at least this power, by `paired_shares`.

    Exact power goes up in a sawtooth, for counts are whole numbers: the number returned is that of the last tooth, after which no number
    in the next few teeth falls short.
    """
    assert 0 < power < 1, f"a power of {power}"
    teeth = math.ceil(3 / (margin + difference))  # a tooth is about 1.5 / margin items long near the power that matters

    def has_power(num_items: int) -> bool:
        return paired_shares(num_items, discordance=discordance, margin=margin, difference=difference, alpha=alpha).passed >= power

    roughly = paired_sample_size(margin=margin, discordance=discordance, difference=difference, alpha=alpha, power=power)
    return _first_of_many(has_power, roughly, teeth)


def mean_power(
    num_items: int,
    *,
    margin: float,
    deviation: float,
    difference: float = 0.0,
    limits: tuple[float, float] | None,
    items_per_group: float = 1.0,
    design_effect: float = 1.0,
    alpha: float = ALPHA,
) -> float:
    """How often `compare_means` would show a candidate to be not worse by `margin`, by the normal distribution of means.

    `deviation` is the standard deviation of the item differences, as an earlier run showed it; `limits` as in `compare_means`. Where
    items come in groups, `design_effect` is by how many times that raises the variance. Far off where an item's difference has a long
    tail: it then says too little or too much, by up to 13 points of power in `make bench-gate`.
    """
    num_groups = math.floor(num_items / items_per_group)
    if num_groups < 2:
        return 0.0
    error = deviation * math.sqrt(design_effect / num_items)
    least = -margin + student_quantile(1 - alpha, num_groups - 1) * error
    if limits is not None:
        unseen = 1 - alpha ** (1 / num_groups)
        least = max(least, (-margin - unseen * limits[0]) / (1 - unseen))
    return NormalDist().cdf((difference - least) / error) if error else float(difference > least)


def design_effect_of(group_sizes: Sequence[int], correlation: float) -> float:
    """By how many times groups of such sizes raise the variance of a mean, where items of one group have this correlation.

    Kish 1965, Survey Sampling, 8.2, with the sizes' mean weighted by size: the larger groups count for more.
    """
    return max(1.0, 1 + (sum(size * size for size in group_sizes) / sum(group_sizes) - 1) * correlation)


def power_of_all(powers: Sequence[float], *, are_independent: bool = True) -> float:
    """The chance that all checks pass: the product, if they are independent; else the least it can be (Boole's inequality)."""
    return math.prod(powers) if are_independent else max(0.0, 1 - sum(1 - power for power in powers))


def score_statistic(b: npt.ArrayLike, c: npt.ArrayLike, num_items: int, difference: float) -> Floats:
    """Tango's score statistic of many counts at once, for one supposed difference; `tango_interval` holds where it is within +-z."""
    b, c = np.asarray(b, dtype=float), np.asarray(c, dtype=float)
    linear = -b - c + (2 * num_items - b + c) * difference
    constant = -c * difference * (1 - difference)
    q = (np.sqrt(np.maximum(0.0, linear * linear - 8 * num_items * constant)) - linear) / (4 * num_items)
    error = np.sqrt(np.maximum(0.0, num_items * (2 * q + difference * (1 - difference))))
    distance = b - c - num_items * difference
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0, 0.0, distance / error)


def _first_of_many(holds: Callable[[int], bool], roughly: int, many: int) -> int:
    """The first number with which, and with the next `many`, something holds that holds more and more."""
    low, high = 1, max(2, roughly)
    while not holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    first = number = max(1, high - many)
    while number - first <= many:
        first = first if holds(number) else number + 1
        number += 1
    return first


def _likely_counts(num_items: int, share: float) -> npt.NDArray[np.int64]:
    """The range of a binomial count outside which Bernstein's inequality leaves less than e^-LOG_TAIL a side."""
    spread = math.sqrt(2 * LOG_TAIL * num_items * share * (1 - share)) + LOG_TAIL / 1.5
    low, high = math.floor(num_items * share - spread), math.ceil(num_items * share + spread)
    return np.arange(max(0, low), min(num_items, high if share else 0) + 1)


@cache
def _log_factorials(largest: int) -> Floats:
    """Of 0 and on; asked for powers of two, so that few tables are kept."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, largest + 1)))])
