"""The decoder layers of Llama's form (with Gemma's norms and Qwen's biases), as inference runs them; nothing here names an architecture."""

from dataclasses import dataclass

from torch import nn

from lorimer.inference.batched_lora import Group, group_of
from lorimer.inference.kernels import Kernels
from lorimer.inference.norm import Norm
from lorimer.model.attention import AttentionOptions
from lorimer.model.base import Base
from lorimer.model.lora import LoRALinear
from lorimer.model.mlp import Activation, GatedMLP
from lorimer.model.norm import RMSNorm
from lorimer.model.packed import PackedLinear


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


class UnknownFormError(Exception):
    """The base is not of this form; says what was met."""


def read_norm(module: nn.Module, kernels: Kernels | None) -> Norm:
    if not isinstance(module, RMSNorm):
        raise UnknownFormError(f"a norm of type {type(module).__name__}")
    return Norm((module.weight.float() + module.offset).detach(), module.eps, kernels)


def read_layer(base: Base, module: nn.Module, index: int, kernels: Kernels | None) -> Layer:
    """The parts of a transformers decoder layer, by the names its authors share."""
    attention, mlp = getattr(module, "self_attn", None), getattr(module, "mlp", None)
    parts = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    linears = [part for part in parts if isinstance(part, LoRALinear)]
    if not isinstance(mlp, GatedMLP) or len(linears) != len(parts):
        raise UnknownFormError(f"a decoder layer of type {type(module).__name__}")
    assert attention is not None
    query, key, value, out = linears
    norms = {name: child for name, child in module.named_children() if "norm" in name}
    known = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    if {"input_layernorm", "post_attention_layernorm"} - set(norms) or set(norms) - set(known):
        raise UnknownFormError(f"norms named {', '.join(norms)}")
    is_sandwich = "pre_feedforward_layernorm" in norms
    config = base.model.config.get_text_config()
    window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    head_dim = int(attention.head_dim)
    return Layer(
        index=index,
        before_attention=read_norm(norms["input_layernorm"], kernels),
        qkv=_pack(query, key, value),
        qkv_group=group_of(base.layers, query.name, key.name, value.name),
        query_norm=read_norm(attention.q_norm, kernels) if hasattr(attention, "q_norm") else None,
        key_norm=read_norm(attention.k_norm, kernels) if hasattr(attention, "k_norm") else None,
        out=_pack(out),
        out_group=group_of(base.layers, out.name),
        after_attention=read_norm(norms["post_attention_layernorm"], kernels) if is_sandwich else None,
        before_mlp=read_norm(norms["pre_feedforward_layernorm" if is_sandwich else "post_attention_layernorm"], kernels),
        gate_up=_pack(mlp.gate_proj, mlp.up_proj),
        gate_up_group=group_of(base.layers, mlp.gate_proj.name, mlp.up_proj.name),
        activation=mlp.activation,
        down=_pack(mlp.down_proj),
        down_group=group_of(base.layers, mlp.down_proj.name),
        after_mlp=read_norm(norms["post_feedforward_layernorm"], kernels) if "post_feedforward_layernorm" in norms else None,
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
