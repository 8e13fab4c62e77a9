"""Rendered rows to micro-batches: one flattened stream of tokens each, no padding, in an order fixed by the seed.

Rows that begin with the same tokens share them: the stream holds the common prefix once and then what is each row's own
(`lorimer.model.attention.PrefixGroup`).
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from lorimer.model.attention import PrefixGroup
from lorimer.model.chat import Rendered

GROUP_TOKENS = 24  # tokens a group must save to be worth its own products in attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A range of a stream that belongs to one run."""

    start: int
    stop: int
    num_targets: int
    owner: int
    """The run's place among those trained together."""
    index: int
    """The micro-batch's number in its run's step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What fits in memory at once: whole rows, a shared prefix before those that begin with it."""

    ids: Tensor  # (T)
    positions: Tensor  # (T), from 0 within each row
    groups: tuple[PrefixGroup, ...]
    predicting: Tensor  # (N), places in the stream whose next token is learned; one in a prefix stands once for each row
    targets: Tensor  # (N), those next tokens
    target_rows: Tensor  # (N), whose they are: places in `row_ids`
    row_ids: tuple[int, ...]  # which of the rows given, in the order of the stream
    num_row_tokens: int
    """Tokens of the rows, each with its whole prefix."""
    parts: tuple[Part, ...]

    def owned_by(self, owner: int, index: int) -> "MicroBatch":
        """The same for a run at another place, as a later micro-batch of its step."""
        return replace(self, parts=tuple(replace(part, owner=owner, index=index) for part in self.parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The rows of one optimizer step, as micro-batches."""

    micro_batches: tuple[MicroBatch, ...]
    num_supervised: int
    """Tokens learned in the step: what the loss is divided by."""
    num_tokens: int
    """Of the rows, each with its whole prefix."""
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Rows that share their first tokens."""

    prefix_len: int
    row_ids: tuple[int, ...]


def batches(
    rows: Sequence[Rendered],
    *,
    batch_size: int,
    num_steps: int,
    tokens_per_micro_batch: int,
    seed: int,
    start: int = 0,
    share_prefixes: bool = True,
) -> Iterator[Batch]:
    """Endless epochs over shuffled rows, from step `start` up to `num_steps`; a batch may reach over an epoch's end."""
    for step, row_ids in enumerate(row_order(len(rows), batch_size=batch_size, num_steps=num_steps, seed=seed)):
        if step >= start:
            yield make_batch(rows, row_ids, tokens_per_micro_batch, share_prefixes=share_prefixes)


def row_order(num_rows: int, *, batch_size: int, num_steps: int, seed: int) -> Iterator[list[int]]:
    """Which rows each step takes: epoch after epoch, each shuffled anew."""
    order = _endless_order(num_rows, seed)
    for _ in range(num_steps):
        yield [next(order) for _ in range(min(batch_size, num_rows))]


def make_batch(rows: Sequence[Rendered], row_ids: Sequence[int], tokens_per_micro_batch: int, *, share_prefixes: bool = True) -> Batch:
    """One step's rows as micro-batches of at most so many places, unless one row alone is longer."""
    micro_batches = [flatten(rows, groups) for groups in _cut(rows, row_ids, tokens_per_micro_batch, share_prefixes)]
    return Batch(
        micro_batches=tuple(micro_batches),
        num_supervised=sum(len(m.targets) for m in micro_batches),
        num_tokens=sum(m.num_row_tokens for m in micro_batches),
        num_rows=len(row_ids),
    )


def flatten(rows: Sequence[Rendered], groups: "Sequence[_Group]") -> MicroBatch:
    """Groups end to end. A token is predicted at the place before it, so a row's first token never is."""
    ids, positions, row_ids = list[int](), list[int](), list[int]()
    predicting, targets, target_rows = list[int](), list[int](), list[int]()
    for group in groups:
        prefix_start, prefix_len = len(ids), group.prefix_len
        ids += rows[group.row_ids[0]].ids[:prefix_len]
        positions += range(prefix_len)
        for row_id in group.row_ids:
            row, offset = rows[row_id], len(ids) - prefix_len
            for place in range(1, len(row.ids)):
                if row.supervised[place]:
                    predicting.append(place - 1 + (offset if place > prefix_len else prefix_start))
                    targets.append(row.ids[place])
                    target_rows.append(len(row_ids))
            row_ids.append(row_id)
            ids += row.ids[prefix_len:]
            positions += range(prefix_len, len(row.ids))
    return MicroBatch(
        ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        groups=tuple(
            PrefixGroup(prefix_len=g.prefix_len, suffix_lens=tuple(len(rows[i].ids) - g.prefix_len for i in g.row_ids)) for g in groups
        ),
        predicting=torch.tensor(predicting, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        target_rows=torch.tensor(target_rows, dtype=torch.long),
        row_ids=tuple(row_ids),
        num_row_tokens=sum(len(rows[i].ids) for i in row_ids),
        parts=(Part(start=0, stop=len(ids), num_targets=len(targets), owner=0, index=0),),
    )


def fuse(micro_batches: Sequence[MicroBatch]) -> MicroBatch:
    """Streams end to end as one, each part still its run's."""
    starts = list(accumulate((len(m.ids) for m in micro_batches), initial=0))
    first_rows = list(accumulate((len(m.row_ids) for m in micro_batches), initial=0))
    return MicroBatch(
        ids=torch.cat([m.ids for m in micro_batches]),
        positions=torch.cat([m.positions for m in micro_batches]),
        groups=tuple(group for m in micro_batches for group in m.groups),
        predicting=torch.cat([m.predicting + start for m, start in zip(micro_batches, starts, strict=False)]),
        targets=torch.cat([m.targets for m in micro_batches]),
        target_rows=torch.cat([m.target_rows + first for m, first in zip(micro_batches, first_rows, strict=False)]),
        row_ids=tuple(row_id for m in micro_batches for row_id in m.row_ids),
        num_row_tokens=sum(m.num_row_tokens for m in micro_batches),
        parts=tuple(
            replace(part, start=part.start + start, stop=part.stop + start)
            for m, start in zip(micro_batches, starts, strict=False)
            for part in m.parts
        ),
    )


def _cut(rows: Sequence[Rendered], row_ids: Sequence[int], budget: int, share_prefixes: bool) -> Iterator[list[_Group]]:
    """Groups, cut where a micro-batch is full; a group that is cut has its prefix in both parts. Rows that share nothing come last."""
    groups = group_rows(rows, row_ids) if share_prefixes else [_Group(prefix_len=0, row_ids=tuple(row_ids))]
    current: list[_Group] = []
    num_places = 0
    for group in groups:
        part: list[int] = []
        for row_id in sorted(group.row_ids, key=lambda i: len(rows[i].ids)):
            more = len(rows[row_id].ids) - (group.prefix_len if part else 0)
            if num_places and num_places + more > budget:
                yield [*current, *_groups_of(group, part)]
                current, part, num_places, more = [], [], 0, len(rows[row_id].ids)
            part.append(row_id)
            num_places += more
        current += _groups_of(group, part)
    yield current


def _groups_of(group: _Group, part: list[int]) -> list[_Group]:
    return [_Group(prefix_len=group.prefix_len if len(part) > 1 else 0, row_ids=tuple(part))] if part else []


def group_rows(rows: Sequence[Rendered], row_ids: Sequence[int]) -> list[_Group]:
    """The groups that save most tokens, one level deep; rows that are better alone stand in one last group without a prefix."""
    order = sorted(row_ids, key=lambda i: rows[i].ids)
    shared = [_common_len(rows[a].ids, rows[b].ids) for a, b in pairwise(order)]  # of neighbours
    _, groups = _best_groups(order, shared)
    grouped = {i for group in groups for i in group.row_ids}
    alone = tuple(i for i in order if i not in grouped)
    return [*groups, _Group(prefix_len=0, row_ids=alone)] if alone else groups


def _best_groups(order: Sequence[int], shared: Sequence[int]) -> tuple[int, list[_Group]]:
    """Tokens saved and how: all rows as one group, or cut where neighbours share least and each part on its own."""
    if not shared:
        return 0, []
    least = min(shared)
    together = least * (len(order) - 1) - GROUP_TOKENS
    saved, groups, start = 0, list[_Group](), 0
    for stop in [*(i + 1 for i, length in enumerate(shared) if length == least), len(order)]:
        part_saved, part = _best_groups(order[start:stop], shared[start : stop - 1])
        saved, groups, start = saved + part_saved, groups + part, stop
    if together > saved:
        return together, [_Group(prefix_len=least, row_ids=tuple(order))]
    return saved, groups


def _common_len(one: Sequence[int], other: Sequence[int]) -> int:
    """Of the common prefix, leaving each row at least one token of its own."""
    longest = min(len(one), len(other)) - 1
    return next((i for i in range(longest) if one[i] != other[i]), longest)


def _endless_order(num_rows: int, seed: int) -> Iterator[int]:
    generator = random.Random(seed)
    while True:
        order = list(range(num_rows))
        generator.shuffle(order)
        yield from order
