"""Rows become one flattened stream; order is the seed's; nothing is padded or lost."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.model.attention import PrefixGroup
from lorimer.model.chat import Rendered
from lorimer.training.batching import MicroBatch, batches, fuse, make_batch


def row(*ids: int, learned: int = 1) -> Rendered:
    return Rendered(ids=ids, supervised=tuple(i >= len(ids) - learned for i in range(len(ids))))


def test_flatten_predicts_each_learned_token_from_the_one_before() -> None:
    (micro,) = make_batch([row(1, 2, 3), row(4, 5, 6, 7, learned=2)], [0, 1], 100).micro_batches
    assert micro.ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert micro.positions.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert micro.groups == (PrefixGroup(prefix_len=0, suffix_lens=(3, 4)),)
    assert list(zip(micro.ids[micro.predicting].tolist(), micro.targets.tolist(), strict=True)) == [(2, 3), (5, 6), (6, 7)]


def test_first_token_of_a_row_is_never_predicted_from_the_row_before() -> None:
    (micro,) = make_batch([row(1, 2, learned=2), row(3, 4, learned=2)], [0, 1], 100).micro_batches
    assert micro.targets.tolist() == [2, 4]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(2, 64))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    rows = [row(*range(n)) for n in lengths]
    batch = make_batch(rows, range(len(rows)), budget)
    assert sorted(i for micro in batch.micro_batches for i in micro.row_ids) == list(range(len(rows)))
    assert batch.num_tokens == sum(lengths)
    assert all(len(micro.ids) <= budget or len(micro.row_ids) == 1 for micro in batch.micro_batches)


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


def unfold(micro: MicroBatch) -> list[tuple[int, ...]]:
    """The rows of a stream, put together again from their prefixes and suffixes."""
    ids, found, at = micro.ids.tolist(), [], 0
    for group in micro.groups:
        prefix, at = ids[at : at + group.prefix_len], at + group.prefix_len
        for length in group.suffix_lens:
            found.append((*prefix, *ids[at : at + length]))
            at += length
    assert at == len(ids)
    return found


@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 3), min_size=1, max_size=6)), min_size=1, max_size=20),
    st.integers(10, 400),
    st.booleans(),
)
def test_rows_are_whole_whatever_they_share(drawn: list[tuple[int, list[int]]], budget: int, share: bool) -> None:
    instructions = [(9,), (7,) * 30, (7,) * 30 + (8,) * 20]
    rows = [row(*instructions[which], *rest, learned=2) for which, rest in drawn]
    batch = make_batch(rows, range(len(rows)), budget, share_prefixes=share)
    found = [(row_id, ids) for micro in batch.micro_batches for row_id, ids in zip(micro.row_ids, unfold(micro), strict=True)]
    assert sorted(found) == [(i, r.ids) for i, r in enumerate(rows)]
    for micro in batch.micro_batches:
        for place, target, at in zip(micro.predicting.tolist(), micro.targets.tolist(), micro.target_rows.tolist(), strict=True):
            ids = rows[micro.row_ids[at]].ids
            position = int(micro.positions[place])
            assert (ids[position], ids[position + 1]) == (int(micro.ids[place]), target)
    assert batch.num_supervised == sum(sum(r.supervised[1:]) for r in rows)


def test_a_shared_instruction_stands_in_the_stream_once() -> None:
    rows = [row(*range(100, 200), i, i + 1) for i in range(8)]
    (micro,) = make_batch(rows, range(8), 1000).micro_batches
    assert micro.groups == (PrefixGroup(prefix_len=100, suffix_lens=(2,) * 8),)
    assert (len(micro.ids), micro.num_row_tokens) == (116, 8 * 102)


def test_two_instructions_make_two_groups() -> None:
    rows = [row(*([i % 2] * 50), i) for i in range(8)]
    (micro,) = make_batch(rows, range(8), 1000).micro_batches
    assert sorted(group.prefix_len for group in micro.groups) == [50, 50]


def test_fused_streams_keep_their_owners() -> None:
    rows = [row(1, 2, 3), row(4, 5, 6, 7)]
    one, other = (make_batch(rows, [i], 100).micro_batches[0].owned_by(i, 0) for i in (0, 1))
    both = fuse([one, other])
    assert [(part.owner, part.start, part.stop, part.num_targets) for part in both.parts] == [(0, 0, 3, 1), (1, 3, 7, 1)]
    assert both.ids[both.predicting].tolist() == [2, 6]
    assert both.targets.tolist() == [3, 7]
    assert both.target_rows.tolist() == [0, 1]
