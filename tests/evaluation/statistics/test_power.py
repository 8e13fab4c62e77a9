"""Announced power against enumeration, simulation and the design's table."""

import math

import numpy as np
import pytest

from lorimer.evaluation.statistics.means import mean_intervals
from lorimer.evaluation.statistics.power import (
    design_effect_of,
    items_for_power,
    mean_power,
    paired_shares,
    power_of_all,
    score_statistic,
)
from lorimer.evaluation.statistics.proportions import DECISION_CONFIDENCE, judge_non_inferior, paired_sample_size, tango_interval

SCORES = (-1.0, 1.0)


@pytest.mark.parametrize(("n", "discordance", "difference", "margin"), [(30, 0.2, 0.0, 0.1), (25, 0.1, -0.04, 0.02), (40, 0.4, 0.1, 0.0)])
def test_power_is_the_weight_of_the_verdicts(n: int, discordance: float, difference: float, margin: float) -> None:
    """Every possible outcome, judged by the gate's own verdict: the fast way equals the plain one."""
    shares = {"PASS": 0.0, "FAIL": 0.0, "INCONCLUSIVE": 0.0}
    p, q = (discordance + difference) / 2, (discordance - difference) / 2
    for b in range(n + 1):
        for c in range(n + 1 - b):
            weight = math.comb(n, b) * math.comb(n - b, c) * p**b * q**c * (1 - discordance) ** (n - b - c)
            if weight > 1e-12:
                shares[judge_non_inferior(tango_interval(b, c, n, DECISION_CONFIDENCE), margin)] += weight
    found = paired_shares(n, discordance=discordance, difference=difference, margin=margin)
    assert found == pytest.approx((shares["PASS"], shares["FAIL"], shares["INCONCLUSIVE"]), abs=1e-8)


@pytest.mark.parametrize(
    ("n", "discordance", "difference"), [(1, 0.5, 0.0), (100, 0.02, 0.02), (100, 0.0, 0.0), (3000, 0.3, -0.01), (50, 1.0, 0.2)]
)
def test_nothing_likely_is_left_out(n: int, discordance: float, difference: float) -> None:
    found = paired_shares(n, discordance=discordance, difference=difference, margin=0.02, alpha=0.4999999)
    assert sum(found) == pytest.approx(1, abs=1e-8)
    wide = paired_shares(n, discordance=discordance, difference=difference, margin=0.9)
    assert wide.passed == pytest.approx(1 - wide.failed - wide.inconclusive, abs=1e-8)
    assert wide.passed > 0.999 or n == 1


