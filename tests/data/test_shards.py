"""Rows dealt out by subject: one shard each, whoever else is there; what was made from somebody's rows goes with them."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import chat
from lorimer.config import PrivacyRecipe, Recipe, parse_recipe
from lorimer.data.dataset import read_dataset
from lorimer.data.example import Example
from lorimer.data.shards import deal, decides_by_validation, holds, rows_without, write_rows, write_shards, write_without
from lorimer.data.split import Splits
from lorimer.errors import ConfigError


def rows_of(*subjects: str) -> tuple[Example, ...]:
    return tuple(replace(chat(f"q{i}", "a", source=f"t.jsonl:{i}"), subject=subject) for i, subject in enumerate(subjects))


def recipe(shards: int, **keys: object) -> Recipe:
    return Recipe.model_validate({"base": "b", "dataset": "t", "privacy": {"mode": "sharded", "shards": shards}, **keys})


@given(st.lists(st.sampled_from(["", "aa", "bb", "cc", "dd"]), max_size=40), st.integers(2, 8))
def test_every_row_is_in_one_shard_and_a_person_in_one(subjects: list[str], num_shards: int) -> None:
    rows = rows_of(*subjects)
    shards = deal(rows, num_shards)
    assert sorted(row.source for shard in shards for row in shard) == sorted(row.source for row in rows)
    for subject in set(subjects) - {""}:
        assert sum(subject in {row.subject for row in shard} for shard in shards) == 1


@given(st.lists(st.sampled_from(["", "aa", "bb", "cc"]), min_size=1, max_size=30), st.integers(2, 8), st.data())
def test_a_row_stays_in_its_shard_when_others_go(subjects: list[str], num_shards: int, data: st.DataObject) -> None:
    rows = rows_of(*subjects)
    left = tuple(row for row in rows if data.draw(st.booleans()))
    before = {row.source: number for number, shard in enumerate(deal(rows, num_shards)) for row in shard}
    assert all(before[row.source] == number for number, shard in enumerate(deal(left, num_shards)) for row in shard)


@pytest.mark.parametrize("subject", ["", "aa"])
def test_synthetic_rows_go_where_their_parents_go(subject: str) -> None:
    parents = rows_of(*[subject] * 20)
    children = tuple(replace(chat(f"again {i}", "a"), parent=row.record_digest) for i, row in enumerate(parents))
    for shard in deal((*parents, *children), 8):
        assert {row.parent for row in shard if row.parent} == {row.record_digest for row in shard if not row.parent}


def test_what_was_made_from_somebodys_rows_goes_with_them() -> None:
    own, other = rows_of("aa", "bb")
    child = replace(chat("again", "a"), parent=own.record_digest)
    assert rows_without((own, child, other), {"aa"}) == (other,)
    assert holds((own, child), {"aa"})
    assert not holds((other,), {"aa"})


def test_shards_are_spread_evenly() -> None:
    sizes = [len(shard) for shard in deal(rows_of(*[f"{i:032x}" for i in range(4000)]), 8)]
    assert min(sizes) > 400  # 500 expected, standard deviation 21
    assert max(sizes) < 600


def test_a_shard_holds_validation_rows_only_where_they_decide(home: Path) -> None:
    rows = rows_of(*[f"{i:02x}" for i in range(40)])
    whole = write_rows("t", Splits(train=rows[:30], validation=rows[30:35], test=rows[35:]), {})
    for keys, num in (({}, 0), ({"validate_every": 5}, 5), ({"patience": 2}, 5)):
        asked = recipe(2, **keys)
        assert decides_by_validation(asked) == bool(num)
        assert [(len(shard.validation), len(shard.test)) for shard in write_shards(whole, "t", asked)] == [(num, 0)] * 2
    assert read_dataset("t-shard-1").card["curation"] == {"shard": "1 of 2"}


def test_a_dataset_without_the_rows_keeps_its_name_and_one_with_none_keeps_its_digest(home: Path) -> None:
    rows = rows_of("aa", "aa", "bb", "aa")
    whole = write_rows("t", Splits(train=rows[:3], validation=rows[3:], test=()), {"seed": 1})
    assert write_without(whole, {"cc"}) is whole
    left = write_without(whole, {"aa"})
    assert left is not None
    assert (left.name, left.train, left.validation, left.digest) == ("t", rows[2:3], (), read_dataset("t").digest)
    assert write_without(left, {"bb"}) is None


def test_empty_shards_and_long_names_are_refused_together(home: Path) -> None:
    whole = write_rows("t", Splits(train=rows_of("aa", "aa"), validation=(), test=()), {})
    with pytest.raises(ConfigError) as refused:
        write_shards(whole, "n" * 60, recipe(4, method="dora"))
    for part in ("'dora'", "of 4 would have no rows", "of 1 subjects", "shorter `name:`"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"mode": "sharded", "shards": 1}, "privacy.shards"),
        ({"mode": "sharded", "shards": 9}, "privacy.shards"),
        ({"mode": "sharded", "shard": 4}, "did you mean `shards`"),
        ("masked", "privacy.mode"),
    ],
)
def test_what_cannot_be_sharded_is_refused_when_it_is_read(value: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_recipe({"base": "b", "dataset": "t", "privacy": value}, "r.yaml")
    assert parse_recipe({"base": "b", "dataset": "t", "privacy": "sharded"}, "r.yaml").privacy == PrivacyRecipe(mode="sharded", shards=4)
