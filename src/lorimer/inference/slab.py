"""The slab: the adapters of a batch stacked at their true rank, so that a few products of torch's serve all of them, on any device.

One product for every row with all adapters, a mask that leaves each row its own columns, one product back.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lorimer.inference.batched_lora import Group, RowRange
from lorimer.model.lora import LoRA
from lorimer.model.packed import PackedLinear, can_pack

STEPS_BEFORE_PACKING = 16
IDLE_LIMIT = 2  # a step may go through up to so many times the columns it needs before the view is made smaller


class SlabView:
    """The part of a slab that a step uses, as the products want it; made anew only when another adapter moves in.

    Packed (see model/packed.py) products of a few rows take half the time, but packing costs as much as a dozen steps: it is done
    once the same adapters have decoded for a while.
    """

    def __init__(self, slab: "Slab", num_columns: int) -> None:
        self.slab, self.num_columns, self.num_steps = slab, num_columns, 0
        self.a = {group: slab.a[group][:num_columns].view(-1, group.in_features) for group in slab.groups}  # (C P, in)
        self.b = {name: slab.b[name][:num_columns] for name in slab.b}  # (C, out)
        self.packed_a: dict[Group, PackedLinear] = {}
        self.packed_b: dict[str, Tensor] = {}

    def count_step(self) -> None:
        """Another step goes through it."""
        self.num_steps += 1
        if self.num_steps == STEPS_BEFORE_PACKING and self.b and can_pack(next(iter(self.b.values()))):
            self.packed_a = {group: PackedLinear([a], [None]) for group, a in self.a.items()}
            self.packed_b = {name: PackedLinear([b.T.contiguous()], [None]).weight for name, b in self.b.items()}

    def shrink(self, group: Group, x: Tensor) -> Tensor:
        """x (S, in) -> (S, C, P)."""
        product = self.packed_a.get(group)
        low: Tensor = F.linear(x, self.a[group]) if product is None else product(x)
        return low.view(len(x), self.num_columns, -1)

    def expand(self, name: str, low: Tensor, y: Tensor) -> Tensor:
        """low (S, C), y (S, out) -> y and what the adapters add to it; y may be overwritten."""
        packed = self.packed_b.get(name)
        if packed is None:
            return y.addmm_(low, self.b[name])
        summed: Tensor = torch.ops.mkldnn._linear_pointwise.binary(low, y, packed, None, "add")
        return summed


class Slab:
    """Room for the adapters that decode together. An adapter that was there and is not overwritten yet is found as it was."""

    def __init__(self, groups: Sequence[Group], *, dtype: torch.dtype, device: torch.device) -> None:
        self.groups, self.dtype, self.device = tuple(groups), dtype, device
        self.num_columns = 0
        self.a: dict[Group, Tensor] = {}  # (C, P, in): P layers in the group
        self.b: dict[str, Tensor] = {}  # (C, out), the adapter's scale in it
        self.columns: dict[str, tuple[int, int]] = {}  # by digest
        self._view: SlabView | None = None

    longest = 256

    def begin(self, adapters: Mapping[str, LoRA], ranges: Sequence[RowRange]) -> "SlabStep":
        """See `SharedRows.begin`."""
        view = self.put(adapters)
        return SlabStep(view, *_masks(self, view.num_columns, ranges), ranges[-1].stop)

    def put(self, adapters: Mapping[str, LoRA]) -> SlabView:
        """Make room for these adapters; returns the part of the slab that they reach to."""
        for digest, lora in adapters.items():
            if digest not in self.columns:
                self._place(digest, lora, adapters)
                self._view = None
        reach = max(self.columns[digest][1] for digest in adapters)
        if self._view is None or not reach <= self._view.num_columns <= IDLE_LIMIT * reach:
            self._view = SlabView(self, reach)
        self._view.count_step()
        return self._view

    def drop(self, digest: str) -> None:
        """See `SharedRows.drop`."""
        self.columns.pop(digest, None)

    def _place(self, digest: str, lora: LoRA, wanted: Mapping[str, LoRA]) -> None:
        """Write an adapter into the first gap that holds it, after the idle ones in its way are gone."""
        rank = widest_rank(lora)
        kept = sorted(place for other, place in self.columns.items() if other in wanted)
        start = 0
        for begin, end in kept:
            if begin - start >= rank:
                break
            start = end
        stop = start + rank
        for other in [other for other, (begin, end) in self.columns.items() if begin < stop and start < end]:
            del self.columns[other]
        if stop > self.num_columns:
            self._grow(stop)
        self.columns[digest] = start, stop
        for group in self.groups:
            a = self.a[group][start:stop].zero_()
            for at, name in enumerate(group.names):
                b = self.b[name][start:stop].zero_()
                if (weights := lora.weights.get(name)) is not None:
                    a[: len(weights.a), at] = weights.a
                    torch.mul(weights.b.T, weights.scale, out=b[: len(weights.a)])

    def _grow(self, num_columns: int) -> None:
        """Make the slab larger, what is in it kept."""
        size = 1 << max(6, (num_columns - 1).bit_length())
        for group in self.groups:
            self.a[group] = _grown(self.a.get(group), (size, len(group.names), group.in_features), self)
            for name, out in zip(group.names, group.out_features, strict=True):
                self.b[name] = _grown(self.b.get(name), (size, out), self)
        self.num_columns = size


class SlabStep:
    """One step's rows through the slab: product, mask, product."""

    def __init__(self, view: SlabView, is_own: Tensor, scales: Tensor | None, num_rows: int) -> None:
        self.view, self.is_own, self.scales, self.num_rows = view, is_own, scales, num_rows
        self.zero = torch.zeros((), dtype=view.slab.dtype, device=view.slab.device)

    def add(self, group: Group, x: Tensor, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """See `SharedStep.add`."""
        is_all = self.num_rows == len(x)
        low = self.view.shrink(group, x if is_all else x[: self.num_rows])  # (S, C, P)
        masked = low.new_empty(low.shape[2], low.shape[0], low.shape[1])  # (P, S, C)
        torch.where(self.is_own, low.permute(2, 0, 1), self.zero, out=masked)  # chosen, not multiplied: 0 * inf would be another's NaN
        if self.scales is not None:
            masked *= self.scales
        if is_all:
            return [self.view.expand(name, own, y) for name, own, y in zip(group.names, masked, outputs, strict=True)]
        for name, own, y in zip(group.names, masked, outputs, strict=True):
            y[: self.num_rows] = self.view.expand(name, own, y[: self.num_rows])
        return outputs


def _grown(old: Tensor | None, shape: tuple[int, ...], slab: Slab) -> Tensor:
    new = torch.zeros(shape, dtype=slab.dtype, device=slab.device)
    if old is not None:
        new[: len(old)] = old
    return new


def widest_rank(lora: LoRA) -> int:
    """Of its layers."""
    return max(len(weights.a) for weights in lora.weights.values())


def _masks(slab: Slab, num_columns: int, ranges: Sequence[RowRange]) -> tuple[Tensor, Tensor | None]:
    """(S, C): which columns are each row's own, and their scales; None where all are one."""
    scales = torch.zeros(len(ranges), num_columns)
    for row, one in enumerate(ranges):
        for part in one.composition.parts:
            begin, end = slab.columns[part.digest]
            scales[row, begin:end] += part.scale
    scales = scales.repeat_interleave(torch.tensor([one.num_rows for one in ranges]), 0)
    has_scales = any(part.scale != 1 for one in ranges for part in one.composition.parts)
    return (scales != 0).to(slab.device), scales.to(slab.device, slab.dtype) if has_scales else None
