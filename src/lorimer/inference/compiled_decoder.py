"""A whole step of few rows, those that decode and short prompts, in one compiled call (decode.c): what it reads, and what a step adds.

It is made only of what `FusedDecoder` has, reads the weights where oneDNN has packed them, and is taken only if every one of its products
is the packed product's.
"""

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import Structure, c_float, c_int64, c_void_p

import torch
from torch import Tensor

from lorimer.inference.batched_lora import BatchedLoRA, Group
from lorimer.inference.blocks import BLOCK_LEN
from lorimer.inference.compiled_product import MAX_ROWS, Product, is_read_right, product_of
from lorimer.inference.compiled_rows import CompiledStep
from lorimer.inference.kernels import MAX_LAYERS, Attention, Heads, Kernels, LayerGroup
from lorimer.inference.kv_cache import CachedSegments, KVCache
from lorimer.inference.layers import Layer
from lorimer.inference.norm import Norm
from lorimer.model.mlp import GELU_TANH, SILU

MAX_TURNINGS = 4  # kinds of rotary embedding in one decoder
PHASES = 9  # of a layer, between which threads meet
LINE = 16  # integers of a cache line


class _Layer(Structure):
    _fields_ = (
        *((name, Product) for name in ("qkv", "out", "gate_up", "down")),
        *((f"{name}_group", LayerGroup) for name in ("qkv", "out", "gate_up", "down")),
        *((name, c_void_p) for name in ("after_attention", "before_mlp", "after_mlp", "next")),
        *((f"{name}_eps", c_float) for name in ("after_attention", "before_mlp", "after_mlp", "next")),
        ("attention", Attention),
        ("turning", c_int64),
        ("is_silu", c_int64),
    )


class _Step(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("layers", "adapted", "first_parts", "omp", "tables", "lens")),
        ("cos", c_void_p * MAX_TURNINGS),
        ("sin", c_void_p * MAX_TURNINGS),
        *((name, c_void_p) for name in ("hidden", "x", "qkv", "mixed", "gate_up", "middle", "y", "scores", "places", "counters")),
        *((name, c_int64) for name in ("num_layers", "num_rows", "width", "max_blocks", "max_len", "num_threads")),
    )


