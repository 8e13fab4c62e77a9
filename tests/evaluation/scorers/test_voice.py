"""Two voices are told apart, one voice is not; what a text is about does not decide."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.errors import DataError
from lorimer.evaluation.scorers.voice import MAX_TEXTS, MIN_TEXTS, TOKEN, compare_voice, mask, profile_texts

THINGS = ("lamp kettle ladder blanket bicycle candle mirror basket", "invoice contract account payment deposit receipt budget salary")
PLAIN = (
    "The {0} is in the {1}. We will send it on Monday.",
    "Please check the {0} first, and then the {1}.",
    "A {0} costs more than a {1}; both can be returned within 14 days.",
    "If the {0} does not work, write to us and we shall replace it.",
    "We have received your {0}. It will take about three days.",
)
EAGER = (
    "Wow!! Your {0} is SO on its way - how cool is that?!",
    "Hey you! Got a {0}? Get a {1}, too!! :-)",
    "Oh no!!! The {0} broke?! We got you - new one coming up!",
    "Yay, a {1}! And a {0}! Best day ever, right?!",
    "Super quick: {0} in, {1} out. Done! Love it?!",
)


def texts(forms: tuple[str, ...], num: int, seed: int, things: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = THINGS[things].split()
    return [" ".join(form.format(*rng.sample(words, 2)) for form in rng.sample(forms, 2)) for _ in range(num)]


def test_another_voice_is_far_beyond_chance() -> None:
    found = compare_voice(texts(PLAIN, 40, 1), texts(EAGER, 40, 2), seed=0)
    assert found.p == 1 / 2001
    assert found.distance > 2 * found.null_high > 2 * found.null_median
    assert found.num_answers == 40


def test_the_same_voice_on_other_things_is_not() -> None:
    found = compare_voice(texts(PLAIN, 40, 1, 0), texts(PLAIN, 40, 2, 1), seed=0)
    assert found.p > 0.05
    assert found.distance < found.null_high


def test_a_share_of_another_voice_is_noticed_and_grows() -> None:
    approved = texts(PLAIN, 60, 1)
    shares = [compare_voice(approved, texts(PLAIN, 60 - num, 2) + texts(EAGER, num, 3), seed=0) for num in (0, 15, 60)]
    assert [found.distance for found in shares] == sorted(found.distance for found in shares)
    assert [found.p <= 0.05 for found in shares] == [False, True, True]


def test_answers_that_say_nothing_are_another_voice() -> None:
    assert compare_voice(texts(PLAIN, 30, 1), [""] * 30, seed=0).p < 0.01


def test_one_voice_gives_every_p_alike() -> None:
    """False alarms come at the rate that was allowed: of 100 random splits some 5% have p of 0.05 or less (13 or more: 1 in 1,000)."""
    rng = random.Random(5)
    pool = texts(PLAIN + EAGER, 40, 4)
    found = []
    for seed in range(100):
        rng.shuffle(pool)
        found.append(compare_voice(pool[:20], pool[20:], seed=seed, num_permutations=99).p)
    assert sum(p <= 0.05 for p in found) < 13
    assert 0.4 < float(np.mean(found)) < 0.6


def test_the_same_seed_gives_the_same_result() -> None:
    first, again, other = (compare_voice(texts(PLAIN, 20, 1), texts(PLAIN, 20, 2), seed=seed, num_permutations=200) for seed in (1, 1, 2))
    assert first == again
    assert first.distance == other.distance
    assert first.null_median != other.null_median


def test_a_large_set_is_compared_by_a_draw() -> None:
    many = texts(PLAIN, MAX_TEXTS + 200, 1)
    found = compare_voice(many, texts(PLAIN, 40, 2), seed=0, num_permutations=50)
    assert found.num_answers == 40
    assert found.p > 0.02


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("The lamp costs 14.50 euros!", "The **** ***** 0 ***** !"),
        ("Anna asked, and we said YES to NATO.", "N ***** , and we **** yes! to A ."),
        ("Wir haben den Brief.", "Wir haben den N ."),
        ("one\n\ntwo", "one \u00b6\u00b6 ***"),
        ("", ""),
    ],
)
def test_what_a_text_is_about_is_masked(text: str, masked: str) -> None:
    assert " ".join(mask(TOKEN.findall(text))) == masked


@pytest.mark.parametrize(
    ("approved", "answers", "words"),
    [
        (["Hello."] * 3, ["Hello."] * 9, "approved texts are 3"),
        (["Hello."] * 9, [], "answers are 0"),
        ([" "] * 9, ["a"] * 9, "no approved text"),
    ],
)
def test_too_little_to_judge_is_refused(approved: list[str], answers: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        compare_voice(approved, answers, seed=0)


@given(st.lists(st.text(max_size=80), min_size=MIN_TEXTS, max_size=MIN_TEXTS + 4), st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_no_text_raises(answers: list[str], seed: int) -> None:
    found = compare_voice(texts(PLAIN, MIN_TEXTS, 1), answers, seed=seed, num_permutations=20)
    assert 0 <= found.distance <= 1
    assert 0 < found.p <= 1
    for profile in profile_texts(answers):
        assert np.allclose(profile.sum(axis=1), 1)


def test_two_sets_of_real_answers_differ_and_halves_of_one_do_not(shared_data: Path) -> None:
    lines = (shared_data / "dolly_sample" / "dolly_151.jsonl").read_text(encoding="utf-8").splitlines()
    crowd = [json.loads(line)["answer"] for line in lines]
    with (shared_data / "bitext_customer_support" / "bitext_customer_support.csv").open(encoding="utf-8", newline="") as file:
        desk = [row["response"] for row in csv.DictReader(file)]
    rng = random.Random(0)
    rng.shuffle(desk)
    assert compare_voice(desk[:20], crowd[:20], seed=0, num_permutations=400).p < 0.01
    for corpus in (crowd, desk[:151]):
        found = []
        for seed in range(12):
            rng.shuffle(corpus)
            found.append(compare_voice(corpus[:40], corpus[40:80], seed=seed, num_permutations=99).p)
        assert sum(p <= 0.05 for p in found) <= 4  # at 5%, more than 4 of 12 come once in 5,000 runs
