"""Exact bounds against scipy and published tables; the correction for a detector against its own definition."""

import pytest
from scipy import stats

from lorimer.evaluation.statistics.rates import failure_bound, items_for_rate, true_rate


@pytest.mark.parametrize(
    ("num_failures", "num_items"), [(0, 1), (0, 59), (0, 299), (1, 10), (3, 300), (9, 10), (10, 10), (250, 3000), (40, 100_000)]
)
def test_failure_bound_equals_scipy(num_failures: int, num_items: int) -> None:
    expected = 1.0 if num_failures == num_items else stats.beta.ppf(0.95, num_failures + 1, num_items - num_failures)
    assert failure_bound(num_failures, num_items) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("limit", "num_items"), [(0.05, 59), (0.01, 299), (0.005, 598), (0.001, 2995)])
def test_items_for_a_rate(limit: float, num_items: int) -> None:
    assert items_for_rate(limit) == num_items
    assert failure_bound(0, num_items) <= limit < failure_bound(0, num_items - 1)


@pytest.mark.parametrize(("num_failures", "num_items"), [(1, 473), (2, 628), (3, 773)])
def test_items_for_a_rate_of_1_percent_with_failures(num_failures: int, num_items: int) -> None:
    """The sample sizes that acceptance sampling prints for 95% confidence of 99% reliability."""
    assert items_for_rate(0.01, num_failures) == num_items


def test_nothing_tried_says_nothing() -> None:
    assert failure_bound(0, 0) == 1


@pytest.mark.parametrize(
    ("found", "sensitivity", "specificity", "rate"),
    [
        (0.1, 1.0, 1.0, 0.1),
        (0.23, 0.9, 0.95, 0.2117647),
        (0.02, 0.9, 0.95, 0.0),  # fewer than its false alarms alone
        (0.95, 0.9, 0.95, 1.0),
        (0.05, 0.5, 1.0, 0.1),
    ],
)
def test_true_rate(found: float, sensitivity: float, specificity: float, rate: float) -> None:
    assert true_rate(found, sensitivity=sensitivity, specificity=specificity) == pytest.approx(rate)


@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.5, 0.5), (0.2, 0.3), (1.2, 0.9), (float("nan"), 0.9)])
def test_a_detector_no_better_than_chance_is_refused(sensitivity: float, specificity: float) -> None:
    with pytest.raises(ValueError, match="no better than chance"):
        true_rate(0.1, sensitivity=sensitivity, specificity=specificity)
