"""Adapters for the rows that decode, in one compiled call for each group of layers: the slab's work without its mask, packing and calls.

The slab goes through all adapters of the batch for every row; this goes through each row's own, where they lie.
"""

import ctypes
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from lorimer.inference.batched_lora import Group, RowRange
from lorimer.inference.compiled_product import MAX_ROWS
from lorimer.inference.kernels import BLOCK, DTYPES, MAX_LAYERS, Adapted, Call, Kernels, LayerGroup, Part, Weights, load_kernels
from lorimer.inference.slab import widest_rank
from lorimer.model.lora import LoRA


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Where an adapter's weights lie, layer by layer, and what keeps them there."""

    weights: "ctypes.Array[Weights]"
    tensors: tuple[Tensor, ...]
    rank: int


class CompiledRows:
    """The adapters that decode, by digest."""

    longest = MAX_ROWS

    def __init__(self, kernels: Kernels, groups: Sequence[Group], dtype: torch.dtype) -> None:
        self.kernels, self.dtype = kernels, dtype
        self.names = [name for group in groups for name in group.names]
        places = dict(zip(self.names, count(), strict=False))
        self.groups = {
            group: LayerGroup(
                places[group.names[0]], len(group.names), group.in_features, (ctypes.c_int64 * MAX_LAYERS)(*group.out_features)
            )
            for group in groups
        }
        self.tables: dict[str, Table] = {}

    def begin(self, adapters: Mapping[str, LoRA], ranges: Sequence[RowRange]) -> "CompiledStep":
        """See `SharedRows.begin`."""
        for digest, lora in adapters.items():
            if digest not in self.tables:
                self.tables[digest] = self._lay_out(lora)
        parts = [
            Part(ctypes.addressof(self.tables[part.digest].weights), row, part.scale)
            for one in ranges
            for row in range(one.start, one.stop)
            for part in one.composition.parts
        ]
        return CompiledStep(self, parts, max(self.tables[digest].rank for digest in adapters))

    def drop(self, digest: str) -> None:
        """See `SharedRows.drop`."""
        self.tables.pop(digest, None)

    def _lay_out(self, lora: LoRA) -> Table:
        weights, tensors = (Weights * len(self.names))(), list[Tensor]()
        for place, name in enumerate(self.names):
            if (own := lora.weights.get(name)) is not None:
                a, b = own.a.to(self.dtype).contiguous(), _blocks(own.b.to(self.dtype))
                weights[place] = Weights(a.data_ptr(), b.data_ptr(), len(a), own.scale)
                tensors += [a, b]
        return Table(weights=weights, tensors=tuple(tensors), rank=widest_rank(lora))


class CompiledStep:
    """One step's rows."""

    def __init__(self, rows: CompiledRows, parts: Sequence[Part], max_rank: int) -> None:
        self.rows = rows
        self.parts = (Part * len(parts))(*parts)
        self.rows_of_parts = [part.row for part in parts]
        self.low = torch.empty(MAX_LAYERS * len(parts) * max_rank)
        kernels, is_bf16 = rows.kernels, rows.dtype == torch.bfloat16
        self.adapted = Adapted(
            ctypes.addressof(self.parts), len(parts), max_rank, is_bf16, min(kernels.num_threads, len(parts)), self.low.data_ptr()
        )
        self.call = Call(adapted=ctypes.addressof(self.adapted), omp=None if kernels.omp is None else ctypes.addressof(kernels.omp))

    def first_parts(self, num_rows: int) -> Tensor:
        """Where each row's parts begin, and the last's end (num_rows + 1)."""
        return torch.tensor([bisect_left(self.rows_of_parts, row) for row in range(num_rows + 1)], dtype=torch.int32)

    def add(self, group: Group, x: Tensor, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """See `SharedStep.add`; x and outputs are contiguous but for their first dimension."""
        call = self.call
        call.group, call.x, call.x_stride = ctypes.addressof(self.rows.groups[group]), x.data_ptr(), x.stride(0)
        for place, y in enumerate(outputs):
            call.y[place], call.y_stride[place] = y.data_ptr(), y.stride(0)
        self.rows.kernels.add_adapters(call)
        return outputs


def compiled_rows(groups: Sequence[Group], *, dtype: torch.dtype, device: torch.device) -> CompiledRows | None:
    """For these layers, where the kernels compile for them."""
    if device.type != "cpu" or dtype not in DTYPES or max(len(group.names) for group in groups) > MAX_LAYERS:
        return None
    kernels = load_kernels()
    return None if kernels is None else CompiledRows(kernels, groups, dtype)


def _blocks(b: Tensor) -> Tensor:
    """(out, rank) -> (out / BLOCK, rank, BLOCK), the last block filled up with zeros."""
    padded = F.pad(b.T, (0, -len(b) % BLOCK))
    return padded.view(len(padded), -1, BLOCK).transpose(0, 1).contiguous()
