"""Blocks of the cache: nothing is given twice, names lead to what they named, what is let go comes back."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.inference.blocks import BlockPool, first_key, next_key


def test_take_gives_all_or_none() -> None:
    pool = BlockPool(4)
    assert pool.take(5) is None
    assert pool.num_idle == 4
    taken = pool.take(3)
    assert taken is not None
    assert len(set(taken)) == 3
    assert pool.take(2) is None


def test_named_blocks_are_found_until_they_are_taken_again() -> None:
    pool = BlockPool(3)
    (block,) = pool.take(1) or []
    pool.name(block, b"k")
    pool.release([block])
    assert pool.hold_known([b"k", b"unknown"]) == [block]
    pool.release([block])
    assert block in (pool.take(3) or [])
    assert pool.hold_known([b"k"]) == []


def test_block_in_use_by_two_is_idle_after_both_let_go() -> None:
    pool = BlockPool(2)
    (block,) = pool.take(1) or []
    pool.name(block, b"k")
    pool.hold_known([b"k"])
    pool.release([block])
    assert pool.num_idle == 1
    pool.release([block])
    assert pool.num_idle == 2


def test_unnamed_blocks_are_taken_before_named_ones() -> None:
    pool = BlockPool(3)
    first, second, third = pool.take(3) or []
    pool.name(second, b"k")
    pool.release([first, second, third])
    assert second not in (pool.take(2) or [])


def test_keys_tell_compositions_bases_and_beginnings_apart() -> None:
    firsts = {first_key(base, composition) for base in ("b1", "b2") for composition in ("", "c")}
    assert len(firsts) == 4
    assert len({next_key(first, ids) for first in firsts for ids in ((1, 2), (2, 1))}) == 8


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "release", "known", "name"]), st.integers(0, 5)), max_size=60))
def test_any_use_keeps_the_books(actions: list[tuple[str, int]]) -> None:
    pool, held = BlockPool(6), list[list[int]]()
    for action, number in actions:
        if action == "take" and (blocks := pool.take(number)) is not None:
            held.append(blocks)
        elif action == "known":
            held.append(pool.hold_known([bytes([number])]))
        elif action == "name" and held and held[-1]:
            pool.name(held[-1][0], bytes([number]))
        elif action == "release" and held:
            pool.release(held.pop(number % len(held)))
        in_use = {block for blocks in held for block in blocks}
        assert pool.num_idle == 6 - len(in_use)
        for key, block in pool._by_key.items():
            assert pool._keys[block] == key
