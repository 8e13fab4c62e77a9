"""Splits are stable: equal prompts stay together, and a row stays where it is whatever happens to the others."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.data.example import Example, Message
from lorimer.data.split import SPLITS, Splits, assign, place, split
from lorimer.errors import ConfigError


def ask(prompt: str, answer: str = "A", system: str | None = None) -> Example:
    before = (Message(role="system", content=system),) if system else ()
    return Example(
        messages=(*before, Message(role="user", content=prompt), Message(role="assistant", content=answer)), source=f"f:{prompt}"
    )


def many(num: int) -> list[Example]:
    return [ask(f"question {number}") for number in range(num)]


def where(splits: Splits) -> dict[str, str]:
    return {example.source: name for name, examples in splits.items() for example in examples}


def test_split_meets_its_shares_on_average() -> None:
    splits = split(many(5_000))
    assert [len(rows) / 5_000 for _, rows in splits.items()] == pytest.approx([0.85, 0.05, 0.1], abs=0.02)


def test_split_is_the_same_every_time_and_keeps_the_order() -> None:
    splits = split(many(100))
    assert splits == split(many(100))
    assert list(splits.train) == [example for example in many(100) if example in splits.train]
    assert where(splits) != where(split(many(100), seed=1))


def test_split_of_known_rows_never_changes() -> None:
    # a changed hash would move rows of everybody's datasets from test to train
    assert place(ask("How do I locate my card?"), 0) == pytest.approx(0.40760371, abs=1e-8)


def test_validation_stays_when_a_test_file_takes_over() -> None:
    assert split(many(200)).validation == split(many(200), test=0.0).validation


def test_split_ignores_case_space_and_system() -> None:
    assert place(ask("What  now?"), 0) == place(ask("what now? ", system="S"), 0)


def test_split_ignores_the_answers_of_a_pair() -> None:
    assert place(replace(ask("what now?", "B"), rejected="A"), 0) == place(ask("what now?"), 0)


@pytest.mark.parametrize("num", range(10))
def test_few_examples_all_go_to_train(num: int) -> None:
    splits = split(many(num))
    assert (len(splits.train), splits.validation, splits.test) == (num, (), ())


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.2), (0.0, 1.0), (0.5, 0.5)])
def test_shares_that_leave_nothing_are_refused(validation: float, test: float) -> None:
    with pytest.raises(ConfigError, match="sum is below 1"):
        split(many(20), validation=validation, test=test)


prompts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=10, max_size=60)
shares = st.sampled_from([(0.1, 0.2), (0.0, 0.0), (0.45, 0.5), (0.9, 0.0), (0.0, 0.99)])


@given(prompts, shares)
def test_every_row_is_in_one_split_and_train_has_some(texts: list[str], share: tuple[float, float]) -> None:
    examples = [ask(text, str(number)) for number, text in enumerate(texts)]
    splits = split(examples, validation=share[0], test=share[1])
    found = [example.answer for name in SPLITS for example in getattr(splits, name)]
    assert sorted(found) == sorted(example.answer for example in examples)
    assert splits.train
    assert not {place(row, 0) for row in splits.train} & {place(row, 0) for row in (*splits.validation, *splits.test)}


@given(prompts, prompts)
def test_row_keeps_its_split_when_others_come_and_go(texts: list[str], others: list[str]) -> None:
    anchor = [ask(f"anchor {number}") for number in range(30)]  # enough prompts that train never needs to be filled up
    before = where(split([*anchor, *map(ask, texts)]))
    after = where(split([*map(ask, others), *map(ask, texts), *anchor]))
    assert all(after[source] == name for source, name in before.items())


def test_stratified_shares_are_met_for_every_answer() -> None:
    rng = np.random.default_rng(0)
    answers = np.repeat(np.array([1, 2, 3], np.uint64), [200, 40, 20])
    places = rng.random(len(answers))
    assigned = assign(places, validation=0.05, test=0.1, answers=answers)
    for answer, num in ((1, 200), (2, 40), (3, 20)):
        counts = np.bincount(assigned[answers == answer], minlength=3)
        assert counts.tolist() == [num - round(0.15 * num), round(0.05 * num), round(0.15 * num) - round(0.05 * num)]


def test_stratified_rows_far_from_a_border_stay_when_others_come() -> None:
    rng = np.random.default_rng(1)
    answers, places = rng.integers(0, 3, 400).astype(np.uint64), rng.random(400)
    before = assign(places[:350], validation=0.05, test=0.1, answers=answers[:350])
    after = assign(places, validation=0.05, test=0.1, answers=answers)[:350]
    assert (before != after).mean() < 0.03