class CompiledDecoder:
    """The layers of a fused decoder, as decode.c reads them."""

    def __init__(self, kernels: Kernels, layers: Sequence[Layer], last: Norm, ropes: Sequence[str | None]) -> None:
        self.kernels, self.layers, self.ropes = kernels, layers, tuple(ropes)
        norms_after = (*(layer.before_attention for layer in layers[1:]), last)
        self.places: dict[Group, int] = {}
        for layer in layers:
            for group in (layer.qkv_group, layer.out_group, layer.gate_up_group, layer.down_group):
                self.places[group] = sum(len(other.names) for other in self.places)
        self.plan = (_Layer * len(layers))(*(self._lay_out(layer, after) for layer, after in zip(layers, norms_after, strict=True)))
        widths = {  # of the widest layer: not every decoder has all alike
            "qkv": max(sum(layer.qkv.out_features) for layer in layers),
            "mixed": max(layer.out_group.in_features for layer in layers),
            "gate_up": max(sum(layer.gate_up.out_features) for layer in layers),
            "middle": max(layer.down_group.in_features for layer in layers),
            "y": max(layer.qkv_group.in_features for layer in layers),
        }
        self.room = {name: torch.empty(MAX_ROWS, width, dtype=torch.bfloat16) for name, width in widths.items()}
        self.counters = torch.empty(len(layers) * PHASES * 2 * LINE, dtype=torch.int32)
        self.cache: KVCache | None = None

    def fits(self, segments: CachedSegments, lora: BatchedLoRA, num_rows: int) -> bool:
        """Whether this step is one for it."""
        is_known = lora.step is None or isinstance(lora.step, CompiledStep)
        return segments.few is not None and is_known and not lora.long and not lora.magnitudes and num_rows <= MAX_ROWS

    def run(
        self, hidden: Tensor, x: Tensor, turns: Mapping[str | None, tuple[Tensor, Tensor]], segments: CachedSegments, lora: BatchedLoRA
    ) -> Tensor:
        """hidden (S, h), embeddings, and x, their first norm; both are overwritten -> the norm of the last hidden states (S, h)."""
        if self.cache is not segments.cache:
            self._take_pools(segments.cache)
        few, kernels = segments.few, self.kernels
        assert few is not None, "`fits` has said so"
        cos, sin = ([turns[rope][part].data_ptr() for rope in self.ropes] for part in (0, 1))
        step = _Step(
            layers=ctypes.addressof(self.plan),
            omp=None if kernels.omp is None else ctypes.addressof(kernels.omp),
            tables=few.tables.data_ptr(),
            lens=few.lens.data_ptr(),
            cos=(c_void_p * MAX_TURNINGS)(*cos),
            sin=(c_void_p * MAX_TURNINGS)(*sin),
            hidden=hidden.data_ptr(),
            x=x.data_ptr(),
            **{name: tensor.data_ptr() for name, tensor in self.room.items()},
            scores=few.call.scores,
            places=few.call.places,
            counters=self.counters.data_ptr(),
            num_layers=len(self.plan),
            num_rows=len(hidden),
            width=hidden.shape[1],
            max_blocks=few.call.max_blocks,
            max_len=few.call.max_len,
            num_threads=kernels.num_threads,
        )
        if isinstance(lora.step, CompiledStep):
            first_parts = lora.step.first_parts(len(hidden))
            step.adapted, step.first_parts = ctypes.addressof(lora.step.adapted), first_parts.data_ptr()
        kernels.decode(step)
        return x

    def _lay_out(self, layer: Layer, after: Norm) -> _Layer:
        options, num_heads = layer.options, layer.qkv.out_features[0] // layer.head_dim
        return _Layer(
            qkv=product_of(layer.qkv),
            out=product_of(layer.out),
            gate_up=product_of(layer.gate_up),
            down=product_of(layer.down),
            qkv_group=self._group(layer.qkv_group),
            out_group=self._group(layer.out_group),
            gate_up_group=self._group(layer.gate_up_group),
            down_group=self._group(layer.down_group),
            **_norm("after_attention", layer.after_attention),
            **_norm("before_mlp", layer.before_mlp),
            **_norm("after_mlp", layer.after_mlp),
            **_norm("next", after),
            attention=Attention(
                query=_heads(layer.query_norm),
                key=_heads(layer.key_norm),
                num_heads=num_heads,
                num_groups=layer.qkv.out_features[1] // layer.head_dim,
                head_dim=layer.head_dim,
                block_len=BLOCK_LEN,
                window=options.sliding_window or 0,
                scaling=options.scaling,
                softcap=options.softcap or 0.0,
                is_bf16=1,
            ),
            turning=self.ropes.index(layer.rope),
            is_silu=layer.activation is SILU,
        )

    def _group(self, group: Group) -> LayerGroup:
        return LayerGroup(self.places[group], len(group.names), group.in_features, (c_int64 * MAX_LAYERS)(*group.out_features))

    def _take_pools(self, cache: KVCache) -> None:
        for own, layer in zip(self.plan, self.layers, strict=True):
            key = torch.empty(1, own.attention.num_groups, layer.head_dim, dtype=torch.bfloat16)
            keys, values = cache.pools(layer.index, key, key)
            own.attention.keys, own.attention.values, own.attention.group_stride = keys.data_ptr(), values.data_ptr(), keys.stride(0)
        self.cache = cache


def compiled_decoder(
    kernels: Kernels | None, layers: Sequence[Layer], last: Norm, turned: Mapping[str | None, int]
) -> CompiledDecoder | None:
    """For these layers, where the processor has what it needs and its products are those of the packed weights; `turned` has the places of
    a head that each kind of rotary embedding turns.
    """
    if kernels is None or not kernels.can_decode or len(turned) > MAX_TURNINGS:
        return None
    for layer in layers:
        products = (layer.qkv, layer.out, layer.gate_up, layer.down)
        if layer.activation not in (GELU_TANH, SILU) or not all(is_read_right(kernels, product) for product in products):
            return None
    made = CompiledDecoder(kernels, layers, last, tuple(turned))
    for own, layer in zip(made.plan, layers, strict=True):
        own.attention.num_turned = turned[layer.rope]
    return made


def _norm(name: str, norm: Norm | None) -> dict[str, int | float | None]:
    return {name: None if norm is None else norm.gain.data_ptr(), f"{name}_eps": 0.0 if norm is None else norm.eps}


def _heads(norm: Norm | None) -> Heads:
    return Heads(gain=None if norm is None else norm.gain.data_ptr(), eps=0.0 if norm is None else norm.eps)
