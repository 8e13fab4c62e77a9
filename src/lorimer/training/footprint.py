"""What training a base takes in memory and operations, from its configuration alone: no weights, no rows of data.

What a step keeps for its backward pass is counted in tracing.py; here it is one part of all that a run holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedConfig

from lorimer.config import Quantisation
from lorimer.model.attention import SHORT_SCORES
from lorimer.model.lora import LoRAConfig
from lorimer.model.shapes import Sizes, sizes_of
from lorimer.training.loss import BLOCK_BYTES, CHUNK_BYTES
from lorimer.training.tracing import SavedBytes, layer_of, lowest_layer, saved_bytes

Method = Literal["full", "lora", "qlora"]
QUANTISED_BITS: dict[Quantisation, float] = {"nf4": 4.5, "int8": 8.0}  # 4 bits and a float32 scale for every 64 (arXiv:2305.14314)
PROCESS_BYTES = 500_000_000  # an interpreter with torch, its kernels and threads, transformers and Lorimer: measured
TOKENIZER_BYTES_PER_ENTRY = 1_300  # of the vocabulary: measured on one of 262,144
HEAP_SHARE = 0.15  # of what a step takes and frees: gaps that the next blocks do not fit into; measured, up to 18%
NUM_BLOCKS_IN_FLIGHT = 3  # float32 logits of one softmax, what they are made into, and a comparison's worth of slack
NUM_STATES_IN_FLIGHT = 4  # last hidden states, the learned rows of them, and both gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Where the memory of a training step goes."""

    num_parameters: int
    num_trained: int
    base_bytes: int
    adapter_bytes: int
    """Float32 masters; with PiSSA also where they began."""
    gradient_bytes: int
    """Float32, whatever the base's precision."""
    optimizer_bytes: int
    """Adam's two moments; of a base that learns in 16 bits also its float32 masters."""
    saved: SavedBytes
    state_bytes_per_token: int
    """Hidden states between two layers."""
    num_layers: int
    """Decoder layers that keep something, from the lowest adapted one up."""
    head_bytes: int
    """Logits in flight, once enough tokens are learned to fill a chunk."""
    passing_bytes: int
    """What exists for a moment: a quantised layer's full weight, the head's gradient."""
    fixed_bytes: int
    """The process, its libraries, the tokenizer: measured."""

    @property
    def constant_bytes(self) -> int:
        """All that is there before a step and after it."""
        return self.base_bytes + self.adapter_bytes + self.gradient_bytes + self.optimizer_bytes + self.fixed_bytes

    def peak_bytes(self, num_tokens: int, row_len: int) -> float:
        """With so many tokens in a micro-batch, in rows of this length."""
        return self.peak_bytes_keeping(self.saved.total(num_tokens, row_len), num_tokens)

    def checkpointed_peak_bytes(self, num_tokens: int, row_len: int) -> float:
        """With each layer computed again in the backward pass: the states between layers, and all that one layer keeps."""
        states = self.num_layers * self.state_bytes_per_token * num_tokens
        return self.peak_bytes_keeping(states + self.saved.total(num_tokens, row_len) / self.num_layers, num_tokens)

    def peak_bytes_keeping(self, num_saved: float, num_tokens: int) -> float:
        """With so many bytes kept for the backward pass of so many tokens, as `count_saved_bytes` finds them for a given micro-batch."""
        states = NUM_STATES_IN_FLIGHT * self.state_bytes_per_token * num_tokens
        return self.constant_bytes + (1 + HEAP_SHARE) * (num_saved + states + self.head_bytes + self.passing_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Floating-point operations of a training step; over a machine's rate they are its time."""

    per_token: float
    """From the lowest adapted layer up, attention at the given row length included."""
    per_token_below: float
    """Frozen layers below it: forward only, and only once where their states are kept."""
    per_supervised_token: float
    """The head."""

    def total(self, num_tokens: float, num_supervised: float) -> float:
        """Of so many tokens, of which some are learned."""
        return (self.per_token + self.per_token_below) * num_tokens + self.per_supervised_token * num_supervised


def adapter_for(config: PreTrainedConfig, rank: int) -> LoRAConfig:
    """An adapter on all linear layers but the head."""
    return LoRAConfig(rank=rank, alpha=rank, target_modules=tuple(sizes_of(config).linears))


def compare_methods(
    config: PreTrainedConfig, *, rank: int, row_len: int, dtype: torch.dtype = torch.bfloat16
) -> Mapping[Method, Footprint]:
    """Full fine-tuning, LoRA on all linear layers, and the same over a base held in 4 bits.

    Raises:
        EngineError: as `count_saved_bytes`.
    """
    lora = adapter_for(config, rank)
    saved = saved_bytes(config, lora, row_len=row_len, dtype=dtype)
    return {
        "full": footprint(config, None, row_len=row_len, dtype=dtype),
        "lora": footprint(config, lora, row_len=row_len, dtype=dtype, saved=saved),
        "qlora": footprint(config, lora, row_len=row_len, dtype=dtype, saved=saved, quantise="nf4"),
    }


def footprint(
    config: PreTrainedConfig,
    lora: LoRAConfig | None,
    *,
    row_len: int,
    dtype: torch.dtype = torch.bfloat16,
    quantise: Quantisation | None = None,
    saved: SavedBytes | None = None,
) -> Footprint:
    """Of training an adapter, or with None the base itself; `saved` where it is known already.

    Raises:
        EngineError: as `count_saved_bytes`.
    """
    sizes, element = sizes_of(config), dtype.itemsize
    num_trained = sizes.num_parameters if lora is None else sizes.num_trained(lora)
    return Footprint(
        num_parameters=sizes.num_parameters,
        num_trained=num_trained,
        base_bytes=_base_bytes(sizes, element, quantise),
        adapter_bytes=0 if lora is None else (8 if lora.kind == "pissa" else 4) * num_trained,
        gradient_bytes=4 * num_trained,
        optimizer_bytes=(12 if lora is None and element < 4 else 8) * num_trained,
        saved=saved or saved_bytes(config, lora, row_len=row_len, dtype=dtype),
        state_bytes_per_token=element * sizes.hidden_len,
        num_layers=sizes.num_layers - lowest_layer(lora),
        head_bytes=CHUNK_BYTES + NUM_BLOCKS_IN_FLIGHT * BLOCK_BYTES,
        passing_bytes=_passing_bytes(sizes, element, is_full=lora is None, is_quantised=quantise is not None),
        fixed_bytes=PROCESS_BYTES + TOKENIZER_BYTES_PER_ENTRY * sizes.vocabulary_len,
    )


def _base_bytes(sizes: Sizes, element: int, quantise: Quantisation | None) -> int:
    if quantise is None:
        return element * sizes.num_parameters
    return int(QUANTISED_BITS[quantise] / 8 * sizes.num_linear) + element * (sizes.num_parameters - sizes.num_linear)


def _passing_bytes(sizes: Sizes, element: int, *, is_full: bool, is_quantised: bool) -> int:
    if is_full:
        return element * sizes.vocabulary_len * sizes.hidden_len
    return element * max(i * o for i, o in sizes.linears.values()) if is_quantised else 0


def flops(config: PreTrainedConfig, lora: LoRAConfig | None, *, row_len: int) -> Flops:
    """Operations a token: a product of n weights takes 2n forward, 2n for its inputs' gradient, 2n for its own where it learns."""
    sizes, lowest = sizes_of(config), lowest_layer(lora)
    below = sum(i * o for name, (i, o) in sizes.linears.items() if (layer_of(name) or 0) < lowest)
    above = sizes.num_linear - below
    forward, backward = _attention_flops(config, row_len)
    attention = sum(f + b for f, b in zip(forward[lowest:], backward[lowest:], strict=True))
    weights = 6.0 * above if lora is None else 4.0 * above + 6.0 * sizes.num_trained(lora)
    return Flops(
        per_token=weights + attention,
        per_token_below=2.0 * below + sum(forward[:lowest]),
        per_supervised_token=(6.0 if lora is None else 4.0) * sizes.vocabulary_len * sizes.hidden_len,
    )


def _attention_flops(config: PreTrainedConfig, row_len: int) -> tuple[list[float], list[float]]:
    """A token's operations in each layer's attention, forward and backward, as model/attention.py computes it.

    Two products forward and four backward; torch's kernel forms the scores a second time, and half of them where it knows that
    attention is causal. Short rows and windows come with a mask, and all scores are formed.
    """
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    is_short = row_len**2 <= SHORT_SCORES
    has_mask = [is_short or (kind == "sliding_attention" and window is not None and window < row_len) for kind in kinds]
    scores = [2.0 * width * row_len * (1.0 if masked else 0.5) for masked in has_mask]
    return [2 * s for s in scores], [(4 if is_short else 5) * s for s in scores]
