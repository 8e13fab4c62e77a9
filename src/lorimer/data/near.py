"""Which texts are nearly the same: pairs that meet in a band of their signatures, each compared by its true share of shingles.

It knows texts by number; who calls says how to read them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lorimer.config import Shingling
from lorimer.data.shingles import SIGNATURE_LEN, Counts, Flags, Sketches, shingle, sketch

WINDOW = 8
"""In a bucket of more rows than this, each is compared with so many that follow it in the order of the next band, not with all."""
SLACK = 0.13  # an estimate from 120 places is off by 0.037 (one sigma) at 0.8: a pair that is near is not passed over
PAIRS_AT_A_TIME = 20_000

ReadTexts = Callable[[Counts], Sequence[str]]
Pairs = npt.NDArray[np.int64]


class NearPairs(NamedTuple):
    """Pairs of texts whose likeness reaches the threshold, the earlier first, in order of the later."""

    pairs: Pairs
    """Shape: pairs, 2."""
    jaccard: npt.NDArray[np.float64]


def find_near(texts: Sequence[str], how: Shingling) -> NearPairs:
    """The near pairs among texts in memory; they are compared as they are: fold them first."""
    sketches = sketch(shingle(texts, how)) if texts else None
    if sketches is None:
        return NearPairs(np.zeros((0, 2), np.int64), np.zeros(0))
    return verify(candidates(sketches, how.threshold), lambda rows: [texts[row] for row in rows], how)


def candidates(sketches: Sketches, threshold: float) -> Pairs:
    """Pairs that share a band and whose signatures look near enough to be read and compared."""
    found = [_like(sketches, left, right, threshold) for left, right in _in_buckets(sketches)]
    return _unique(found)


def candidates_across(sketches: Sketches, threshold: float, is_held: Flags) -> Pairs:
    """The same between the rows that are held back and all others alone: in large buckets, each row meets those held back next to it."""
    found = [_like(sketches, left, right, threshold) for left, right in _across_buckets(sketches, is_held)]
    return _unique(found)


def verify(pairs: Pairs, read_texts: ReadTexts, how: Shingling) -> NearPairs:
    """Compare the shingles themselves, so that no pair is near by chance."""
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # neighbours are read together
    blocks = [pairs[order[at : at + PAIRS_AT_A_TIME]] for at in range(0, len(order), PAIRS_AT_A_TIME)]
    jaccard = np.concatenate([_jaccard(block, read_texts, how) for block in blocks]) if blocks else np.zeros(0)
    is_near = jaccard >= how.threshold
    near, jaccard = pairs[order][is_near], jaccard[is_near]
    by_later = np.lexsort((near[:, 0], near[:, 1]))
    return NearPairs(near[by_later], jaccard[by_later])


def later_twins(near: NearPairs, num: int) -> Counts:
    """For each text the earlier one it may be left out for, itself kept; -1 where it is to be kept."""
    twin = np.full(num, -1, np.int64)
    for earlier, later in near.pairs.tolist():  # in order of the later: what became of the earlier is known
        if twin[later] < 0 and twin[earlier] < 0:
            twin[later] = earlier
    return twin


def clusters(near: NearPairs, num: int) -> Counts:
    """For each text the first of all that hang together with it by near pairs; itself where it stands alone."""
    first = list(range(num))

    def root(row: int) -> int:
        while first[row] != row:
            first[row] = first[first[row]]
            row = first[row]
        return row

    for left, right in near.pairs.tolist():
        low, high = sorted((root(left), root(right)))
        first[high] = low
    return np.array([root(row) for row in range(num)], np.int64)


def _in_buckets(sketches: Sketches) -> Iterator[tuple[Counts, Counts]]:
    for order, keys in _bands(sketches):
        for step in range(1, WINDOW + 1):
            same = keys[:-step] == keys[step:]
            if not same.any():
                break
            yield order[:-step][same], order[step:][same]


def _across_buckets(sketches: Sketches, is_held: Flags) -> Iterator[tuple[Counts, Counts]]:
    for order, keys in _bands(sketches):
        held = np.flatnonzero(is_held[order])
        others = np.flatnonzero(~is_held[order])
        after = np.searchsorted(held, others)
        for step in range(-WINDOW // 2, WINDOW // 2):
            at = after + step
            there = (at >= 0) & (at < len(held))
            left, right = others[there], held[at[there]]
            same = keys[left] == keys[right]
            yield order[left[same]], order[right[same]]


def _bands(sketches: Sketches) -> Iterator[tuple[Counts, npt.NDArray[np.uint32]]]:
    """For each band the rows in order of its keys (and, among equals, of the next band's), and the keys in that order."""
    num_bands = sketches.keys.shape[1]
    for band in range(num_bands):
        own, following = sketches.keys[:, band], sketches.keys[:, (band + 1) % num_bands]
        order = np.argsort(own.astype(np.uint64) << np.uint64(32) | following, kind="stable")
        yield order, own[order]


def _like(sketches: Sketches, left: Counts, right: Counts, threshold: float) -> Pairs:
    """The pairs whose signatures agree in about as many places as near pairs' do."""
    least = (threshold - SLACK) * SIGNATURE_LEN
    kept = np.zeros(len(left), np.bool_)
    for at in range(0, len(left), 1 << 16):
        part = slice(at, at + (1 << 16))
        kept[part] = np.count_nonzero(sketches.low[left[part]] == sketches.low[right[part]], axis=1) >= least
    return np.sort(np.stack([left[kept], right[kept]], axis=1), axis=1)


def _unique(found: Sequence[Pairs]) -> Pairs:
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *found])
    keys = np.unique(pairs[:, 0] << np.int64(32) | pairs[:, 1])
    return np.stack([keys >> np.int64(32), keys & np.int64(0xFFFFFFFF)], axis=1)


def _jaccard(pairs: Pairs, read_texts: ReadTexts, how: Shingling) -> npt.NDArray[np.float64]:
    rows, index = np.unique(pairs, return_inverse=True)
    hashes, starts = shingle(read_texts(rows), how)
    owner = np.repeat(np.arange(len(rows), dtype=np.uint64), np.diff(np.append(starts, len(hashes))))
    sets = np.unique(owner << np.uint64(32) | hashes)
    sizes = np.bincount((sets >> np.uint64(32)).astype(np.int64), minlength=len(rows))
    begins = np.cumsum(sizes) - sizes
    left, right = index.reshape(-1, 2).T
    both = np.concatenate([_of_pairs(sets, begins[side], sizes[side]) for side in (left, right)])
    both.sort()
    shared = np.bincount((both[1:][both[1:] == both[:-1]] >> np.uint64(32)).astype(np.int64), minlength=len(pairs))
    ratio: npt.NDArray[np.float64] = shared / (sizes[left] + sizes[right] - shared)
    return ratio


def _of_pairs(sets: npt.NDArray[np.uint64], begins: Counts, sizes: Counts) -> npt.NDArray[np.uint64]:
    """The shingles of one side of each pair, with the pair's number in the upper half."""
    offsets = np.cumsum(sizes) - sizes
    at = np.repeat(begins - offsets, sizes) + np.arange(sizes.sum())
    pair = np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
    numbered: npt.NDArray[np.uint64] = pair << np.uint64(32) | (sets[at] & np.uint64(0xFFFFFFFF))
    return numbered
