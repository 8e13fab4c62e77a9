"""Many adapters over one batch of tokens: what each adds to its own rows, in a few products for all of them.

Rows that decode, and short prompts, go through a slab: the adapters of the batch stacked at their true rank, one product for every row with
all of them, a mask that leaves each row its own columns, one product back. Every adapter is read once a step whatever the rows, as the
grouped products of Punica (Chen et al. 2023, arXiv:2310.18547) do on a GPU. Long prompts are ranges of one composition: two plain products
each. A batch of the base alone does nothing at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lorimer.errors import EngineError
from lorimer.inference.composition import Composition, alone
from lorimer.model.lora import LoRA, LoRALinear
from lorimer.model.packed import PackedLinear, can_pack

STEPS_BEFORE_PACKING = 16
LONG_RANGE = 256  # rows from which on two products of one's own adapter are faster than the shared ones with all adapters
IDLE_LIMIT = 2  # a step may go through up to so many times the columns it needs before the view is made smaller


@dataclass(frozen=True, slots=True)
class Group:
    """Adapted layers that read the same input, as the decoder computes them together."""

    names: tuple[str, ...]
    in_features: int
    out_features: tuple[int, ...]
    biases: tuple[Tensor | None, ...] = field(compare=False)


def group_of(layers: Mapping[str, LoRALinear], *names: str) -> Group:
    """The group of layers of these full names."""
    own = [layers[name] for name in names]
    return Group(tuple(names), own[0].in_features, tuple(layer.out_features for layer in own), tuple(layer.bias for layer in own))


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
        """Forget an adapter."""
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


def _grown(old: Tensor | None, shape: tuple[int, ...], slab: Slab) -> Tensor:
    new = torch.zeros(shape, dtype=slab.dtype, device=slab.device)
    if old is not None:
        new[: len(old)] = old
    return new


def widest_rank(lora: LoRA) -> int:
    """Of its layers."""
    return max(len(weights.a) for weights in lora.weights.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRange:
    """Rows of a step that go through one composition."""

    start: int
    stop: int
    composition: Composition

    @property
    def num_rows(self) -> int:
        """Tokens in it."""
        return self.stop - self.start


class BatchedLoRA:
    """What the adapters of one step add, layer group by layer group. Ranges of few rows come first and share the slab."""

    def __init__(self, slab: Slab, adapters: Mapping[str, LoRA], ranges: Sequence[RowRange]) -> None:
        self.adapters = adapters
        short = [one for one in ranges if one.num_rows <= LONG_RANGE]
        assert list(ranges[: len(short)]) == short, "short ranges come first"
        self.long = [one for one in ranges[len(short) :] if one.composition.parts]
        shared = {digest: adapters[digest] for one in short for digest in one.composition.digests}
        self.num_shared = short[-1].stop if shared else 0  # rows that go through the slab
        self.names = {name for lora in shared.values() for name in lora.weights}
        self.view = slab.put(shared) if shared else None
        self.mask = None if self.view is None else _mask(slab, self.view.num_columns, short)
        self.magnitudes = _magnitudes(ranges, adapters)

    @property
    def is_empty(self) -> bool:
        """Whether every row is the base's."""
        return self.view is None and not self.long

    def add(self, group: Group, x: Tensor, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """x (T, in) and what each of the group's layers made of it (T, out) -> the same with the adapters; outputs may be overwritten."""
        if self.view is not None and not self.names.isdisjoint(group.names):
            outputs = self._add_shared(group, self.view, x, outputs)
        for rows in self.long:
            self._add_long(group, rows, x[rows.start : rows.stop], outputs)
        for own, magnitudes in self.magnitudes:
            _scale_to_magnitude(group, magnitudes, own, outputs)
        return outputs

    def _add_shared(self, group: Group, view: SlabView, x: Tensor, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        is_all = self.num_shared == len(x)
        assert self.mask is not None
        low = view.shrink(group, x if is_all else x[: self.num_shared])  # (S, C, P)
        masked = torch.mul(low.permute(2, 0, 1), self.mask, out=low.new_empty(low.shape[2], low.shape[0], low.shape[1]))  # (P, S, C)
        if is_all:
            return [view.expand(name, own, y) for name, own, y in zip(group.names, masked, outputs, strict=True)]
        for name, own, y in zip(group.names, masked, outputs, strict=True):
            y[: self.num_shared] = view.expand(name, own, y[: self.num_shared])
        return outputs

    def _add_long(self, group: Group, rows: RowRange, x: Tensor, outputs: Sequence[Tensor]) -> None:
        for name, y in zip(group.names, outputs, strict=True):
            for part in rows.composition.parts:
                if (weights := self.adapters[part.digest].weights.get(name)) is not None:
                    own = y[rows.start : rows.stop]
                    own.addmm_((weights.a @ x.T).T, weights.b.T, alpha=weights.scale * part.scale)


def _mask(slab: Slab, num_columns: int, ranges: Sequence[RowRange]) -> Tensor:
    """(S, C): the scale of each row's own columns, zero in all others."""
    mask = torch.zeros(len(ranges), num_columns)
    for row, one in enumerate(ranges):
        for part in one.composition.parts:
            begin, end = slab.columns[part.digest]
            mask[row, begin:end] += part.scale
    return mask.repeat_interleave(torch.tensor([one.num_rows for one in ranges]), 0).to(slab.device, slab.dtype)


Magnitudes = Mapping[str, Tensor]


def _magnitudes(ranges: Sequence[RowRange], adapters: Mapping[str, LoRA]) -> list[tuple[slice, Magnitudes]]:
    """The rows whose outputs DoRA scales, each with its adapter's magnitudes by layer."""
    found = list[tuple[slice, Magnitudes]]()
    for one in ranges:
        for digest in one.composition.digests:
            own = {name: w.magnitude for name, w in adapters[digest].weights.items() if w.magnitude is not None}
            if own and one.composition != alone(digest):
                raise EngineError("a DoRA adapter answers alone and whole: its magnitudes do not add to another's change")
            if own:
                found.append((slice(one.start, one.stop), own))
    return found


def _scale_to_magnitude(group: Group, magnitudes: Magnitudes, rows: slice, outputs: Sequence[Tensor]) -> None:
    """Scale the columns of some rows of each output (T, out); a bias is not part of what DoRA scales."""
    for name, bias, y in zip(group.names, group.biases, outputs, strict=True):
        if (magnitude := magnitudes.get(name)) is not None:
            own = y[rows] if bias is None else y[rows] - bias
            scaled = own * magnitude.to(y.dtype)
            y[rows] = scaled if bias is None else scaled + bias
