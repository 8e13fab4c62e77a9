"""Intervals against published tables, against independent computations, and against what must always hold."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from lorimer.evaluation.statistics.proportions import (
    CONFIDENCE,
    DECISION_CONFIDENCE,
    Decision,
    Interval,
    compare_pairs,
    items_to_clear,
    items_to_differ,
    judge_non_inferior,
    judge_superior,
    mcnemar_p,
    paired_sample_size,
    proportion,
    tango_interval,
    wilson_interval,
)

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("num_correct", "num_items", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_newcombe_1998_table_1(num_correct: int, num_items: int, low: float, high: float) -> None:
    interval = wilson_interval(num_correct, num_items)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


@pytest.mark.parametrize(
    ("b", "c", "n", "low", "high", "digits"),
    [
        (9, 3, 32, -0.027, 0.390, 3),  # sleeping difficulties (Karacan 1976), as in Tango 1998, section 6.2
        (6, 16, 161, -0.1240, -0.0054, 4),  # complete response (Cavo 2012), as in Fagerland, Lydersen, Laake 2017, chapter 8
        (1, 7, 21, -0.517, -0.026, 3),  # airway hyper-responsiveness (Bentur 2009), as in Fagerland, Lydersen, Laake 2014
    ],
)
def test_tango_interval_equals_published_examples(b: int, c: int, n: int, low: float, high: float, digits: int) -> None:
    interval = tango_interval(b, c, n)
    assert (round(interval.low, digits), round(interval.high, digits)) == (low, high)


def test_one_sided_bound_equals_tango_1998_section_6_1() -> None:
    """Soft contact lenses: of 44 patients one was better with the old ones; the new are not worse by 10 points (z = 1.709)."""
    found = compare_pairs([(True, True)] * 43 + [(False, True)])
    assert round(found.bounds.low, 3) == -0.096
    assert judge_non_inferior(found.bounds, 0.1) == "PASS"
    assert found.bounds.confidence == DECISION_CONFIDENCE
    assert found.interval.confidence == CONFIDENCE


@pytest.mark.parametrize(
    ("low", "high", "non_inferior", "superior"),
    [
        (0.001, 0.05, "PASS", "PASS"),
        (-0.019, 0.05, "PASS", "INCONCLUSIVE"),
        (-0.02, 0.05, "INCONCLUSIVE", "INCONCLUSIVE"),
        (-0.5, 0.5, "INCONCLUSIVE", "INCONCLUSIVE"),
        (-0.019, -0.01, "PASS", "FAIL"),
        (-0.03, -0.02, "INCONCLUSIVE", "FAIL"),
        (-0.09, -0.021, "FAIL", "FAIL"),
        (0.0, 0.0, "PASS", "FAIL"),
        (math.nan, math.nan, "INCONCLUSIVE", "INCONCLUSIVE"),
        (-math.inf, math.inf, "INCONCLUSIVE", "INCONCLUSIVE"),
    ],
)
def test_verdicts_by_bounds(low: float, high: float, non_inferior: Decision, superior: Decision) -> None:
    bounds = Interval(low=low, high=high, confidence=DECISION_CONFIDENCE)
    assert judge_non_inferior(bounds, 0.02) == non_inferior
    assert judge_superior(bounds) == superior


def test_verdicts_are_not_given_by_the_interval_that_is_shown() -> None:
    shown = compare_pairs([(True, True)] * 200).interval
    with pytest.raises(AssertionError, match=r"bounds at 0\.9"):
        judge_non_inferior(shown, 0.02)
    with pytest.raises(AssertionError, match=r"bounds at 0\.9"):
        judge_superior(shown)


def test_intervals_of_nothing_say_nothing() -> None:
    assert (wilson_interval(0, 0).low, wilson_interval(0, 0).high) == (0.0, 1.0)
    assert (tango_interval(0, 0, 0).low, tango_interval(0, 0, 0).high) == (-1.0, 1.0)
    assert proportion(0, 0).value is None
    assert compare_pairs([]).difference == 0.0


@settings(deadline=None)
@given(st.integers(1, 5000), st.data())
def test_wilson_interval_holds_the_share_and_mirrors(num_items: int, data: st.DataObject) -> None:
    num_correct = data.draw(st.integers(0, num_items))
    interval, mirrored = wilson_interval(num_correct, num_items), wilson_interval(num_items - num_correct, num_items)
    assert 0 <= interval.low <= num_correct / num_items <= interval.high <= 1
    assert interval.low == pytest.approx(1 - mirrored.high, abs=1e-12)
    assert wilson_interval(num_correct, num_items, 0.99).low <= interval.low


@st.composite
def paired_counts(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 3000))
    b = draw(st.integers(0, n))
    return b, draw(st.integers(0, n - b)), n


@settings(deadline=None)
@given(paired_counts())
def test_tango_interval_holds_the_difference_and_mirrors(counts: tuple[int, int, int]) -> None:
    b, c, n = counts
    interval, swapped = tango_interval(b, c, n), tango_interval(c, b, n)
    assert -1 <= interval.low <= (b - c) / n <= interval.high <= 1
    assert interval.low == pytest.approx(-swapped.high, abs=1e-9)
    assert tango_interval(b, c, n, 0.99).high >= interval.high
    assert interval.low < interval.high


@settings(deadline=None)
@given(st.integers(1, 2000))
def test_tango_interval_without_discordant_items_is_wilson_of_none(n: int) -> None:
    interval = tango_interval(0, 0, n)
    assert interval.high == pytest.approx(wilson_interval(0, n).high)
    assert interval.low == pytest.approx(-interval.high)


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (40, 20, 160), (1, 0, 50), (3, 3, 20), (0, 9, 40)])
def test_tango_interval_ends_where_the_likelihood_says(b: int, c: int, n: int) -> None:
    """The score at both ends is z, with the nuisance parameter found by maximising the likelihood numerically."""
    for difference in (tango_interval(b, c, n).low, tango_interval(b, c, n).high):

        def minus_log_likelihood(q: float, difference: float = difference) -> float:
            cells = ((b, q + difference), (c, q), (n - b - c, 1 - 2 * q - difference))
            return -sum(count * math.log(share) for count, share in cells if count)

        bounds = (max(0.0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12)
        q = minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        score = (b - c - n * difference) / math.sqrt(n * (2 * q + difference - difference**2))
        assert abs(score) == pytest.approx(Z, rel=1e-4)


@pytest.mark.parametrize(("p12", "p21"), [(0.2, 0.1), (0.1, 0.1), (0.3, 0.02), (0.02, 0.02)])
def test_tango_interval_covers_the_truth_as_often_as_it_says(p12: float, p21: float) -> None:
    """Exact coverage: every possible outcome, weighted with its probability."""
    n, coverage = 40, 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            ways = math.comb(n, b) * math.comb(n - b, c)
            probability = ways * p12**b * p21**c * (1 - p12 - p21) ** (n - b - c)
            if probability > 1e-7:
                interval = tango_interval(b, c, n)
                coverage += probability * (interval.low <= p12 - p21 <= interval.high)
    assert 0.93 <= coverage <= 0.995


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_p_equals_the_binomial_test(b: int, c: int) -> None:
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_p(b, c) == pytest.approx(expected, rel=1e-9)


def test_comparison_counts_pairs() -> None:
    pairs = [(True, True)] * 5 + [(True, False)] * 4 + [(False, True)] * 2 + [(False, False)] * 9
    found = compare_pairs(pairs)
    assert (found.num_both, found.num_only_candidate, found.num_only_baseline, found.num_neither) == (5, 4, 2, 9)
    assert (found.num_items, found.difference) == (20, 0.1)


@pytest.mark.parametrize(
    ("discordance", "margin", "n"), [(0.03, 0.02, 464), (0.05, 0.02, 773), (0.1, 0.02, 1546), (0.2, 0.02, 3092), (0.1, 0.05, 248)]
)
def test_sample_size_for_a_margin(discordance: float, margin: float, n: int) -> None:
    assert paired_sample_size(margin=margin, discordance=discordance) == n


def test_sample_size_shrinks_with_a_true_advantage() -> None:
    assert paired_sample_size(margin=0.02, discordance=0.1, difference=0.05) < paired_sample_size(margin=0.02, discordance=0.1)


@pytest.mark.parametrize(("share", "threshold"), [(0.95, 0.9), (0.8, 0.9), (1.0, 0.9), (0.0, 0.1)])
def test_items_to_clear_is_where_the_wilson_interval_lets_go(share: float, threshold: float) -> None:
    n = items_to_clear(share, threshold)
    assert n is not None

    def holds(num_items: float) -> bool:
        return (share - threshold) ** 2 <= Z**2 * threshold * (1 - threshold) / num_items

    assert holds(n - 1)
    assert not holds(n)


def test_items_to_clear_and_differ_know_when_no_number_would_do() -> None:
    assert items_to_clear(0.9, 0.9) is None
    assert items_to_clear(1.0, 1.0) is None
    assert items_to_differ(4, 4, 100) is None


@pytest.mark.parametrize(("b", "c", "n"), [(6, 3, 100), (2, 1, 30), (1, 5, 40)])
def test_items_to_differ_settles_at_the_same_rates(b: int, c: int, n: int) -> None:
    needed = items_to_differ(b, c, n)
    assert needed is not None
    factor = math.ceil(needed / n)
    settled, open_still = tango_interval(b * factor, c * factor, n * factor), tango_interval(b, c, n)
    assert open_still.low < 0 < open_still.high
    assert settled.low > 0 or settled.high < 0
