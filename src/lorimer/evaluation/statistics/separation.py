"""Can two kinds of items be told apart by a score? For membership tests: rows that were trained on, and rows that were not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from lorimer.evaluation.statistics.means import MAX_DRAWS, NUM_RESAMPLES
from lorimer.evaluation.statistics.proportions import CONFIDENCE, Interval
from lorimer.evaluation.statistics.rates import failure_bound

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Separation:
    """How well a score tells members from others; 0.5 of `auc` is not at all."""

    num_members: int
    num_others: int
    auc: float
    """The chance that a member's score is above another's, ties counted half: the area under the ROC curve."""
    auc_interval: Interval
    fpr_limit: float
    tpr: float
    """The largest share of members above a threshold that at most `fpr_limit` of the others are above."""
    tpr_interval: Interval


def separate(
    members: Sequence[float],
    others: Sequence[float],
    *,
    fpr_limit: float = 0.01,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Separation:
    """ROC AUC and the true positive rate at a low false positive rate, with bootstrap intervals.

    Members and others are resampled each for themselves. The interval of the AUC has the bootstrap's standard error on the logit scale,
    which covers better near 1 than percentiles do (Pepe 2003, The Statistical Evaluation of Medical Tests, 5.2); that of the TPR is made
    of percentiles. Where all resamples agree, as when the two are wholly apart, it is what min(members, others) pairs leave open. A rate
    at 1% is what matters of a membership test: Carlini et al. 2022, arXiv:2112.03570.

    Raises:
        ValueError: if one of the two is empty or a score is not a finite number.
    """
    ours, theirs = np.asarray(members, dtype=float), np.asarray(others, dtype=float)
    if not len(ours) or not len(theirs) or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ValueError(f"{len(ours)} members and {len(theirs)} others: some of both are needed, and all scores must be numbers")
    values, places = np.unique(np.concatenate([ours, theirs]), return_inverse=True)
    own_places, other_places = places[: len(ours)], places[len(ours) :]
    auc, tpr = _rates(_count(own_places[None, :], len(values)), _count(other_places[None, :], len(values)), fpr_limit)
    generator = np.random.default_rng(seed)
    rows = max(1, MAX_DRAWS // (len(ours) + len(theirs)))
    drawn = []
    for start in range(0, num_resamples, rows):
        shape = min(rows, num_resamples - start)
        own = _count(own_places[generator.integers(0, len(ours), (shape, len(ours)))], len(values))
        other = _count(other_places[generator.integers(0, len(theirs), (shape, len(theirs)))], len(values))
        drawn.append(np.stack(_rates(own, other, fpr_limit)))
    aucs, tprs = np.concatenate(drawn, axis=1)
    fewest = min(len(ours), len(theirs))
    return Separation(
        num_members=len(ours),
        num_others=len(theirs),
        auc=float(auc[0]),
        auc_interval=_logit_interval(float(auc[0]), float(aucs.std()), fewest, confidence),
        fpr_limit=fpr_limit,
        tpr=float(tpr[0]),
        tpr_interval=_percentile_interval(float(tpr[0]), tprs, fewest, confidence),
    )


def _logit_interval(value: float, error: float, num_pairs: int, confidence: float) -> Interval:
    if error == 0 or value in (0.0, 1.0):
        return _unseen_interval(value, num_pairs, confidence)
    middle, half = math.log(value / (1 - value)), NormalDist().inv_cdf((1 + confidence) / 2) * error / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-min(700.0, max(-700.0, end)))) for end in (middle - half, middle + half))
    return Interval(low=low, high=high, confidence=confidence)


def _percentile_interval(value: float, resampled: Floats, num_pairs: int, confidence: float) -> Interval:
    if resampled.std() == 0:
        return _unseen_interval(value, num_pairs, confidence)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(low=float(low), high=float(high), confidence=confidence)


def _unseen_interval(value: float, num_pairs: int, confidence: float) -> Interval:
    """Where all resamples agree: the share of pairs that so many could have missed may be at either end."""
    share = failure_bound(0, num_pairs, (1 + confidence) / 2)
    return Interval(low=(1 - share) * value, high=(1 - share) * value + share, confidence=confidence)


def _count(places: npt.NDArray[np.int64], num_values: int) -> Floats:
    """How often each value is there: resamples by values."""
    rows = len(places)
    flat = places + num_values * np.arange(rows)[:, None]
    return np.bincount(flat.ravel(), minlength=rows * num_values).reshape(rows, num_values).astype(float)


def _rates(own: Floats, other: Floats, fpr_limit: float) -> tuple[Floats, Floats]:
    """AUC and TPR of each resample, from counts by ascending values."""
    num_own, num_other = own[0].sum(), other[0].sum()
    below = np.cumsum(other, axis=1) - other
    auc = (own * (below + other / 2)).sum(1) / (num_own * num_other)
    others_from, own_from = num_other - below, num_own - (np.cumsum(own, axis=1) - own)  # with this value or a higher one
    allowed = others_from <= math.floor(fpr_limit * num_other + 1e-9)
    return auc, np.where(allowed, own_from, 0).max(1) / num_own
