"""Rows become one flattened stream; order is the seed's; nothing is padded or lost."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.model.chat import Rendered
from lorimer.training.batching import batches, flatten, make_batch


def row(*ids: int, learned: int = 1) -> Rendered:
    return Rendered(ids=ids, supervised=tuple(i >= len(ids) - learned for i in range(len(ids))))


def test_flatten_predicts_each_learned_token_from_the_one_before() -> None:
    micro = flatten([row(1, 2, 3), row(4, 5, 6, 7, learned=2)])
    assert micro.ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert micro.positions.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert micro.lengths == (3, 4)
    assert list(zip(micro.ids[micro.predicting].tolist(), micro.targets.tolist(), strict=True)) == [(2, 3), (5, 6), (6, 7)]


def test_first_token_of_a_row_is_never_predicted_from_the_row_before() -> None:
    micro = flatten([row(1, 2, learned=2), row(3, 4, learned=2)])
    assert micro.targets.tolist() == [2, 4]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(2, 64))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    rows = [row(*range(n)) for n in lengths]
    batch = make_batch(rows, budget)
    assert sorted(n for micro in batch.micro_batches for n in micro.lengths) == sorted(lengths)
    assert batch.num_tokens == sum(lengths)
    assert all(len(micro.ids) <= budget or len(micro.lengths) == 1 for micro in batch.micro_batches)


def test_epochs_show_every_row_before_any_twice() -> None:
    rows = [row(i, i) for i in range(10)]
    seen = [
        i
        for b in batches(rows, batch_size=5, num_steps=4, tokens_per_micro_batch=100, seed=1)
        for i in b.micro_batches[0].ids[::2].tolist()
    ]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))


@pytest.mark.parametrize(("one", "other", "equal"), [(1, 1, True), (1, 2, False)])
def test_order_is_the_seeds(one: int, other: int, equal: bool) -> None:
    rows = [row(i, i) for i in range(50)]
    first, second = (
        [b.micro_batches[0].ids.tolist() for b in islice(batches(rows, batch_size=7, num_steps=5, tokens_per_micro_batch=99, seed=s), 5)]
        for s in (one, other)
    )
    assert (first == second) is equal
