"""Many adapters over one batch of tokens: what each adds to its own rows, layer group by layer group.

Rows that decode, and short prompts, are computed together, every adapter read once a step whatever the rows, as the grouped products of
Punica (Chen et al. 2023, arXiv:2310.18547) do on a GPU: by the slab (slab.py) or, where it could be compiled, by a loop made for few rows
(compiled_rows.py). Long prompts are ranges of one composition: two plain products each. A batch of the base alone does nothing at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from lorimer.errors import EngineError
from lorimer.inference.composition import Composition, alone
from lorimer.model.lora import LoRA, LoRALinear


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


class SharedStep(Protocol):
    """The ranges of one step that are computed together."""

    def add(self, group: Group, x: Tensor, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """See `BatchedLoRA.add`; other rows stay as they are."""
        ...


class SharedRows(Protocol):
    """A way of computing ranges of few rows together."""

    longest: int
    """Rows of a range beyond which products of its own are faster."""

    def begin(self, adapters: Mapping[str, LoRA], ranges: Sequence[RowRange]) -> SharedStep:
        """Prepare a step: its short ranges, which come first in the batch, and the adapters they go through, by digest."""
        ...

    def drop(self, digest: str) -> None:
        """Forget an adapter."""
        ...


class BatchedLoRA:
    """What the adapters of one step add. Ranges of few rows come first, so that they can share; without a way to, none does."""

    def __init__(self, shared: SharedRows | None, adapters: Mapping[str, LoRA], ranges: Sequence[RowRange]) -> None:
        self.adapters = adapters
        short = [] if shared is None else [one for one in ranges if one.num_rows <= shared.longest]
        assert list(ranges[: len(short)]) == short, "short ranges come first"
        self.long = [one for one in ranges[len(short) :] if one.composition.parts]
        wanted = {digest: adapters[digest] for one in short for digest in one.composition.digests}
        self.names = {name for lora in wanted.values() for name in lora.weights}
        self.step = shared.begin(wanted, short) if shared is not None and wanted else None
        self.magnitudes = _magnitudes(ranges, adapters)

    def add(self, group: Group, x: Tensor, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """x (T, in) and what each of the group's layers made of it (T, out) -> the same with the adapters; outputs may be overwritten."""
        if self.step is not None and not self.names.isdisjoint(group.names):
            outputs = self.step.add(group, x, outputs)
        for rows in self.long:
            self._add_long(group, rows, x[rows.start : rows.stop], outputs)
        for own, magnitudes in self.magnitudes:
            _scale_to_magnitude(group, magnitudes, own, outputs)
        return outputs

    @property
    def is_empty(self) -> bool:
        """Whether every row is the base's."""
        return self.step is None and not self.long

    def _add_long(self, group: Group, rows: RowRange, x: Tensor, outputs: Sequence[Tensor]) -> None:
        for name, y in zip(group.names, outputs, strict=True):
            for part in rows.composition.parts:
                if (weights := self.adapters[part.digest].weights.get(name)) is not None:
                    own = y[rows.start : rows.stop]
                    own.addmm_((weights.a @ x.T).T, weights.b.T, alpha=weights.scale * part.scale)


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
