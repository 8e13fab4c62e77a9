"""Intervals of means against other software, against what must always hold, and on data whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lorimer.evaluation.statistics.means import (
    bca_ends,
    compare_means,
    mean_intervals,
    resample,
    student_ends,
    student_quantile,
    sum_groups,
)
from lorimer.evaluation.statistics.proportions import judge_non_inferior

SCORES = (-1.0, 1.0)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 99, 199, 200, 1000])
@pytest.mark.parametrize("share", [0.025, 0.5, 0.9, 0.95, 0.975, 0.9995])
def test_student_quantile_equals_scipy(degrees: int, share: float) -> None:
    assert student_quantile(share, degrees) == pytest.approx(stats.t.ppf(share, degrees), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("draw", ["normal", "lognormal", "losses"])
def test_bca_equals_scipy(draw: str) -> None:
    """Each with resamples of its own: the ends agree as far as 100,000 of them fix an end."""
    generator = np.random.default_rng(3)
    values = {
        "normal": generator.normal(0, 1, 40),
        "lognormal": generator.lognormal(0, 1, 60),
        "losses": -generator.beta(2, 5, 80) * (generator.random(80) < 0.3),
    }[draw]
    theirs = stats.bootstrap((values,), np.mean, n_resamples=100_000, method="BCa", batch=2000, rng=np.random.default_rng(5))
    column, ones = values[:, None], np.ones((len(values), 1))
    resampled = np.sort(resample(column, ones, 100_000, 7), axis=0)
    low, high = bca_ends(column, ones, resampled, is_expanded=False)
    tolerance = 0.02 * (theirs.confidence_interval.high - theirs.confidence_interval.low)
    assert low[0] == pytest.approx(theirs.confidence_interval.low, abs=tolerance)
    assert high[0] == pytest.approx(theirs.confidence_interval.high, abs=tolerance)


def test_student_ends_equal_scipy() -> None:
    values = np.random.default_rng(1).normal(0.3, 2, 25)
    low, high = student_ends(values[:, None], np.ones((25, 1)))
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low[0], high[0]) == pytest.approx((theirs.low, theirs.high))


def test_interval_is_the_wider_of_both() -> None:
    values = np.random.default_rng(2).lognormal(0, 1, 50)
    column, ones = values[:, None], np.ones((50, 1))
    found = compare_means(values.tolist(), limits=None).interval
    resampled = np.sort(resample(column, ones, 10_000, 0), axis=0)
    student, bca = student_ends(column, ones), bca_ends(column, ones, resampled)
    assert (found.low, found.high) == pytest.approx((student[0][0], bca[1][0]))


def test_many_means_at_once_equal_each_alone() -> None:
    generator = np.random.default_rng(4)
    values = generator.normal(0, 0.2, (60, 5))
    values[:, 2] = 0.25  # one column does not differ
    shown, bounds = mean_intervals(values, np.ones_like(values), limits=SCORES, num_resamples=500)
    for k in range(5):
        alone = compare_means(np.clip(values[:, k], -1, 1).tolist(), limits=SCORES, num_resamples=500)
        assert (alone.interval.low, alone.interval.high) == pytest.approx(tuple(shown[:, k]))
        assert (alone.bounds.low, alone.bounds.high) == pytest.approx(tuple(bounds[:, k]))


def test_the_same_data_give_the_same_interval() -> None:
    values = np.random.default_rng(8).normal(0, 1, 200).tolist()
    assert compare_means(values, limits=None) == compare_means(values, limits=None)


def test_memory_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one resample at a time draw what one chunk draws."""
    values = np.random.default_rng(9).normal(0, 1, (30, 1))
    whole = resample(values, np.ones_like(values), 40, 1)
    monkeypatch.setattr("lorimer.evaluation.statistics.means.MAX_DRAWS", 45)
    assert resample(values, np.ones_like(values), 40, 1) == pytest.approx(whole)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.data())
