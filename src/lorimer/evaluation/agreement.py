"""Can a judge be believed, and what is a mean score worth that it helped to find? Agreement beyond chance, and labels with judgements."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lorimer.evaluation.means import student_quantile
from lorimer.evaluation.rates import failure_bound
from lorimer.evaluation.statistics import CONFIDENCE, Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Two raters (a judge and a person) on the same items."""

    num_items: int
    observed: float
    """Share of items with the same label."""
    by_chance: float
    """What that share would be if the raters did not look, but used each label as often as they do."""
    kappa: float | None
    """(observed - by_chance) / (1 - by_chance); None where both use one label only, and nothing can be said."""
    error: float
    """Standard error of kappa."""
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class PoweredMean:
    """A mean score from few labels and many judgements."""

    num_labels: int
    num_judged: int
    """Items with a judgement alone."""
    value: float
    interval: Interval
    weight: float
    """How far the judge is believed: 0 leaves the labels alone, 1 takes the judgements as they are, less their mean error."""
    judge_error: float
    """Mean of judgement minus label where both are there."""


def cohen_kappa(first: Sequence[str], second: Sequence[str], confidence: float = CONFIDENCE) -> Agreement:
    """Agreement beyond chance, with its interval.

    Cohen 1960, Educ. Psychol. Meas. 20:37-46; standard error of Fleiss, Cohen and Everitt 1969, Psychol. Bull. 72:323-327. The interval
    is taken on Fisher's scale (artanh): the plain one covers 92 to 93% near the ends, this one 94 to 97%. Where the raters never differ
    the error is 0; the lower end then is the kappa at the largest rate of differences that n items could hide.

    Raises:
        ValueError: if the two are not labels of the same items.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} labels of one rater, {len(second)} of the other: both must label the same items")
    num_items = len(first)
    undecided = Interval(low=-1.0, high=1.0, confidence=confidence)
    if num_items == 0:
        return Agreement(num_items=0, observed=0.0, by_chance=0.0, kappa=None, error=0.0, interval=undecided)
    cells = Counter(zip(first, second, strict=True))
    ours = {label: count / num_items for label, count in Counter(first).items()}
    theirs = {label: count / num_items for label, count in Counter(second).items()}
    observed = sum(count for (one, other), count in cells.items() if one == other) / num_items
    by_chance = sum(share * theirs.get(label, 0.0) for label, share in ours.items())
    if len({*ours, *theirs}) == 1:
        return Agreement(num_items=num_items, observed=observed, by_chance=by_chance, kappa=None, error=0.0, interval=undecided)
    kappa = (observed - by_chance) / (1 - by_chance)
    if observed == 1:
        hidden = failure_bound(0, num_items, (1 + confidence) / 2)
        interval = Interval(low=max(-1.0, 1 - hidden / (1 - by_chance)), high=1.0, confidence=confidence)
        return Agreement(num_items=num_items, observed=observed, by_chance=by_chance, kappa=kappa, error=0.0, interval=interval)
    variance = -((kappa - by_chance * (1 - kappa)) ** 2)
    for (one, other), count in cells.items():
        if one == other:
            variance += count / num_items * (1 - (ours[one] + theirs[one]) * (1 - kappa)) ** 2
        else:
            # as printed: the column's rater on the row's label and the other way round
            variance += count / num_items * (1 - kappa) ** 2 * (theirs.get(one, 0.0) + ours.get(other, 0.0)) ** 2
    error = math.sqrt(max(0.0, variance) / num_items) / (1 - by_chance)
    interval = undecided
    if kappa > -1:
        half = NormalDist().inv_cdf((1 + confidence) / 2) * error / (1 - kappa**2)
        interval = Interval(low=math.tanh(math.atanh(kappa) - half), high=math.tanh(math.atanh(kappa) + half), confidence=confidence)
    return Agreement(num_items=num_items, observed=observed, by_chance=by_chance, kappa=kappa, error=error, interval=interval)


def prediction_powered_mean(
    labels: Sequence[float], judged: Sequence[float], judged_only: Sequence[float], confidence: float = CONFIDENCE
) -> PoweredMean:
    """The mean a person would find over all items, from labels of a few and a judge's scores of all; the judge's bias is taken out.

    `judged` are the judge's scores of the labelled items, `judged_only` of the others, which must be drawn as the labelled ones were.
    Angelopoulos et al. 2023, Science 382:669-674; the weight is that of PPI++ (arXiv:2311.01453, example 6.1): a judge that tells nothing
    gets 0 and does no harm. t with labels - 1 degrees of freedom in place of z, for labels are few.

    Raises:
        ValueError: if a number is not finite, the labelled items are not judged one by one, or there are fewer than two labels.
    """
    y, f, rest = (np.asarray(scores, dtype=float) for scores in (labels, judged, judged_only))
    if len(y) != len(f) or len(y) < 2 or not all(np.isfinite(scores).all() for scores in (y, f, rest)):
        raise ValueError(
            f"{len(y)} labels, {len(f)} judgements of the same items, {len(rest)} of others: "
            "two or more labels are needed, each with its judgement, and all must be numbers"
        )
    weight = 0.0
    spread = float(np.concatenate([f, rest]).var(ddof=1))
    if len(rest) and spread > 0:
        weight = min(1.0, max(0.0, float(np.cov(y, f)[0, 1]) / ((1 + len(y) / len(rest)) * spread)))
    value = float(y.mean()) - weight * (float(f.mean()) - (float(rest.mean()) if len(rest) else float(f.mean())))
    variance = float((y - weight * f).var(ddof=1)) / len(y)
    if len(rest):
        variance += weight**2 * spread / len(rest)
    half = student_quantile((1 + confidence) / 2, len(y) - 1) * math.sqrt(variance)
    return PoweredMean(
        num_labels=len(y),
        num_judged=len(rest),
        value=value,
        interval=Interval(low=value - half, high=value + half, confidence=confidence),
        weight=weight,
        judge_error=float((f - y).mean()),
    )
