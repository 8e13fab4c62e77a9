"""Does an adapter still speak as we do? The distance of its answers from texts that were approved, against chance.

What is compared is manner, not matter. Every word that does not carry grammar is masked by stars, a name by N, a figure by 0 (text
distortion: Stamatatos 2017, EACL 1:1138-1149); what is left are small words, punctuation, capitals, the lengths of words, sentences and
lines. Of each text three profiles are taken (runs of four characters, pairs of word classes, lengths of sentences), each text weighs the
same, and two sets of texts are as far apart as the mean Jensen-Shannon distance of their profiles (Lin 1991, IEEE Trans. Inf. Theory
37:145-151; its root is a metric: Endres and Schindelin 2003, same journal 49:1858-1860): 0 for the same, 1 for nothing in common.

Two sets of one voice are never at 0, and the fewer texts, the farther. So the distance is held against that of random splits of all the
texts into sets of the same sizes: `p` is the chance of such a distance, or a greater one, were the voices equal.
"""

import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorimer.errors import DataError
from lorimer.evaluation.scorers.words import FUNCTION_WORDS

MIN_TEXTS = 8
"""On either side. Random splits of two sets of eight can be told apart at 1 in 12,870; with fewer, no difference can show itself."""
MAX_TEXTS = 1000
"""On either side; of more, a random draw is compared: a thousand texts show all that a person would notice."""
MAX_CHARS = 4000  # of a text: a long one shows its manner on its first page
NULL_QUANTILE = 0.95
NUM_RUNS, NUM_PAIRS, NUM_LENGTHS = 2048, 1024, 24
RUN_LEN = 4
SPLITS_AT_ONCE = 200
TOKEN = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*|\d+(?:[.,:]\d+)*|\n+|[^\w\s]", re.UNICODE)
SENTENCE_END = frozenset(".!?\u3002\uff01\uff1f\u2026")
HAN = re.compile(r"[\u3400-\u9fff]")
LEN_EDGES = np.array([1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 26, 31, 37, 44, 52, 62, 75, 90, 120])
"""Words in a sentence: lengths between two of these count as one."""

Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class VoiceDistance:
    """How far answers are from an approved voice, and how far they would be by chance."""

    distance: float
    """In [0, 1]: mean Jensen-Shannon distance (base 2) of the profiles."""
    null_median: float
    """The distance of half of the random splits is below this."""
    null_high: float
    """That of 95% of them is below this."""
    p: float
    """Share of the splits at least as far apart, this one included (Phipson and Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39)."""
    num_answers: int


def compare_voice(approved: Sequence[str], answers: Sequence[str], *, seed: int, num_permutations: int = 2000) -> VoiceDistance:
    """Compare answers with approved texts; an empty answer is an answer, and unlike any text.

    The same seed gives the same result. Approved texts and answers should be to like requests: a greeting is not a manual.

    Raises:
        DataError: if either side has fewer than 8 texts, or no approved text holds a word.
    """
    problems = [
        f"{name} are {len(texts)}, at least {MIN_TEXTS} are needed to tell a voice from chance"
        for name, texts in (("approved texts", approved), ("answers", answers))
        if len(texts) < MIN_TEXTS
    ]
    if not any(TOKEN.search(text) for text in approved):
        problems.append("no approved text holds a word")
    if problems:
        raise DataError("; ".join(problems))
    rng = np.random.default_rng(seed)
    sides = [_draw(list(texts), rng) for texts in (approved, answers)]
    profiles = profile_texts([*sides[0], *sides[1]])
    num_approved, num_texts = len(sides[0]), len(sides[0]) + len(sides[1])
    own = np.zeros((1, num_texts), dtype=np.float32)
    own[0, :num_approved] = 1
    distance = float(_distances(own, profiles)[0])
    null = np.concatenate(
        [
            _distances(_splits(rng, min(SPLITS_AT_ONCE, num_permutations - done), num_texts, num_approved), profiles)
            for done in range(0, num_permutations, SPLITS_AT_ONCE)
        ]
    )
    tolerance = 1e-6  # a split into the very same sets must count as equally far, whatever the order of the sums
    return VoiceDistance(
        distance=distance,
        null_median=float(np.median(null)),
        null_high=float(np.quantile(null, NULL_QUANTILE)),
        p=float((1 + np.sum(null >= distance - tolerance)) / (1 + num_permutations)),
        num_answers=len(answers),
    )


