"""Shards of a dataset: its training rows dealt out by subject, so that what one person's rows have taught lies in one place.

A shard is a dataset of its own. It holds what its adapter is made from and nothing else: its training rows, and the validation split only
where that decides which weights are kept. Taking out somebody's rows then changes the one shard they are in and no other.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lorimer.config import COMPARISON_METHODS, Recipe
from lorimer.data.card import build_card
from lorimer.data.dataset import NAME_PATTERN, Dataset, write_dataset
from lorimer.data.example import Example
from lorimer.data.features import place_of
from lorimer.data.split import Splits
from lorimer.errors import ConfigError

OWN_WAYS = ("dora", *COMPARISON_METHODS)
"""Methods whose adapters do not add up."""


def contradictions(recipe: Recipe) -> list[str]:
    """Why a recipe cannot be trained in shards, a sentence each."""
    found = list[str]()
    if recipe.method in OWN_WAYS:
        found.append(f"method {recipe.method!r} makes no adapters that answer together: use `lora`, `rslora`, `lora_plus` or `pissa`")
    if recipe.preference:
        found.append("`preference` is not learned in shards (a reference adapter has seen everybody's rows): learn from examples")
    if recipe.rank == "auto":
        found.append("`rank: auto` chooses by validation rows, which would then be in every shard: give a rank")
    return found


def shard_name(name: str, number: int) -> str:
    """What a shard's dataset and adapter are called, counted from 1."""
    return f"{name}-shard-{number}"


def find_roots(rows: Iterable[Example]) -> dict[str, Example]:
    """Rows by their record digests: where synthetic rows find what they were made from."""
    return {row.record_digest: row for row in rows}


def shard_of(row: Example, by_record: Mapping[str, Example], num_shards: int) -> int:
    """Which shard a row falls into, from 0: by its subject, else by itself; a synthetic row goes with the one it was made from."""
    root = _root(row, by_record)
    key = root.subject or root.parent or root.record_digest
    return int(place_of(f"shard\0{key}") * num_shards)


def deal(rows: Iterable[Example], num_shards: int) -> list[tuple[Example, ...]]:
    """The rows of each shard, in their order. Where a row falls does not depend on which others there are."""
    listed = tuple(rows)
    by_record = find_roots(listed)
    shards: list[list[Example]] = [[] for _ in range(num_shards)]
    for row in listed:
        shards[shard_of(row, by_record, num_shards)].append(row)
    return [tuple(shard) for shard in shards]


def write_shards(dataset: Dataset, name: str, recipe: Recipe) -> list[Dataset]:
    """Keep each shard of a dataset as `NAME-shard-K`.

    Raises:
        ConfigError: if the recipe cannot be trained in shards, or the rows do not fill them; every reason is given.
    """
    assert recipe.privacy is not None
    problems = contradictions(recipe)
    dealt = deal(dataset.train, recipe.privacy.shards)
    if empty := [number for number, rows in enumerate(dealt, start=1) if not rows]:
        what = f"shard {empty[0]}" if len(empty) == 1 else f"shards {', '.join(map(str, empty))}"
        problems.append(
            f"{what} of {len(dealt)} would have no rows: dataset {dataset.name!r} has {len(dataset.train)} for training, of "
            f"{_num_subjects(dataset.train)} subjects; ask for fewer shards"
        )
    if not NAME_PATTERN.fullmatch(shard_name(name, len(dealt))):
        problems.append(f"{shard_name(name, len(dealt))!r} is too long a name for a shard: give the recipe a shorter `name:`")
    if problems:
        raise ConfigError(f"`privacy: sharded` does not go with the rest of the recipe: {'; '.join(problems)}")
    validation = dataset.validation if decides_by_validation(recipe) else ()
    return [
        write_rows(
            shard_name(name, number),
            Splits(train=rows, validation=validation, test=()),
            {**dataset.card["curation"], "shard": f"{number} of {len(dealt)}"},
        )
        for number, rows in enumerate(dealt, start=1)
    ]


def write_rows(name: str, splits: Splits, curation: Mapping[str, Any]) -> Dataset:
    """Keep rows that were curated before as a dataset, with a card of their own: it says nothing of rows that are not in it."""
    return write_dataset(name, splits, build_card(name, splits, curation=curation, sources=[], findings=[], problems=[]))


def decides_by_validation(recipe: Recipe) -> bool:
    """Whether rows of the validation split have a say in which weights are kept."""
    return bool(recipe.validate_every or recipe.patience)


def holds(rows: Iterable[Example], subjects: Collection[str]) -> bool:
    """Whether some of the rows, or rows they were made from, are about some subjects."""
    listed = tuple(rows)
    return len(rows_without(listed, subjects)) < len(listed)


def rows_without(rows: tuple[Example, ...], subjects: Collection[str]) -> tuple[Example, ...]:
    """What is left of rows when those of some subjects go, and what was made from them."""
    by_record = find_roots(rows)
    return tuple(row for row in rows if row.subject not in subjects and _root(row, by_record).subject not in subjects)


def write_without(dataset: Dataset, subjects: Collection[str]) -> Dataset | None:
    """A dataset without some subjects' rows, under the same name; itself if it has none of them, None if no training row is left."""
    before = Splits(train=dataset.train, validation=dataset.validation, test=dataset.test)
    after = Splits(**{split: rows_without(rows, subjects) for split, rows in before.items()})
    if after == before:
        return dataset
    return write_rows(dataset.name, after, dataset.card["curation"]) if after.train else None


def _root(row: Example, by_record: Mapping[str, Example]) -> Example:
    """What a row was made from, as far as that is here."""
    while not row.subject and row.parent in by_record:
        row = by_record[row.parent]
    return row


def _num_subjects(rows: Iterable[Example]) -> int:
    listed = tuple(rows)
    by_record = find_roots(listed)
    return len({root.subject or root.parent or root.record_digest for root in (_root(row, by_record) for row in listed)})
