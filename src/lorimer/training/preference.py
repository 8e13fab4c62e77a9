"""Learning from pairs of answers: direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290).

The reference is an explicit adapter, or the base alone; never "the model with its adapter off", which would be the wrong one after
supervised training. Its log-likelihoods are computed once, before the first step. Both answers of a pair share their prompt in the stream.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lorimer.model.base import Base
from lorimer.model.chat import Rendered
from lorimer.model.lora import AdapterRows, LoRA
from lorimer.training.batching import Batch, MicroBatch, flatten, group_rows, row_order
from lorimer.training.loop import hidden_states
from lorimer.training.loss import token_log_likelihoods
from lorimer.training.scoring import score_rows

LN_2 = math.log(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Pairs laid end to end, chosen before rejected, and what the reference makes of each answer."""

    rows: tuple[Rendered, ...]
    reference: tuple[float, ...]
    """Log-likelihood of each row's answer."""
    beta: float
    first_loss: float | None = LN_2
    """What the first step must find, as policy and reference are then the same; anything else means that the reference is wrong."""

    def accumulate(self, base: Base, lora: LoRA, batch: Batch, micro: MicroBatch) -> float:
        """Add a micro-batch's gradients; returns its share of the step's mean loss a pair."""
        device = base.device
        with base.routed([AdapterRows(start=0, stop=len(micro.ids), adapter=lora)]):
            hidden = hidden_states(base, micro)
            found = token_log_likelihoods(hidden.index_select(0, micro.predicting.to(device)), base.head, micro.targets.to(device))
            margin = self._margins(micro, found)
            total = -F.logsigmoid(self.beta * margin).sum() / (batch.num_rows // 2)
            total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    def _margins(self, micro: MicroBatch, token_likelihoods: Tensor) -> Tensor:
        """How much more the policy prefers the chosen answer than the reference does, one a pair."""
        sums = token_likelihoods.new_zeros(len(micro.row_ids)).index_add(
            0, micro.target_rows.to(token_likelihoods.device), token_likelihoods
        )
        sums = sums - torch.tensor([self.reference[i] for i in micro.row_ids], device=sums.device)
        place = {row_id: at for at, row_id in enumerate(micro.row_ids)}
        chosen = [row_id for row_id in micro.row_ids if row_id % 2 == 0]
        return sums[[place[i] for i in chosen]] - sums[[place[i + 1] for i in chosen]]


def copy_for_training(reference: LoRA) -> LoRA:
    """An adapter that begins where the reference is, and learns all that the reference has: with DoRA its magnitudes too."""
    weights = {
        name: replace(own, a=_trainable(own.a), b=_trainable(own.b), magnitude=None if own.magnitude is None else _trainable(own.magnitude))
        for name, own in reference.weights.items()
    }
    return replace(reference, weights=weights)


def _trainable(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def prepare_preference(
    pairs: Sequence[tuple[Rendered, Rendered]], base: Base, reference: LoRA | None, *, beta: float, tokens_per_micro_batch: int
) -> Preference:
    """Ask the reference for each answer's log-likelihood."""
    rows = tuple(row for pair in pairs for row in pair)
    scores = score_rows(base, reference, rows, tokens_per_micro_batch)
    return Preference(rows=rows, reference=tuple(-loss for loss in scores.losses), beta=beta)


def pair_batches(
    preference: Preference, *, batch_size: int, num_steps: int, tokens_per_micro_batch: int, seed: int, start: int = 0
) -> Iterator[Batch]:
    """Steps of `batch_size` pairs; both answers of a pair are always in one micro-batch."""
    num_pairs = len(preference.rows) // 2
    for step, pair_ids in enumerate(row_order(num_pairs, batch_size=batch_size, num_steps=num_steps, seed=seed)):
        if step >= start:
            yield make_pair_batch(preference.rows, pair_ids, tokens_per_micro_batch)


def make_pair_batch(rows: Sequence[Rendered], pair_ids: Sequence[int], budget: int) -> Batch:
    """One step's pairs as micro-batches; `rows` holds each pair's two answers one after the other."""
    pair_ids = sorted(set(pair_ids))
    cuts, current, num_tokens = list[list[int]](), list[int](), 0
    for pair_id in pair_ids:
        pair = [2 * pair_id, 2 * pair_id + 1]
        more = sum(len(rows[i].ids) for i in pair)
        if current and num_tokens + more > budget:
            cuts.append(current)
            current, num_tokens = [], 0
        current, num_tokens = current + pair, num_tokens + more
    micro_batches = tuple(flatten(rows, group_rows(rows, row_ids)) for row_ids in [*cuts, current])
    return Batch(
        micro_batches=micro_batches,
        num_supervised=sum(len(m.targets) for m in micro_batches),
        num_tokens=sum(m.num_row_tokens for m in micro_batches),
        num_rows=2 * len(pair_ids),
    )