def test_an_interval_holds_the_mean_and_limits_only_widen_the_bounds(values: list[float], data: st.DataObject) -> None:
    groups = data.draw(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=len(values), max_size=len(values)))
    found = compare_means(values, groups, limits=SCORES, num_resamples=200)
    for interval in (found.interval, found.bounds):
        assert interval.low - 1e-9 <= found.difference <= interval.high + 1e-9
        assert interval.low < interval.high
    assert -1 <= found.bounds.low < found.bounds.high <= 1
    free = compare_means(values, groups, limits=None, num_resamples=200)
    assert math.isinf(free.bounds.low) or found.bounds.low <= max(-1, free.bounds.low)
    assert found.num_groups == len(set(groups) - {""}) + groups.count("")


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        ([], None),
        ([0.5], None),
        ([0.0] * 20, None),
        ([0.3, -0.2, 0.1] * 40, ["one"] * 120),
        ([0.1] * 20, None),
        ([0.1] * 120, ["a", "b"] * 60),
    ],
)
@pytest.mark.parametrize("limits", [SCORES, None])
def test_little_evidence_decides_nothing(values: list[float], groups: list[str] | None, limits: tuple[float, float] | None) -> None:
    found = compare_means(values, groups, limits=limits)
    assert judge_non_inferior(found.bounds, 0.02) == "INCONCLUSIVE"
    assert found.bounds.low < -0.02
    if limits is None:
        assert (found.interval.low, found.interval.high) == (-math.inf, math.inf)


def test_alike_items_bound_what_none_of_them_showed() -> None:
    """No item of 148 differs: up to 2% of the items may yet lose all. One more item, and no longer 2%."""
    assert judge_non_inferior(compare_means([0.0] * 148, limits=SCORES).bounds, 0.02) == "INCONCLUSIVE"
    assert judge_non_inferior(compare_means([0.0] * 149, limits=SCORES).bounds, 0.02) == "PASS"
    found = compare_means([0.25] * 200, limits=None)
    assert (found.interval.low, found.interval.high) == (0.25, 0.25)


def test_groups_count_once() -> None:
    """Each item asked ten times tells no more than asked once."""
    values = np.random.default_rng(6).normal(0, 0.3, 40).clip(-1, 1)
    once = compare_means(values.tolist(), limits=SCORES)
    groups = [f"item {k}" for k in range(40) for _ in range(10)]
    grouped = compare_means(np.repeat(values, 10).tolist(), groups, limits=SCORES)
    ignored = compare_means(np.repeat(values, 10).tolist(), limits=SCORES)
    assert (grouped.num_items, grouped.num_groups) == (400, 40)
    assert (grouped.bounds.low, grouped.bounds.high) == pytest.approx((once.bounds.low, once.bounds.high))
    assert ignored.bounds.high - ignored.bounds.low < 0.5 * (grouped.bounds.high - grouped.bounds.low)


def test_sums_of_groups() -> None:
    sums, sizes = sum_groups(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), ["a", "", "b", "a", ""])
    assert sums.tolist() == [5.0, 2.0, 3.0, 5.0]
    assert sizes.tolist() == [2.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("values", "groups", "limits", "words"),
    [
        ([0.1, math.nan], None, SCORES, "1 differences are not numbers from -1.0 to 1.0; the first is number 1: nan"),
        ([0.1, math.inf, 0.2], None, None, "the first is number 1: inf"),
        ([0.1, 3.0, -2.0], None, SCORES, "2 differences are not numbers from -1.0 to 1.0; the first is number 1: 3.0"),
        ([0.1, 0.2], ["a"], SCORES, "2 differences, but 1 groups"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    values: list[float], groups: list[str] | None, limits: tuple[float, float] | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        compare_means(values, groups, limits=limits)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("normal", 0.93, 0.97), ("most alike", 0.93, 0.98), ("a few lose much", 0.93, 0.98), ("in groups", 0.925, 0.97)],
)
def test_intervals_cover_the_truth_as_often_as_they_say(kind: str, low: float, high: float) -> None:
    """3,000 data sets of 50 items or groups; `make bench-gate` has more."""
    generator, shape = np.random.default_rng(11), (50, 3000)
    sizes, truth = np.ones(shape), 0.0
    if kind == "normal":
        sums = generator.normal(0, 0.3, shape)
    elif kind == "most alike":
        sums = generator.uniform(-1, 1, shape) * (generator.random(shape) < 0.3)
    elif kind == "a few lose much":
        sums, truth = generator.normal(0, 0.05, shape) - 0.4 * (generator.random(shape) < 0.15), -0.06
    else:
        sizes = generator.integers(1, 8, shape).astype(float)
        sums = sizes * generator.normal(0, 0.2, shape) + np.sqrt(sizes) * generator.normal(0, 0.2, shape)
    shown, _ = mean_intervals(sums, sizes, limits=None, num_resamples=500)
    coverage = float(((shown[0] <= truth) & (truth <= shown[1])).mean())
    assert low <= coverage <= high
