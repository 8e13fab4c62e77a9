"""The forward pass of inference: a base's decoder as the few products it has or, where its form is unknown here, as transformers runs it.

`FusedDecoder` covers decoders of Llama's form (with Gemma's norms and Qwen's biases): one packed product for q, k and v, one for gate and
up, the step's adapters added to each. It is taken only if it answers as the base itself does; nothing here names an architecture.
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lorimer.inference.batched_lora import BatchedLoRA, Group, group_of
from lorimer.inference.compiled_decoder import compiled_decoder
from lorimer.inference.kernels import DTYPES, MAX_HEAD_DIM, Kernels, load_kernels
from lorimer.inference.kv_cache import CachedSegments
from lorimer.inference.layers import Layer, UnknownFormError, read_layer, read_norm
from lorimer.inference.norm import FEW_ROWS, add_and_norm
from lorimer.model.attention import PackedSegments, Segments, whole
from lorimer.model.base import Base
from lorimer.model.mlp import GELU_TANH, SILU

logger = logging.getLogger(__name__)

NUM_PROBE_TOKENS = 12
MAX_ROUNDING = 6e-2  # of bfloat16 states after all layers: two right ways are 0.02 to 0.03 apart in Gemma, a wrong one by more than 0.5


class Decoder(Protocol):
    """From tokens to hidden states."""

    groups: tuple[Group, ...]
    """The layers that adapters may change, as they are computed."""

    def run(self, ids: Tensor, positions: Tensor, segments: Segments, lora: BatchedLoRA) -> Tensor:
        """ids and positions (T) of one flattened stream -> last hidden states (T, h)."""
        ...

    def dense_weight(self, name: str) -> Tensor:
        """(out, in) of one of the layers, as the base's files have it."""
        ...


