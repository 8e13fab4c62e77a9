"""States of the layers below the lowest adapted one: frozen, so the same in every epoch, computed once and kept."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorimer.model.attention import PackedSegments
from lorimer.model.base import Base
from lorimer.model.chat import Rendered
from lorimer.training.batching import MicroBatch, make_batch
from lorimer.training.targets import layer_number


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenStates:
    """What goes into `layer`, for each row."""

    layer: int
    states: tuple[Tensor, ...]  # per row (n, h), in the base's precision

    def gather(self, micro: MicroBatch) -> Tensor:
        """(T, h) in the order of a micro-batch's stream."""
        pieces, row_ids = list[Tensor](), iter(micro.row_ids)
        for group in micro.groups:
            own = [self.states[next(row_ids)] for _ in group.suffix_lens]
            pieces += [own[0][: group.prefix_len], *(row[group.prefix_len :] for row in own)]
        return torch.cat(pieces)


def lowest_layer(target_modules: Iterable[str]) -> int:
    """The number of the lowest decoder layer that is adapted."""
    return min((number for name in target_modules if (number := layer_number(name)) is not None), default=0)


def num_state_bytes(base: Base, num_tokens: int) -> int:
    """What keeping the states of so many tokens takes."""
    return num_tokens * base.head.weight.shape[1] * base.head.weight.element_size()


@torch.inference_mode(False)
@torch.no_grad()
def keep_frozen_states(base: Base, layer: int, rows: Sequence[Rendered], tokens_per_micro_batch: int) -> FrozenStates:
    """Run all rows through the layers below `layer` once; the order is that of the rows, so a resumed run finds the same bytes."""
    states: dict[int, Tensor] = {}
    for micro in make_batch(rows, range(len(rows)), tokens_per_micro_batch, share_prefixes=False).micro_batches:
        found = base.states_below(
            layer, micro.ids.to(base.device), micro.positions.to(base.device), PackedSegments(micro.groups, base.device)
        )
        lengths = [length for group in micro.groups for length in group.suffix_lens]
        states |= {row_id: own.clone().cpu() for row_id, own in zip(micro.row_ids, torch.split(found, lengths), strict=True)}
    return FrozenStates(layer=layer, states=tuple(states[i] for i in range(len(rows))))
