"""Our intervals and tests beside those of the package `errorbars`, written by others for the same purpose."""

import errorbars.compare
import errorbars.power
import errorbars.stats
import numpy as np
import pytest

from lorimer.evaluation.statistics.means import compare_means, student_ends, sum_groups
from lorimer.evaluation.statistics.power import mean_power
from lorimer.evaluation.statistics.proportions import compare_pairs, mcnemar_p, wilson_interval


@pytest.mark.parametrize(("num_correct", "num_items"), [(0, 10), (7, 10), (81, 263), (299, 300)])
def test_wilson(num_correct: int, num_items: int) -> None:
    ours, theirs = wilson_interval(num_correct, num_items), errorbars.stats.wilson_ci(num_correct, num_items)
    assert (ours.low, ours.high) == pytest.approx((theirs.ci_low, theirs.ci_high), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_paired_scores(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.beta(5, 2, 80), generator.beta(4, 2, 80)
    theirs = errorbars.compare.paired_compare(a, b)
    low, high = student_ends((a - b)[:, None], np.ones((80, 1)))
    assert (low[0], high[0]) == pytest.approx((theirs.ci_low, theirs.ci_high))
    ours = compare_means((a - b).tolist(), limits=(-1, 1)).interval
    assert ours.low <= theirs.ci_low + 1e-12
    assert ours.high >= theirs.ci_high - 1e-12
    assert ours.high - ours.low == pytest.approx(theirs.ci_high - theirs.ci_low, rel=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_paired_scores_in_groups(seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = [str(group) for group in generator.integers(0, 25, 120)]
    differences = np.array([generator.normal(0, 0.1) + (int(group) % 5 - 2) / 10 for group in groups])
    theirs = errorbars.compare.paired_compare(differences, np.zeros(120), clusters=groups)
    sums, sizes = sum_groups(differences, groups)
    low, high = student_ends(sums[:, None], sizes[:, None])
    assert (low[0], high[0]) == pytest.approx((theirs.ci_low_clustered, theirs.ci_high_clustered))


@pytest.mark.parametrize("seed", range(3))
def test_right_or_wrong(seed: int) -> None:
    """The exact test is the same; the intervals are of two kinds and agree where there are many items."""
    generator = np.random.default_rng(seed)
    a, b = generator.random(1500) < 0.8, generator.random(1500) < 0.76
    theirs, ours = errorbars.compare.paired_compare(a, b), compare_pairs(zip(a.tolist(), b.tolist(), strict=True))
    assert theirs.mcnemar is not None
    assert ours.mcnemar_p == pytest.approx(theirs.mcnemar.p_value)
    assert mcnemar_p(ours.num_only_candidate, ours.num_only_baseline) == ours.mcnemar_p
    assert ours.difference == pytest.approx(theirs.mean_diff)
    assert (ours.interval.low, ours.interval.high) == pytest.approx((theirs.ci_low, theirs.ci_high), abs=5e-4)


@pytest.mark.parametrize(("margin", "deviation"), [(0.02, 0.3), (0.05, 0.4)])
def test_items_for_means(margin: float, deviation: float) -> None:
    """Theirs is for a two-sided test of two means; at twice the alpha, and half the variance each, it is the one-sided one of ours."""
    theirs = errorbars.power.questions_needed(margin, variance=deviation**2 / 2, alpha=0.1, power=0.8).n_questions
    few, enough = (mean_power(num, margin=margin, deviation=deviation, limits=None) for num in (theirs - 1, theirs + 3))
    assert few < 0.8 <= enough