class PlainDecoder:
    """Through transformers' own modules; any architecture."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.groups = tuple(group_of(base.layers, name) for name in base.layers)

    def run(self, ids: Tensor, positions: Tensor, segments: Segments, lora: BatchedLoRA) -> Tensor:
        """See `Decoder.run`."""
        base = self.base
        base.routing.change = None if lora.is_empty else self._adder(lora)
        try:
            return base.hidden_states(ids, positions, segments, ())
        finally:
            base.routing.change = None

    def dense_weight(self, name: str) -> Tensor:
        """See `Decoder.dense_weight`."""
        return self.base.layers[name].dense_weight()

    def _adder(self, lora: BatchedLoRA) -> Any:
        groups = {group.names[0]: group for group in self.groups}
        return lambda name, x, y: lora.add(groups[name], x, [y])[0]


class FusedDecoder:
    """A decoder of Llama's form."""

    def __init__(self, base: Base, kernels: Kernels | None = None) -> None:
        self.kernels = kernels
        """Compiled, for the steps of few rows."""
        self.embed = base.model.get_input_embeddings()
        self.rotary = base.decoder.rotary_emb
        self.layers = [read_layer(base, module, index, kernels) for index, module in enumerate(base.decoder_layers)]
        self.norms_after = (*(layer.before_attention for layer in self.layers[1:]), read_norm(base.decoder.norm, kernels))
        self.ropes = {layer.rope for layer in self.layers}
        self.compiled = compiled_decoder(kernels, self.layers, self.norms_after[-1], self._num_turned())
        """For steps of few rows, where it can be."""
        products = [
            part
            for layer in self.layers
            for part in (
                (layer.qkv, layer.qkv_group),
                (layer.out, layer.out_group),
                (layer.gate_up, layer.gate_up_group),
                (layer.down, layer.down_group),
            )
        ]
        self.groups = tuple(group for _, group in products)
        self.places = {name: (packed, group) for packed, group in products for name in group.names}

    def run(self, ids: Tensor, positions: Tensor, segments: Segments, lora: BatchedLoRA) -> Tensor:
        """See `Decoder.run`."""
        hidden: Tensor = self.embed(ids)  # (T, h)
        turns = {kind: self._turns(hidden, positions, kind) for kind in self.ropes}
        x = self.layers[0].before_attention(hidden)
        if self.compiled is not None and isinstance(segments, CachedSegments) and self.compiled.fits(segments, lora, len(ids)):
            return self.compiled.run(hidden, x, turns, segments, lora)
        for layer, norm_after in zip(self.layers, self.norms_after, strict=True):
            mixed = self._attend(layer, x, turns[layer.rope], segments, lora)
            hidden, x = add_and_norm(hidden, mixed, layer.after_attention, layer.before_mlp)
            mixed = self._feed_forward(layer, x, lora)
            hidden, x = add_and_norm(hidden, mixed, layer.after_mlp, norm_after)
        return x

    def dense_weight(self, name: str) -> Tensor:
        """See `Decoder.dense_weight`."""
        packed, group = self.places[name]
        return packed.dense().split_with_sizes(list(group.out_features))[group.names.index(name)]

    def _num_turned(self) -> dict[str | None, int]:
        """Places of a head that each kind of rotary embedding turns."""
        zero = torch.zeros(1, dtype=torch.int64, device=self.embed.weight.device)
        return {kind: self._turns(self.embed(zero), zero, kind)[0].shape[-1] for kind in self.ropes}

    def _turns(self, hidden: Tensor, positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        """cos and sin (T, 1, D) of each token's place, the first half of sin negated: x turned is x cos + swapped(x) sin."""
        arguments = (hidden[None], positions[None]) if kind is None else (hidden[None], positions[None], kind)
        cos, sin = (part[0][:, None] for part in self.rotary(*arguments))
        half = sin.shape[-1] // 2
        return cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)

    def _attend(self, layer: Layer, x: Tensor, turn: tuple[Tensor, Tensor], segments: Segments, lora: BatchedLoRA) -> Tensor:
        outputs = lora.add(layer.qkv_group, x, layer.qkv.parts(x))
        query, key, value = (part.view(len(x), -1, layer.head_dim) for part in outputs)
        if isinstance(segments, CachedSegments) and segments.few is not None:
            pools = segments.cache.pools(layer.index, key, value)
            norms = layer.query_norm, layer.key_norm
            mixed = segments.few.attend(query, key, value, turn, norms, pools, layer.options)
            return lora.add(layer.out_group, mixed, [layer.out(mixed)])[0]
        query = query if layer.query_norm is None else layer.query_norm(query)
        key = key if layer.key_norm is None else layer.key_norm(key)
        mixed = segments.attend(layer.index, _turned(query, *turn), _turned(key, *turn), value, layer.options).flatten(1)
        return lora.add(layer.out_group, mixed, [layer.out(mixed)])[0]

    def _feed_forward(self, layer: Layer, x: Tensor, lora: BatchedLoRA) -> Tensor:
        gate, up = lora.add(layer.gate_up_group, x, layer.gate_up.parts(x))
        if self.kernels is not None and layer.activation in (GELU_TANH, SILU) and len(x) <= FEW_ROWS:
            middle = self.kernels.gate(gate, up, is_silu=layer.activation is SILU)
        else:
            middle = layer.activation.forward(gate).mul_(up)
        return lora.add(layer.down_group, middle, [layer.down(middle)])[0]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (T, H, D) -> (T, H, D); one of fewer places leaves the rest of a head as it is (Su et al. 2021, arXiv:2104.09864)."""
    half = cos.shape[-1] // 2
    turned = x[..., : 2 * half] * cos
    turned[..., :half].addcmul_(x[..., half : 2 * half], sin[..., :half])
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned if x.shape[-1] == 2 * half else torch.cat([turned, x[..., 2 * half :]], -1)


class _NoLoRA:
    """Stands in where no adapter is asked for."""

    is_empty = True

    def add(self, group: Group, x: Tensor, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Nothing."""
        return outputs


@torch.inference_mode()
def make_decoder(base: Base, *, uses_kernels: bool = True) -> Decoder:
    """The fastest that answers as the base does."""
    plain = PlainDecoder(base)
    if base.quantisation is not None:
        return plain
    try:
        is_fit = uses_kernels and base.device.type == "cpu" and base.dtype in DTYPES
        fused = FusedDecoder(base, load_kernels() if is_fit else None)
        if max(layer.head_dim for layer in fused.layers) > MAX_HEAD_DIM:
            fused.kernels = fused.compiled = None
        differs = _difference(base, fused, plain)
    except (UnknownFormError, AttributeError, TypeError, RuntimeError) as exc:
        logger.info("base %s is served through its own modules: %s", base.name, exc)
        return plain
    if differs > (MAX_ROUNDING if base.dtype != torch.float32 else 1e-4):
        logger.info("base %s is served through its own modules: the fused decoder differs by %.3g", base.name, differs)
        return plain
    return fused


def _difference(base: Base, one: Decoder, other: Decoder) -> float:
    """How far two decoders' hidden states of a few tokens are apart, relative to how large they are; root mean squares."""
    ids = torch.arange(NUM_PROBE_TOKENS, device=base.device) % base.head.weight.shape[0]
    segments = PackedSegments(whole([NUM_PROBE_TOKENS]), base.device)
    found, wanted = (decoder.run(ids, torch.arange(len(ids), device=base.device), segments, _NoLoRA()).float() for decoder in (one, other))  # type: ignore[arg-type]
    return float((found - wanted).norm() / wanted.norm())
