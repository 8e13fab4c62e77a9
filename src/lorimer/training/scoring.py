"""How an adapter does on rows it was not trained on, in one forward pass and without generating.

A row counts as exact when every token of its answer is the likeliest after the ones before it: that is when greedy decoding gives
exactly this answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorimer.model.base import Base
from lorimer.model.chat import Rendered
from lorimer.model.lora import AdapterRows, LoRA
from lorimer.training.batching import make_batch
from lorimer.training.loop import hidden_states
from lorimer.training.loss import score_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScores:
    """One entry a row, in the rows' order."""

    losses: tuple[float, ...]
    """Summed negative log-likelihood of the row's learned tokens, in nats."""
    is_exact: tuple[bool, ...]
    num_supervised: int

    @property
    def loss(self) -> float:
        """Mean per learned token."""
        return sum(self.losses) / self.num_supervised

    @property
    def exact(self) -> float:
        """Share of rows that greedy decoding would answer exactly."""
        return sum(self.is_exact) / len(self.is_exact)


@torch.no_grad()
def score_rows(base: Base, lora: LoRA | None, rows: Sequence[Rendered], tokens_per_micro_batch: int) -> RowScores:
    """Put rows to the base through an adapter, or alone."""
    ready = None if lora is None else lora.to(dtype=base.dtype, device=base.device)
    batch = make_batch(rows, range(len(rows)), tokens_per_micro_batch)
    losses, wrong = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.long)
    for micro in batch.micro_batches:
        with base.routed([AdapterRows(start=0, stop=len(micro.ids), adapter=ready)]):
            hidden = hidden_states(base, micro)
        scores = score_tokens(hidden[micro.predicting.to(base.device)], base.head, micro.targets.to(base.device))
        row_ids = torch.tensor(micro.row_ids)[micro.target_rows]
        losses.index_add_(0, row_ids, scores.losses.double().cpu())
        wrong.index_add_(0, row_ids, (~scores.is_likeliest).long().cpu())
    return RowScores(losses=tuple(losses.tolist()), is_exact=tuple((wrong == 0).tolist()), num_supervised=batch.num_supervised)
