"""Texts into sets of hashed shingles, and those into MinHash signatures, many texts at once. It knows nothing of rows.

A shingle is a run of characters (or words) of the folded text; two texts are near where most of their shingles are shared (Jaccard).
MinHash: Broder 1997, "On the resemblance and containment of documents"; a signature agrees in a place with the probability of that share.
"""

import hashlib
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lorimer.config import Shingling

NUM_BANDS = 20
ROWS_PER_BAND = 6
"""20 bands of 6: of pairs with a Jaccard of 0.8, 99.8% meet in a band, of those with 0.7, 92%, with 0.5, 27%, with 0.3, 1.4%."""
SIGNATURE_LEN = NUM_BANDS * ROWS_PER_BAND
BLOCK = 1 << 15  # shingles at a time: what fits a core's own cache with its copy

Hashes = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Shingled(NamedTuple):
    """The shingles of several texts, one text after the other."""

    hashes: Hashes
    starts: Counts
    """Where each text begins; each has at least one shingle."""


class Sketches(NamedTuple):
    """What is kept of each text to find its like by."""

    keys: Hashes
    """One key a band: texts that are equal in a band's rows have equal keys. Shape: texts, bands."""
    low: npt.NDArray[np.uint8]
    """The low byte of each place of the signature, to estimate the likeness of two. Shape: texts, places."""


def band_probability(jaccard: float, bands: int = NUM_BANDS, rows: int = ROWS_PER_BAND) -> float:
    """The S-curve: how probably two texts of this likeness meet in at least one band ("Mining of Massive Datasets", 3.4)."""
    return float(1 - (1 - jaccard**rows) ** bands)


def shingle(texts: Sequence[str], how: Shingling) -> Shingled:
    """The hashed shingles of folded texts; a text too short for one is its own only shingle."""
    if how.unit == "chars":
        padded = [text.ljust(how.size, "\0") for text in texts]
        units = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32)
        lens = np.fromiter(map(len, padded), np.int64, len(padded))
    else:
        words = [[zlib.crc32(word.encode(errors="surrogatepass")) for word in text.split()] for text in texts]
        lens = np.fromiter((max(len(each), how.size) for each in words), np.int64, len(words))
        units = np.array([unit for each in words for unit in (*each, *[0] * (how.size - len(each)))], np.uint32)
    counts = lens - how.size + 1
    if not len(units):
        return Shingled(np.zeros(0, np.uint32), counts)
    inside = np.ones(len(units), np.bool_)  # whether a run that begins here ends in the same text
    for back in range(1, how.size):
        inside[np.cumsum(lens) - back] = False
    hashes = _mix(_runs(units, how.size)[inside[: len(units) - how.size + 1]])
    return Shingled(hashes, np.cumsum(counts) - counts)


def sketch(shingled: Shingled) -> Sketches:
    """The signatures' bands and low bytes."""
    found = signatures(shingled)
    weights = _seeded("band", ROWS_PER_BAND)
    keys = (found.reshape(-1, NUM_BANDS, ROWS_PER_BAND).astype(np.uint64) * weights).sum(axis=2, dtype=np.uint64)
    return Sketches(_mix(keys), (found & 0xFF).astype(np.uint8))


def signatures(shingled: Shingled) -> Hashes:
    """Of each text and each seeded order of all shingles, the first shingle. Shape: texts, places."""
    num = len(shingled.starts)
    found = np.empty((SIGNATURE_LEN, num), np.uint32)
    multipliers = (_seeded("multiplier", SIGNATURE_LEN) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    masks = (_seeded("mask", SIGNATURE_LEN) >> np.uint64(32)).astype(np.uint32)
    ends = np.append(shingled.starts[1:], len(shingled.hashes))
    begin = 0
    while begin < num:
        end = max(begin + 1, int(np.searchsorted(ends, shingled.starts[begin] + BLOCK)))
        block = shingled.hashes[shingled.starts[begin] : ends[end - 1]]
        starts = shingled.starts[begin:end] - shingled.starts[begin]
        ordered = np.empty_like(block)
        for place in range(SIGNATURE_LEN):
            np.bitwise_xor(block, masks[place], out=ordered)
            np.multiply(ordered, multipliers[place], out=ordered)
            found[place, begin:end] = np.minimum.reduceat(ordered, starts)
        begin = end
    return np.ascontiguousarray(found.T)


def _runs(units: Hashes, size: int) -> npt.NDArray[np.uint64]:
    """A polynomial over each run of `size` units, modulo 2 ** 64."""
    num = len(units) - size + 1
    hashes = units[:num].astype(np.uint64)
    for offset in range(1, size):
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += units[offset : offset + num]
    return hashes


def _mix(values: npt.NDArray[np.uint64]) -> Hashes:
    """MurmurHash3's finaliser (Appleby, public domain), its upper half."""
    values = values.copy()
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values ^= values >> np.uint64(33)
        values *= np.uint64(multiplier)
    values ^= values >> np.uint64(33)
    return (values >> np.uint64(32)).astype(np.uint32)


def _seeded(purpose: str, num: int) -> npt.NDArray[np.uint64]:
    """The same odd numbers on every machine and with every numpy."""
    digests = b"".join(hashlib.sha256(f"{purpose} {number}".encode()).digest()[:8] for number in range(num))
    return np.frombuffer(digests, "<u8").astype(np.uint64) | np.uint64(1)
