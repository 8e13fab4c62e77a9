"""What training a base takes in memory and operations, from its configuration alone: no weights, no rows of data.

What a step keeps for its backward pass is counted, not estimated: the base's own model is built of tensors without data, our
layers are put in, and one forward pass through autograd shows every tensor it saves. Only as many decoder layers are built as
there are kinds of them, and a second of each kind, whose difference is exactly what one more such layer keeps.
"""

import copy
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lorimer.config import Quantisation
from lorimer.errors import EngineError
from lorimer.model.attention import IMPLEMENTATION, SHORT_SCORES, AttentionOptions, PackedSegments, PrefixGroup, whole
from lorimer.model.base import replace_linears
from lorimer.model.lora import AdapterRows, LoRAConfig, LoRALinear, Routing, initialise
from lorimer.model.mlp import GatedMLP, replace_gated_mlps
from lorimer.model.norm import replace_norms
from lorimer.model.shapes import Sizes, sizes_of
from lorimer.training.loss import BLOCK_BYTES, CHUNK_BYTES

Method = Literal["full", "lora", "qlora"]
QUANTISED_BITS: dict[Quantisation, float] = {"nf4": 4.5, "int8": 8.0}  # 4 bits and a float32 scale for every 64 (arXiv:2305.14314)
PROCESS_BYTES = 500_000_000  # an interpreter with torch, its kernels and threads, transformers and Lorimer: measured
TOKENIZER_BYTES_PER_ENTRY = 1_300  # of the vocabulary: measured on one of 262,144
HEAP_SHARE = 0.15  # of what a step takes and frees: gaps that the next blocks do not fit into; measured, up to 18%
NUM_BLOCKS_IN_FLIGHT = 3  # float32 logits of one softmax, what they are made into, and a comparison's worth of slack
NUM_STATES_IN_FLIGHT = 4  # last hidden states, the learned rows of them, and both gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedBytes:
    """What a forward pass keeps for its backward pass: exact for two or more rows of `row_len` tokens, one may need a little less."""

    row_len: int
    fixed: int
    """Whatever the number of rows: gains of norms, masks."""
    per_token: float
    per_score: float
    """For each pair of places in a row: attention probabilities, where rows are short enough to keep them."""

    def total(self, num_tokens: int, row_len: int) -> float:
        """With rows of another length: exact as long as attention treats both lengths alike."""
        return self.fixed + num_tokens * (self.per_token + self.per_score * row_len)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Where the memory of a training step goes."""

    num_parameters: int
    num_trained: int
    base_bytes: int
    adapter_bytes: int
    """Float32 masters; with PiSSA also where they began."""
    gradient_bytes: int
    optimizer_bytes: int
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


def count_saved_bytes(
    config: PreTrainedConfig, lora: LoRAConfig | None, groups: Sequence[PrefixGroup], *, dtype: torch.dtype = torch.bfloat16
) -> int:
    """Bytes that one forward pass over a micro-batch keeps, exactly; None trains the base itself.

    Raises:
        EngineError: if the base's model cannot be traced.
    """
    return _Tracing(config, lora, dtype).num_bytes(groups)


def saved_bytes(config: PreTrainedConfig, lora: LoRAConfig | None, *, row_len: int, dtype: torch.dtype = torch.bfloat16) -> SavedBytes:
    """The same as a formula, for rows of `row_len` tokens.

    Raises:
        EngineError: as `count_saved_bytes`.
    """
    tracing = _Tracing(config, lora, dtype)
    other_len = 2 * row_len if (row_len**2 > SHORT_SCORES) == (4 * row_len**2 > SHORT_SCORES) else row_len // 2  # treated alike
    two, three, other_two, other_three = (tracing.num_bytes(whole([n] * k)) for n in (row_len, other_len) for k in (2, 3))
    per_token, other_per_token = (three - two) / row_len, (other_three - other_two) / other_len
    per_score = round((per_token - other_per_token) / (row_len - other_len), 3) + 0.0
    return SavedBytes(row_len=row_len, fixed=3 * two - 2 * three, per_token=per_token - per_score * row_len, per_score=per_score)


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
        gradient_bytes=(element if lora is None else 4) * num_trained,
        optimizer_bytes=(12 if lora is None and element < 4 else 8) * num_trained,  # Adam's two moments; of weights in 16 bits a master
        saved=saved or saved_bytes(config, lora, row_len=row_len, dtype=dtype),
        state_bytes_per_token=element * sizes.hidden_len,
        num_layers=sizes.num_layers - _lowest_layer(lora),
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
    sizes, lowest = sizes_of(config), _lowest_layer(lora)
    below = sum(i * o for name, (i, o) in sizes.linears.items() if (_layer_of(name) or 0) < lowest)
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


class _Tracing:
    """A base of a few layers without data, and which differences between such bases make up the whole one."""

    def __init__(self, config: PreTrainedConfig, lora: LoRAConfig | None, dtype: torch.dtype) -> None:
        self.config, self.lora, self.dtype = config, lora, dtype
        self.first = _lowest_layer(lora)

    @cached_property
    def parts(self) -> "list[tuple[int, _Skeleton]]":
        """Skeletons, and how often each counts."""
        kinds = defaultdict[Any, list[int]](list)
        for layer in range(self.first + 1, self.config.num_hidden_layers):
            kinds[self._kind(layer)].append(layer)
        shown = [self.first, *(layers[0] for layers in kinds.values())]
        repeated = [layers for layers in kinds.values() if len(layers) > 1]
        more = [(len(layers) - 1, self._skeleton([*shown, layers[1]])) for layers in repeated]
        return [(1 - sum(count for count, _ in more), self._skeleton(shown)), *more]

    def num_bytes(self, groups: Sequence[PrefixGroup]) -> int:
        """Kept by the whole base for this micro-batch."""
        return sum(count * skeleton.num_bytes(groups) for count, skeleton in self.parts)

    def _kind(self, layer: int) -> Any:
        """Layers for which this is equal keep the same."""
        own = tuple(str(values[layer]) for values in _values_by_layer(self.config).values())
        if self.lora is None:
            return own
        names = [name for name in self.lora.target_modules if _layer_of(name) == layer]
        return own, tuple((_renumber(name, 0), self.lora.rank_of(name)) for name in names)

    def _skeleton(self, layers: list[int]) -> "_Skeleton":
        layers = sorted(layers)
        value = self.config.to_dict() | {key: [own[i] for i in layers] for key, own in _values_by_layer(self.config).items()}
        cut = type(self.config).from_dict(value | {"num_hidden_layers": len(layers)})
        return _Skeleton(cut, None if self.lora is None else _cut_adapter(self.lora, layers), self.dtype)


class _Skeleton:
    """A model of tensors that have shapes and no data, with the layers of `lorimer.model.base.Base`.

    Torch chooses kernels for it as for the CPU, which it would not for tensors on its meta device.
    """

    def __init__(self, config: PreTrainedConfig, lora: LoRAConfig | None, dtype: torch.dtype) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)  # norms and indices are real
        with self.mode, _explained(config):
            self.model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=IMPLEMENTATION)
        self.model.eval()
        self.routing = Routing()
        layers = replace_linears(self.model, self.routing)
        _replace_gated_mlps(self.model)
        _replace_norms(self.model)
        self.model.requires_grad_(lora is None)
        with self.mode:
            self.lora = None if lora is None else initialise(lora, layers, seed=0)

    def num_bytes(self, groups: Sequence[PrefixGroup]) -> int:
        """Kept for the backward pass, weights apart."""
        segments = _laid_out(groups)
        num_tokens = segments.num_tokens
        self.routing.rows = () if self.lora is None else (AdapterRows(start=0, stop=num_tokens, adapter=self.lora),)
        weights = [*self.model.parameters(), *(self.lora.parameters() if self.lora is not None else ())]
        with self.mode, _saved_storages() as saved, _explained(self.model.config):
            ids = torch.zeros(1, num_tokens, dtype=torch.long)
            self.model.get_decoder()(input_ids=ids, position_ids=ids, use_cache=False, segments=segments)
        for weight in weights:
            saved.pop(weight.untyped_storage()._cdata, None)
        return sum(storage.nbytes() for storage in saved.values())


@contextmanager
def _explained(config: PreTrainedConfig) -> Iterator[None]:
    """Turn whatever keeps a model from being traced into one sentence.

    Raises:
        EngineError: naming the kind of base and the reason.
    """
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.disabled = True  # it prints the traceback of what is raised anyway
    try:
        yield
    except (RuntimeError, TypeError, ValueError, KeyError) as exc:
        reason = " ".join(str(exc).split())[:200]
        raise EngineError(f"a {config.model_type!r} base cannot be traced without its weights: {reason}") from exc
    finally:
        logger.disabled = False


@contextmanager
def _saved_storages() -> Iterator[dict[int, torch.UntypedStorage]]:
    """The memory that autograd keeps for what runs within, each once; held, so that no identity is used twice."""
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def _laid_out(groups: Sequence[PrefixGroup]) -> PackedSegments:
    """Segments that know their places already: those follow from the lengths, and tensors without data cannot say them."""
    segments = PackedSegments(groups)
    rows = torch.zeros(segments.num_tokens, 1, 1)
    segments.attend(0, rows, rows, rows, AttentionOptions(scaling=1.0, sliding_window=None, softcap=None))
    return segments


def _replace_gated_mlps(model: nn.Module) -> None:
    """As `replace_gated_mlps`, which asks each block what it computes: here a copy of it answers that has a few weights with data."""
    for name, block in list(model.named_modules()):
        if not type(block).__name__.endswith("MLP") or not {"gate_proj", "up_proj", "down_proj"} <= dict(block.named_children()).keys():
            continue
        small = copy.copy(block)
        small._modules = dict(block._modules)
        for part, shape in (("gate_proj", (2, 3)), ("up_proj", (2, 3)), ("down_proj", (3, 2))):
            small._modules[part] = LoRALinear(nn.Linear(*shape, bias=False), part, Routing())
        holder = nn.Sequential(small)
        if replace_gated_mlps(holder):
            parent, _, child = name.rpartition(".")
            ours = GatedMLP(block.gate_proj, block.up_proj, block.down_proj, holder[0].activation)  # type: ignore[arg-type]
            setattr(model.get_submodule(parent), child, ours)


def _replace_norms(model: nn.Module) -> None:
    """As `replace_norms`, which asks each norm what it computes: they get weights with data, which are small."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if type(module).__name__.endswith("RMSNorm") and isinstance(weight, Tensor):
            module.weight = nn.Parameter(torch.linspace(0.5, 1.5, weight.numel(), dtype=weight.dtype))
    replace_norms(model)


def _values_by_layer(config: PreTrainedConfig) -> dict[str, Sequence[Any]]:
    """What the configuration says of each layer on its own, as the kinds of attention of a hybrid."""
    return {key: value for key, value in config.to_dict().items() if isinstance(value, list) and len(value) == config.num_hidden_layers}


def _cut_adapter(lora: LoRAConfig, layers: Sequence[int]) -> LoRAConfig:
    """The adapter's share of some layers, numbered as in a base that has no others."""
    places: dict[int | None, int] = {None: 0, **{layer: place for place, layer in enumerate(layers)}}
    kept = {name: _renumber(name, places[layer]) for name in lora.target_modules if (layer := _layer_of(name)) in places}
    return replace(lora, target_modules=tuple(kept.values()), ranks={new: lora.rank_of(old) for old, new in kept.items()})


def _lowest_layer(lora: LoRAConfig | None) -> int:
    """Below it nothing is kept; 0 when the base itself is trained."""
    return 0 if lora is None else min(_layer_of(name) or 0 for name in lora.target_modules)


def _layer_of(name: str) -> int | None:
    """The decoder layer a linear layer is in."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def _renumber(name: str, layer: int) -> str:
    return re.sub(r"\.\d+\.", f".{layer}.", name, count=1)
