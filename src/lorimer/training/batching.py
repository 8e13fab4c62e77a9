"""Rendered rows to micro-batches: one flattened stream of tokens each, no padding, in an order fixed by the seed."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorimer.model.chat import Rendered


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What fits in memory at once: whole rows, end to end."""

    ids: Tensor  # (T)
    positions: Tensor  # (T), from 0 within each row
    lengths: tuple[int, ...]  # one per row, sum T
    predicting: Tensor  # (N), places in the stream whose next token is learned
    targets: Tensor  # (N), those next tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The rows of one optimizer step, as micro-batches."""

    micro_batches: tuple[MicroBatch, ...]
    num_supervised: int
    """Tokens learned in the step: what the loss is divided by."""
    num_tokens: int
    num_rows: int


def batches(rows: Sequence[Rendered], *, batch_size: int, num_steps: int, tokens_per_micro_batch: int, seed: int) -> Iterator[Batch]:
    """Endless epochs over shuffled rows, cut after `num_steps`; a batch may reach over an epoch's end."""
    order = _endless_order(len(rows), seed)
    for _ in range(num_steps):
        yield make_batch([rows[next(order)] for _ in range(min(batch_size, len(rows)))], tokens_per_micro_batch)


def make_batch(rows: Sequence[Rendered], tokens_per_micro_batch: int) -> Batch:
    """One step's rows, shortest first so that attention finds neighbours of like length."""
    micro_batches, current = [], list[Rendered]()
    for row in sorted(rows, key=lambda r: len(r.ids)):
        if current and sum(len(r.ids) for r in current) + len(row.ids) > tokens_per_micro_batch:
            micro_batches.append(flatten(current))
            current = []
        current.append(row)
    micro_batches.append(flatten(current))
    return Batch(
        micro_batches=tuple(micro_batches),
        num_supervised=sum(len(m.targets) for m in micro_batches),
        num_tokens=sum(len(m.ids) for m in micro_batches),
        num_rows=len(rows),
    )


def flatten(rows: Sequence[Rendered]) -> MicroBatch:
    """Rows end to end. A token is predicted at the place before it, so a row's first token never is."""
    ids = [i for row in rows for i in row.ids]
    predicting, targets, start = [], [], 0
    for row in rows:
        for place in range(1, len(row.ids)):
            if row.supervised[place]:
                predicting.append(start + place - 1)
                targets.append(row.ids[place])
        start += len(row.ids)
    return MicroBatch(
        ids=torch.tensor(ids),
        positions=torch.cat([torch.arange(len(row.ids)) for row in rows]),
        lengths=tuple(len(row.ids) for row in rows),
        predicting=torch.tensor(predicting, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
    )


def _endless_order(num_rows: int, seed: int) -> Iterator[int]:
    generator = random.Random(seed)
    while True:
        order = list(range(num_rows))
        generator.shuffle(order)
        yield from order
