"""Rows whose label is likely wrong: those that a model trained without them is confident to label otherwise.

Confident learning (Northcutt, Jiang and Chuang 2021, JAIR 70): a row counts as another label's where its probability of that label
reaches the mean that rows of that label have themselves. The counts estimate how many labels are wrong, and of which pair, so no threshold
has to be chosen. Suspects are for a person to look at: on sets with known errors about half of them are right as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorimer.data.hashed_text import hash_texts, out_of_fold
from lorimer.errors import DataError

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
MIN_OF_LABEL = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseReport:
    """Suspected rows, the most suspect first."""

    suspects: Ints
    """Indices of rows."""
    suggested: tuple[str, ...]
    """The likelier label of each suspect."""
    scores: Floats
    """Of every row: the probability of its own label, low where it is suspect; NaN where it was not judged."""
    num_judged: int
    num_unjudged: int
    """Rows whose label stands too seldom to learn what it looks like."""
    accuracy: float
    """Of the model, out of fold: where it is low, its suspicions are worth little."""


def find_label_noise(texts: Sequence[str], labels: Sequence[str], *, seed: int = 0, num_folds: int = 5) -> NoiseReport:
    """Suspects among labelled texts; labels of fewer than `MIN_OF_LABEL` rows are not judged.

    Raises:
        DataError: if texts and labels are not as many.
    """
    if len(texts) != len(labels):
        raise DataError(f"{len(texts):,} texts have {len(labels):,} labels: give one label a text")
    names, given, counts = np.unique(np.array(labels, dtype=object).astype(str), return_inverse=True, return_counts=True)
    judged = np.flatnonzero(counts[given] >= MIN_OF_LABEL)
    scores = np.full(len(texts), np.nan, np.float32)
    kept, own = np.unique(given[judged], return_inverse=True)
    if len(kept) < 2:
        return NoiseReport(
            suspects=np.zeros(0, np.int64), suggested=(), scores=scores, num_judged=0, num_unjudged=len(texts), accuracy=float("nan")
        )
    own = own.astype(np.int64)
    probabilities = out_of_fold(hash_texts([texts[index] for index in judged.tolist()]), own, len(kept), num_folds=num_folds, seed=seed)
    scores[judged] = probabilities[np.arange(len(judged)), own]
    suspects = find_suspects(probabilities, own)
    likelier = _likelier(probabilities[suspects], own[suspects])
    return NoiseReport(
        suspects=judged[suspects],
        suggested=tuple(str(names[kept[label]]) for label in likelier),
        scores=scores,
        num_judged=len(judged),
        num_unjudged=len(texts) - len(judged),
        accuracy=float(np.mean(probabilities.argmax(1) == own)),
    )


def find_suspects(probabilities: Floats, labels: Ints) -> Ints:
    """Rows whose label is likely wrong, the most suspect first; `probabilities` are out of sample, (rows, labels).

    The counts say how many to take of each pair of labels ("prune by noise rate"), the margin between the two labels which.
    """
    counts = count_confident(probabilities, labels)
    sums = np.maximum(counts.sum(1), 1)
    margins: dict[int, float] = {}
    for own, likelier in zip(*np.nonzero(counts), strict=True):
        members = np.flatnonzero(labels == own)
        num = 0 if own == likelier else round(len(members) * counts[own, likelier] / sums[own])
        if num:
            margin = probabilities[members, likelier] - probabilities[members, own]
            # stable, so that equal margins stand in the order of rows
            for place in np.argsort(-margin, kind="stable")[:num]:
                index = int(members[place])
                margins[index] = max(margins.get(index, -1.0), float(margin[place]))
    return np.array(sorted(margins, key=lambda index: (-margins[index], index)), np.int64)


def count_confident(probabilities: Floats, labels: Ints) -> npt.NDArray[np.int64]:
    """How many rows of each label (first axis) a model is confident to give each label (second): the confident joint, as counts."""
    num_labels = probabilities.shape[1]
    thresholds = np.array([_mean_own(probabilities, labels, label) for label in range(num_labels)])
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    sure = np.flatnonzero(reached.max(1) >= 0)
    counts = np.zeros((num_labels, num_labels), np.int64)
    np.add.at(counts, (labels[sure], reached[sure].argmax(1)), 1)
    return counts


def _mean_own(probabilities: Floats, labels: Ints, label: int) -> float:
    own = probabilities[labels == label, label]
    return float(own.mean()) if len(own) else float("inf")


def _likelier(probabilities: Floats, labels: Ints) -> Ints:
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -1.0
    return others.argmax(1).astype(np.int64) if len(labels) else np.zeros(0, np.int64)
