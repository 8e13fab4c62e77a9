"""The forward pass of inference: a base's decoder as the few products it has or, where its form is unknown here, as transformers runs it.

`FusedDecoder` covers decoders of Llama's form (with Gemma's norms and Qwen's biases): one packed product for q, k and v, one for gate and
up, the step's adapters added to each. It is taken only if it answers as the base itself does; nothing here names an architecture.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorimer.inference.batched_lora import BatchedLoRA, Group, group_of
from lorimer.inference.kernels import DTYPES, MAX_HEAD_DIM, Kernels, load_kernels
from lorimer.inference.kv_cache import CachedSegments
from lorimer.inference.norm import Norm
from lorimer.model.attention import AttentionOptions, PackedSegments, Segments, whole
from lorimer.model.base import Base
from lorimer.model.lora import LoRALinear
from lorimer.model.mlp import Activation, GatedMLP
from lorimer.model.norm import RMSNorm
from lorimer.model.packed import PackedLinear

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One decoder layer's products and what stands between them."""

    index: int
    before_attention: Norm
    qkv: PackedLinear
    qkv_group: Group
    query_norm: Norm | None
    key_norm: Norm | None
    out: PackedLinear
    out_group: Group
    after_attention: Norm | None
    before_mlp: Norm
    gate_up: PackedLinear
    gate_up_group: Group
    activation: Activation
    down: PackedLinear
    down_group: Group
    after_mlp: Norm | None
    head_dim: int
    options: AttentionOptions
    rope: str | None
    """Which of the decoder's rotary embeddings, where it has several."""


