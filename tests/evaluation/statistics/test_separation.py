"""Areas under the curve against their definition; intervals on scores whose truth is known."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from lorimer.evaluation.statistics.separation import separate

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30)


@settings(deadline=None, max_examples=80)
@given(SCORES, SCORES, st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
def test_rates_are_what_they_are_defined_as(members: list[float], others: list[float], limit: float) -> None:
    found = separate(members, others, fpr_limit=limit, num_resamples=50)
    assert found.auc == pytest.approx(mannwhitneyu(members, others).statistic / (len(members) * len(others)))
    thresholds = [*members, *others, math.inf]
    allowed = [t for t in thresholds if sum(score >= t for score in others) <= limit * len(others)]
    assert found.tpr == pytest.approx(max(sum(score >= t for score in members) / len(members) for t in allowed))
    assert 0 <= found.auc_interval.low <= found.auc_interval.high <= 1
    assert 0 <= found.tpr_interval.low <= found.tpr_interval.high <= 1


@pytest.mark.parametrize("shift", [0.0, 1.5, 2.5])
def test_auc_interval_covers_the_truth(shift: float) -> None:
    generator, truth, covered = np.random.default_rng(3), NormalDist().cdf(shift / math.sqrt(2)), 0
    for _ in range(200):
        members, others = generator.normal(shift, 1, 40), generator.normal(0, 1, 50)
        interval = separate(members.tolist(), others.tolist(), num_resamples=200).auc_interval
        covered += interval.low <= truth <= interval.high
    assert 0.915 <= covered / 200 <= 0.99


def test_wholly_apart_is_not_certain() -> None:
    few = separate([3.0, 4.0, 5.0], [0.0, 1.0, 2.0])
    assert (few.auc, few.auc_interval.high, few.tpr) == (1, 1, 1)
    assert few.auc_interval.low < 0.5
    many = separate(list(range(1000, 1300)), list(range(300)), num_resamples=500)
    assert many.auc_interval.low > 0.98
    backwards = separate([0.0, 1.0, 2.0], [3.0, 4.0, 5.0])
    assert (backwards.auc, backwards.tpr) == (0, 0)
    assert backwards.auc_interval.high > 0.5
    assert backwards.tpr_interval.high > 0.5


def test_scores_that_say_nothing() -> None:
    found = separate([1.0] * 40, [1.0] * 40)
    assert (found.auc, found.tpr) == (0.5, 0)
    assert 0.4 < found.auc_interval.low < 0.5 < found.auc_interval.high < 0.6


@pytest.mark.parametrize(("members", "others"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0])])
def test_what_cannot_be_told_apart_is_refused(members: list[float], others: list[float]) -> None:
    with pytest.raises(ValueError, match="some of both are needed"):
        separate(members, others)
