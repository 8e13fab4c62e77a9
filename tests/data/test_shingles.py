"""Signatures meet as often as the mathematics says, whatever the texts; shingles do not cross from one text into the next."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.config import Shingling
from lorimer.data.near import candidates, candidates_across, clusters, find_near, later_twins, verify
from lorimer.data.shingles import NUM_BANDS, ROWS_PER_BAND, band_probability, shingle, signatures, sketch

TEXTS = st.lists(st.text(max_size=30), min_size=1, max_size=8)


def sets(texts: list[str], how: Shingling) -> list[set[int]]:
    hashes, starts = shingle(texts, how)
    return [set(part.tolist()) for part in np.split(hashes, starts[1:])]


def pair_of(jaccard: float, rng: random.Random, num: int = 120) -> tuple[str, str]:
    """Two texts of distinct words, of which this share (of all there are) is in both."""
    shared = round(2 * num * jaccard / (1 + jaccard))
    words = [str(rng.getrandbits(60)) for _ in range(2 * num - shared)]
    return " ".join(words[:num]), " ".join(words[num - shared :])


@given(TEXTS, st.integers(1, 6))
def test_shingles_of_a_text_do_not_depend_on_its_neighbours(texts: list[str], size: int) -> None:
    for unit in ("chars", "words"):
        how = Shingling(unit=unit, size=size)
        assert sets(texts, how) == [sets([text], how)[0] for text in texts]


@given(TEXTS)
def test_equal_shingles_are_equal_runs_of_characters(texts: list[str]) -> None:
    how = Shingling(size=3)
    for text, found in zip(texts, sets(texts, how), strict=True):
        padded = text.ljust(3, "\0")
        assert len(found) == len({padded[at : at + 3] for at in range(len(padded) - 2)})


def test_words_are_shingled_in_runs() -> None:
    left, right, other = sets(["a b c d", "x b c d", "b a d c"], Shingling(unit="words", size=2))
    assert (len(left), len(left & right), len(left & other)) == (3, 2, 0)


@pytest.mark.parametrize("jaccard", [0.2, 0.5, 0.8, 0.95])
def test_signatures_estimate_the_shared_part(jaccard: float) -> None:
    rng = random.Random(7)
    how = Shingling(unit="words", size=1)
    texts = [text for _ in range(40) for text in pair_of(jaccard, rng)]
    found = signatures(shingle(texts, how))
    estimate = (found[::2] == found[1::2]).mean()
    assert estimate == pytest.approx(jaccard, abs=0.03)


@pytest.mark.parametrize("jaccard", [0.3, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_pairs_meet_in_a_band_as_the_s_curve_says(jaccard: float) -> None:
    rng = random.Random(11)
    texts = [text for _ in range(300) for text in pair_of(jaccard, rng)]
    keys = sketch(shingle(texts, Shingling(unit="words", size=1))).keys
    met = (keys[::2] == keys[1::2]).any(axis=1).mean()
    assert met == pytest.approx(band_probability(jaccard), abs=0.08)


def test_s_curve_is_what_is_documented() -> None:
    assert (NUM_BANDS, ROWS_PER_BAND) == (20, 6)
    assert [round(band_probability(share), 3) for share in (0.3, 0.5, 0.7, 0.8)] == [0.014, 0.27, 0.918, 0.998]
    assert all(low < high for low, high in pairwise(band_probability(share / 20) for share in range(21)))


def test_signatures_are_the_same_on_every_machine() -> None:
    # changed ones would change which rows are near, and with them the digests of everybody's datasets
    assert signatures(shingle(["the quick brown fox"], Shingling()))[0, :3].tolist() == [66732819, 506685457, 348177624]


def test_near_texts_are_found_and_no_others() -> None:
    rng = random.Random(3)
    base = [" ".join(str(rng.getrandbits(40)) for _ in range(20)) for _ in range(200)]
    texts = base + [text.replace(text.split()[5], "other") for text in base[:50]]
    near = find_near(texts, Shingling(threshold=0.8))
    assert {tuple(pair) for pair in near.pairs.tolist()} >= {(row, 200 + row) for row in range(50)}
    assert (near.jaccard >= 0.8).all()
    assert near.pairs[:, 0].max() < 200


@given(st.lists(st.sampled_from(["", "a", "the card", "the card is lost", "the card is lost!", "another text entirely"]), max_size=12))
def test_near_pairs_are_those_of_the_definition(texts: list[str]) -> None:
    how = Shingling(threshold=0.7)
    near = {tuple(pair) for pair in find_near(texts, how).pairs.tolist()}
    found = sets(texts, how) if texts else []
    for left in range(len(texts)):
        for right in range(left + 1, len(texts)):
            share = len(found[left] & found[right]) / len(found[left] | found[right])
            assert ((left, right) in near) == (share >= 0.7) or (share > 0.7 and share < 0.9)


def test_many_equal_texts_stay_cheap_and_hang_together() -> None:
    texts = ["the very same request about a card that was lost"] * 2_000 + ["something else that nobody else has asked for"]
    sketches = sketch(shingle(texts, Shingling()))
    pairs = candidates(sketches, 0.8)
    assert len(pairs) < 20 * 8 * 2_000
    near = verify(pairs, lambda rows: [texts[row] for row in rows], Shingling())
    assert (clusters(near, 2_001)[:2_000] == 0).all()
    assert (later_twins(near, 2_001) < 0).nonzero()[0].tolist()[0] == 0


def test_candidates_across_pair_only_with_those_held_back() -> None:
    texts = [f"please tell me where my parcel number {number % 3} is at the moment" for number in range(30)]
    is_held = np.arange(30) % 10 == 0
    pairs = candidates_across(sketch(shingle(texts, Shingling())), 0.8, is_held)
    assert (is_held[pairs[:, 0]] != is_held[pairs[:, 1]]).all()
    assert set(pairs.ravel()[~is_held[pairs.ravel()]].tolist()) == set(np.flatnonzero(~is_held).tolist())


def test_product_texts_near_by_definition_are_met(shared_data) -> None:  # type: ignore[no-untyped-def]
    lines = (shared_data / "product_matching" / "abt_buy_test.txt").read_text(encoding="utf-8").splitlines()[:400]
    texts = sorted({part for line in lines for part in line.split("\t")[:2]})
    how = Shingling(threshold=0.8)
    found = sets(texts, how)
    truth = {
        (left, right)
        for left in range(len(texts))
        for right in range(left + 1, len(texts))
        if len(found[left] & found[right]) / len(found[left] | found[right]) >= 0.8
    }
    near = {tuple(pair) for pair in find_near(texts, how).pairs.tolist()}
    assert near <= truth
    assert len(near) >= 0.98 * len(truth) > 10