class FusedDecoder:
    """A decoder of Llama's form."""

    def __init__(self, base: Base, kernels: Kernels | None = None) -> None:
        self.kernels = kernels
        """Compiled, for the steps that only decode."""
        self.embed = base.model.get_input_embeddings()
        self.rotary = base.decoder.rotary_emb
        self.layers = [_read_layer(base, module, index, kernels) for index, module in enumerate(base.decoder_layers)]
        self.norm = _read_norm(base.decoder.norm, kernels)
        self.ropes = {layer.rope for layer in self.layers}
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
        for layer in self.layers:
            mixed = self._attend(layer, layer.before_attention(hidden), turns[layer.rope], segments, lora)
            hidden = hidden + (mixed if layer.after_attention is None else layer.after_attention(mixed))
            mixed = self._feed_forward(layer, layer.before_mlp(hidden), lora)
            hidden = hidden + (mixed if layer.after_mlp is None else layer.after_mlp(mixed))
        return self.norm(hidden)

    def dense_weight(self, name: str) -> Tensor:
        """See `Decoder.dense_weight`."""
        packed, group = self.places[name]
        return packed.dense().split_with_sizes(list(group.out_features))[group.names.index(name)]

    def _turns(self, hidden: Tensor, positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        """cos and sin (T, 1, D) of each token's place, the first half of sin negated: x turned is x cos + swapped(x) sin."""
        arguments = (hidden[None], positions[None]) if kind is None else (hidden[None], positions[None], kind)
        cos, sin = (part[0][:, None] for part in self.rotary(*arguments))
        half = sin.shape[-1] // 2
        return cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)

    def _attend(self, layer: Layer, x: Tensor, turn: tuple[Tensor, Tensor], segments: Segments, lora: BatchedLoRA) -> Tensor:
        outputs = lora.add(layer.qkv_group, x, layer.qkv.parts(x))
        query, key, value = (part.view(len(x), -1, layer.head_dim) for part in outputs)
        if isinstance(segments, CachedSegments) and segments.decoded is not None:
            pools = segments.cache.pools(layer.index, key, value)
            norms = layer.query_norm, layer.key_norm
            mixed = segments.decoded.attend(query, key, value, turn, norms, pools, layer.options)
            return lora.add(layer.out_group, mixed, [layer.out(mixed)])[0]
        query = query if layer.query_norm is None else layer.query_norm(query)
        key = key if layer.key_norm is None else layer.key_norm(key)
        mixed = segments.attend(layer.index, _turned(query, *turn), _turned(key, *turn), value, layer.options).flatten(1)
        return lora.add(layer.out_group, mixed, [layer.out(mixed)])[0]

    def _feed_forward(self, layer: Layer, x: Tensor, lora: BatchedLoRA) -> Tensor:
        gate, up = lora.add(layer.gate_up_group, x, layer.gate_up.parts(x))
        middle = layer.activation.forward(gate).mul_(up)
        return lora.add(layer.down_group, middle, [layer.down(middle)])[0]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (T, H, D) -> (T, H, D); one of fewer places leaves the rest of a head as it is (Su et al. 2021, arXiv:2104.09864)."""
    half = cos.shape[-1] // 2
    turned = x[..., : 2 * half] * cos
    turned[..., :half].addcmul_(x[..., half : 2 * half], sin[..., :half])
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned if x.shape[-1] == 2 * half else torch.cat([turned, x[..., 2 * half :]], -1)


class _UnknownFormError(Exception):
    """The base is not of this form; says what was met."""


def _read_norm(module: nn.Module, kernels: Kernels | None) -> Norm:
    if not isinstance(module, RMSNorm):
        raise _UnknownFormError(f"a norm of type {type(module).__name__}")
    return Norm((module.weight.float() + module.offset).detach(), module.eps, kernels)


def _read_layer(base: Base, module: nn.Module, index: int, kernels: Kernels | None) -> Layer:
    """The parts of a transformers decoder layer, by the names its authors share."""
    attention, mlp = getattr(module, "self_attn", None), getattr(module, "mlp", None)
    parts = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    linears = [part for part in parts if isinstance(part, LoRALinear)]
    if not isinstance(mlp, GatedMLP) or len(linears) != len(parts):
        raise _UnknownFormError(f"a decoder layer of type {type(module).__name__}")
    assert attention is not None
    query, key, value, out = linears
    norms = {name: child for name, child in module.named_children() if "norm" in name}
    known = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    if {"input_layernorm", "post_attention_layernorm"} - set(norms) or set(norms) - set(known):
        raise _UnknownFormError(f"norms named {', '.join(norms)}")
    is_sandwich = "pre_feedforward_layernorm" in norms
    config = base.model.config.get_text_config()
    window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    head_dim = int(attention.head_dim)
    return Layer(
        index=index,
        before_attention=_read_norm(norms["input_layernorm"], kernels),
        qkv=_pack(query, key, value),
        qkv_group=group_of(base.layers, query.name, key.name, value.name),
        query_norm=_read_norm(attention.q_norm, kernels) if hasattr(attention, "q_norm") else None,
        key_norm=_read_norm(attention.k_norm, kernels) if hasattr(attention, "k_norm") else None,
        out=_pack(out),
        out_group=group_of(base.layers, out.name),
        after_attention=_read_norm(norms["post_attention_layernorm"], kernels) if is_sandwich else None,
        before_mlp=_read_norm(norms["pre_feedforward_layernorm" if is_sandwich else "post_attention_layernorm"], kernels),
        gate_up=_pack(mlp.gate_proj, mlp.up_proj),
        gate_up_group=group_of(base.layers, mlp.gate_proj.name, mlp.up_proj.name),
        activation=mlp.activation,
        down=_pack(mlp.down_proj),
        down_group=group_of(base.layers, mlp.down_proj.name),
        after_mlp=_read_norm(norms["post_feedforward_layernorm"], kernels) if "post_feedforward_layernorm" in norms else None,
        head_dim=head_dim,
        options=AttentionOptions(
            scaling=float(getattr(attention, "scaling", head_dim**-0.5)),
            sliding_window=window,
            softcap=getattr(attention, "attn_logit_softcapping", None),
        ),
        rope=getattr(attention, "layer_type", None) if hasattr(base.decoder.rotary_emb, "layer_types") else None,
    )


def _pack(*layers: LoRALinear) -> PackedLinear:
    return PackedLinear([layer.dense_weight() for layer in layers], [layer.bias for layer in layers])


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
            fused.kernels = None
        differs = _difference(base, fused, plain)
    except (_UnknownFormError, AttributeError, TypeError, RuntimeError) as exc:
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
