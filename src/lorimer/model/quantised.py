"""A frozen weight held in 8 or 4 bits. It saves memory, never time: each product makes the full weight again and lets it go."""

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lorimer.config import Quantisation
from lorimer.errors import ConfigError

BLOCK_LEN = 64  # weights that share a scale in NF4 (Dettmers et al. 2023, arXiv:2305.14314)


def _is_of_use(record: logging.LogRecord) -> bool:
    """All but what bitsandbytes says when it is imported without the `kernels` package, which is for products in 4 bits: none is made here.

    PEFT imports it too, so this is not left to where our own imports are.
    """
    return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward from kernels-community")


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_of_use)


class QuantisedWeight(Protocol):
    """A weight in few bits."""

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        ...

    def dequantise(self) -> Tensor:
        """(out, in) in the base's precision."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Weight:
    """One scale an output row, symmetric."""

    values: Tensor  # (out, in) int8
    scales: Tensor  # (out, 1)

    @property
    def num_bytes(self) -> int:
        return self.values.numel() + self.scales.numel() * self.scales.element_size()

    def dequantise(self) -> Tensor:
        return self.values.to(self.scales.dtype).mul_(self.scales)


@dataclass(frozen=True, slots=True, kw_only=True)
class NF4Weight:
    """Four-bit normal floats by bitsandbytes."""

    values: Tensor  # packed, two to a byte
    state: Any  # bitsandbytes' QuantState: absolute maxima, code book, shape, precision

    @property
    def num_bytes(self) -> int:
        return int(self.values.numel() + self.state.absmax.numel() * self.state.absmax.element_size())

    def dequantise(self) -> Tensor:
        from bitsandbytes import functional

        weight: Tensor = functional.dequantize_4bit(self.values, self.state)
        return weight


def quantise(weight: Tensor, kind: Quantisation) -> QuantisedWeight:
    """weight (out, in) in few bits.

    Raises:
        ConfigError: if what 4 bits need is not installed.
    """
    if kind == "int8":
        scales = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        values = (weight.float() / scales).round_().to(torch.int8)
        return Int8Weight(values=values, scales=scales.to(weight.dtype))
    try:
        from bitsandbytes import functional
    except ImportError as exc:
        raise ConfigError("`quantise: nf4` needs bitsandbytes: pip install 'lorimer[quantised]'") from exc
    values, state = functional.quantize_4bit(weight.contiguous(), blocksize=BLOCK_LEN, quant_type="nf4")
    return NF4Weight(values=values, state=state)