def profile_texts(texts: Sequence[str]) -> list[Matrix]:
    """Three profiles of each text, a row each that sums to 1; the last column of a profile is that of texts that have none."""
    widths = (NUM_RUNS, NUM_PAIRS, NUM_LENGTHS)
    profiles = [np.zeros((len(texts), width + 1), dtype=np.float32) for width in widths]
    for row, text in enumerate(texts):
        tokens = TOKEN.findall(unicodedata.normalize("NFC", text)[:MAX_CHARS])
        masked = mask(tokens)
        distorted = f" {' '.join(masked)} " if masked else ""
        runs = [distorted[at : at + RUN_LEN] for at in range(len(distorted) - RUN_LEN + 1)]
        pairs = [f"{left} {right}" for left, right in zip(("^", *masked), (*masked, "$"), strict=True)] if masked else []
        lengths = np.searchsorted(LEN_EDGES, _sentence_lens(tokens), side="right")
        for profile, places in zip(profiles, (_places(runs, NUM_RUNS), _places(pairs, NUM_PAIRS), lengths), strict=True):
            np.add.at(profile[row], places, 1.0)
    for profile in profiles:
        profile[:, -1] = profile.sum(axis=1) == 0
        profile /= profile.sum(axis=1, keepdims=True)
    return profiles


def mask(tokens: Sequence[str]) -> list[str]:
    """What a text is about taken out of it: words that carry grammar stay, others keep length (up to eight) and case."""
    return [_mask(token) for token in tokens]


def _mask(token: str) -> str:
    if token[0] == "\n":
        return "\u00b6" * min(len(token), 2)
    if token[0].isdigit():
        return "0"
    if not token[0].isalpha():
        return token
    if token.casefold() in FUNCTION_WORDS:
        return token if len(token) == 1 or not token.isupper() else token.casefold() + "!"
    if HAN.search(token):  # kana between them is the grammar of Japanese
        return HAN.sub("*", token)[:8]
    if token.isupper() and len(token) > 1:
        return "A"
    return "N" if token[0].isupper() else "*" * min(len(token), 8)


def _sentence_lens(tokens: Sequence[str]) -> list[int]:
    lens, count = [], 0
    for token in (*tokens, "."):
        if token[0].isalnum():
            count += 1
        elif count and (token in SENTENCE_END or token[0] == "\n"):
            lens.append(count)
            count = 0
    return lens


def _places(items: Sequence[str], num_places: int) -> NDArray[np.int64]:
    """A column for each item, by hash: the same in every process, and no table to keep."""
    return np.array([zlib.crc32(item.encode("utf-8", "replace")) % num_places for item in items], dtype=np.int64)


def _draw(texts: list[str], rng: np.random.Generator) -> list[str]:
    if len(texts) <= MAX_TEXTS:
        return texts
    return [texts[at] for at in sorted(rng.choice(len(texts), MAX_TEXTS, replace=False))]


def _splits(rng: np.random.Generator, num_splits: int, num_texts: int, num_first: int) -> Matrix:
    """Random splits, a row each: 1 for the texts of the first set."""
    order = np.argsort(rng.random((num_splits, num_texts)), axis=1)
    return (order < num_first).astype(np.float32)


def _distances(first: Matrix, profiles: Sequence[Matrix]) -> NDArray[np.float64]:
    """The distance between the two sets of each split, mean over the profiles."""
    num_first = first.sum(axis=1, keepdims=True)
    num_second = first.shape[1] - num_first
    found = np.zeros(len(first))
    for profile in profiles:
        used = profile[:, profile.any(axis=0)]
        one = first @ used / num_first
        other = (used.sum(axis=0, keepdims=True) - first @ used) / num_second
        found += np.sqrt(_divergence(one, np.maximum(other, 0)))
    return found / len(profiles)


def _divergence(one: Matrix, other: Matrix) -> NDArray[np.float64]:
    """Jensen-Shannon divergence of each pair of rows, in bits."""
    middle = (one + other) / 2
    entropy = _entropy(middle) - (_entropy(one) + _entropy(other)) / 2
    return np.asarray(np.clip(entropy, 0.0, 1.0), dtype=np.float64)


def _entropy(rows: "NDArray[np.floating[Any]]") -> NDArray[np.float64]:
    return np.asarray(-np.sum(rows * np.log2(np.where(rows > 0, rows, 1)), axis=1, dtype=np.float64))