@pytest.mark.parametrize("n", [25, 100, 1000])
def test_verdict_of_many_counts_equals_the_bounds(n: int) -> None:
    generator = np.random.default_rng(n)
    b, c = generator.integers(0, n // 3, 200), generator.integers(0, n // 3, 200)
    passed = score_statistic(b, c, n, -0.02) > 1.6448536269514722
    assert passed.tolist() == [tango_interval(int(x), int(y), n, DECISION_CONFIDENCE).low > -0.02 for x, y in zip(b, c, strict=True)]


@pytest.mark.parametrize(("margin", "discordance", "by_normal"), [(0.05, 0.1, 248), (0.05, 0.2, 495), (0.1, 0.1, 62), (0.05, 0.05, 124)])
def test_items_for_power_is_the_last_tooth(margin: float, discordance: float, by_normal: int) -> None:
    n = items_for_power(margin=margin, discordance=discordance)

    def power(num_items: int) -> float:
        return paired_shares(num_items, discordance=discordance, margin=margin).passed

    assert power(n - 1) < 0.8
    assert min(power(later) for later in range(n, n + 2 * math.ceil(3 / margin))) >= 0.8
    assert paired_sample_size(margin=margin, discordance=discordance) == by_normal
    assert by_normal < n < 1.2 * by_normal + 10


def test_items_for_the_margin_that_gates_have() -> None:
    """The normal approximation says 1,546; exactly it is a little more, for counts are whole numbers."""
    assert items_for_power(margin=0.02, discordance=0.1) == 1565
    assert paired_shares(1546, discordance=0.1, margin=0.02).passed == pytest.approx(0.795, abs=0.01)


def test_superiority_is_a_margin_of_nothing() -> None:
    n = items_for_power(margin=0.0, discordance=0.2, difference=0.1)
    assert 100 < n < 160
    assert paired_shares(n, discordance=0.2, difference=0.0, margin=0.0).passed <= 0.06


def test_announced_power_is_what_simulation_finds() -> None:
    generator, n, runs = np.random.default_rng(0), 400, 20_000
    counts = generator.multinomial(n, [0.05, 0.05, 0.9], runs)
    simulated = float((score_statistic(counts[:, 0], counts[:, 1], n, -0.03) > 1.6448536269514722).mean())
    assert paired_shares(n, discordance=0.1, margin=0.03).passed == pytest.approx(simulated, abs=0.012)


@pytest.mark.parametrize(("num_groups", "group_len", "correlation"), [(200, 1, 0.0), (150, 4, 0.4), (60, 1, 0.0)])
def test_announced_power_of_means_is_what_simulation_finds(num_groups: int, group_len: int, correlation: float) -> None:
    generator, shape, deviation, margin = np.random.default_rng(5), (num_groups, 800), 0.2, 0.04
    shared = generator.normal(0, deviation * math.sqrt(correlation), shape)
    own = generator.normal(0, deviation * math.sqrt(1 - correlation), shape)
    sums = group_len * shared + math.sqrt(group_len) * own
    _, bounds = mean_intervals(sums, np.full(shape, float(group_len)), limits=SCORES, num_resamples=1000)
    announced = mean_power(
        num_groups * group_len,
        margin=margin,
        deviation=deviation,
        limits=SCORES,
        items_per_group=group_len,
        design_effect=design_effect_of([group_len] * num_groups, correlation),
    )
    assert announced == pytest.approx(float((bounds[0] > -margin).mean()), abs=0.05)


def test_power_of_means_is_that_of_the_normal_approximation() -> None:
    deviation = math.sqrt(0.1)
    assert mean_power(1545, margin=0.02, deviation=deviation, limits=None) < 0.8  # 1,546 with z, a little more with t
    assert mean_power(1550, margin=0.02, deviation=deviation, limits=None) >= 0.8
    effect = design_effect_of([5, 5], 0.25)  # twice the items
    grouped = mean_power(3100, margin=0.02, deviation=deviation, limits=None, items_per_group=5, design_effect=effect)
    assert grouped == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize(
    ("sizes", "correlation", "effect"), [([1, 1, 1], 0.9, 1.0), ([5, 5], 0.25, 2.0), ([1, 2, 3, 4, 5, 6, 7], 0.4, 2.6), ([4, 4], -0.1, 1.0)]
)
def test_design_effect(sizes: list[int], correlation: float, effect: float) -> None:
    assert design_effect_of(sizes, correlation) == pytest.approx(effect)


def test_scores_with_limits_need_enough_items_however_alike() -> None:
    few, enough = (mean_power(num, margin=0.02, deviation=0.001, limits=SCORES) for num in (148, 149))
    assert few < 0.8 <= enough
    assert mean_power(2, margin=0.02, deviation=0.001, limits=None) >= 0.8
    assert mean_power(1, margin=0.02, deviation=0.1, limits=SCORES) == 0
    assert mean_power(500, margin=0.02, deviation=0.0, limits=SCORES) == 1


def test_power_of_all() -> None:
    assert power_of_all([0.8] * 6) == pytest.approx(0.262, abs=0.001)
    assert power_of_all([0.8] * 6, are_independent=False) == 0
    assert power_of_all([0.99] * 6, are_independent=False) == pytest.approx(0.94)
    assert power_of_all([]) == 1


def test_impossible_designs_are_refused() -> None:
    with pytest.raises(AssertionError, match="needs at least that discordance"):
        paired_shares(100, discordance=0.01, difference=0.02, margin=0.02)
