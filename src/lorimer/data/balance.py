"""How labels are spread over a set: their balance, and near-equal inputs that are labelled otherwise. Pure functions over labels."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lorimer.errors import DataError

MIN_EVENNESS = 0.8
MIN_OF_LABEL = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The spread of labels."""

    counts: dict[str, int]
    """By label, the most frequent first."""
    evenness: float
    """Shannon's entropy over its maximum: 1 where every label is as frequent (Pielou 1966)."""

    @property
    def ratio(self) -> float:
        """How many rows the largest label has for one of the smallest."""
        return max(self.counts.values()) / min(self.counts.values())

    @property
    def rare(self) -> tuple[str, ...]:
        """Labels with too few rows to learn or to judge by."""
        return tuple(label for label, count in self.counts.items() if count < MIN_OF_LABEL)

    def describe(self) -> str:
        """One sentence for the card; empty where nothing is amiss."""
        said = []
        if self.evenness < MIN_EVENNESS:
            largest, smallest = next(iter(self.counts)), next(reversed(self.counts))
            said.append(f"labels are uneven: {largest!r} has {self.counts[largest]:,} rows, {smallest!r} has {self.counts[smallest]:,}")
        if self.rare:
            named = ", ".join(map(repr, self.rare[-3:]))
            said.append(f"{len(self.rare):,} of {len(self.counts):,} labels have fewer than {MIN_OF_LABEL} rows ({named})")
        return "; ".join(said)


class Conflicts(NamedTuple):
    """Rows that are near-equal and labelled otherwise."""

    indices: npt.NDArray[np.int64]
    """All rows of such clusters, in order."""
    num_clusters: int
    minority: npt.NDArray[np.int64]
    """Those of them whose label fewer rows of their cluster have than another label: where a correction is likeliest."""


def measure_balance(labels: Sequence[str]) -> Balance:
    """The spread of labels over a set.

    Raises:
        DataError: if there are none.
    """
    if not labels:
        raise DataError("there are no labels to weigh: give at least one row")
    counts = dict(sorted(Counter(labels).items(), key=lambda pair: (-pair[1], pair[0])))
    shares = [count / len(labels) for count in counts.values()]
    bits = -sum(share * math.log(share) for share in shares)
    return Balance(counts=counts, evenness=bits / math.log(len(counts)) if len(counts) > 1 else 1.0)


def find_conflicts(cluster_ids: npt.NDArray[np.integer] | Sequence[int], labels: Sequence[str]) -> Conflicts:
    """Clusters of near-equal inputs that hold more than one label.

    Raises:
        DataError: if ids and labels are not as many.
    """
    if len(cluster_ids) != len(labels):
        raise DataError(f"{len(cluster_ids):,} cluster ids have {len(labels):,} labels: give one label a row")
    clusters: dict[int, list[int]] = defaultdict(list)
    for index, cluster in enumerate(np.asarray(cluster_ids).tolist()):
        clusters[cluster].append(index)
    indices: list[int] = []
    minority: list[int] = []
    num_clusters = 0
    for members in clusters.values():
        counts = Counter(labels[index] for index in members)
        if len(counts) > 1:
            num_clusters += 1
            indices += members
            most = max(counts.values())
            minority += (index for index in members if counts[labels[index]] < most)
    return Conflicts(np.array(sorted(indices), np.int64), num_clusters, np.array(sorted(minority), np.int64))
