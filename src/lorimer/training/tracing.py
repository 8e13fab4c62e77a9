"""What a step keeps for its backward pass, from a base's configuration alone: counted, not estimated.

The base's own model is built of tensors without data, our layers are put in, and one forward pass through autograd shows every tensor it
saves. Only as many decoder layers are built as there are kinds of them, and a second of each kind, whose difference is exactly what one
more such layer keeps.
"""

import copy
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lorimer.errors import EngineError
from lorimer.model.attention import IMPLEMENTATION, SHORT_SCORES, AttentionOptions, PackedSegments, PrefixGroup, whole
from lorimer.model.base import replace_linears
from lorimer.model.lora import AdapterRows, LoRAConfig, LoRALinear, Routing, initialise
from lorimer.model.mlp import GatedMLP, replace_gated_mlps
from lorimer.model.norm import replace_norms


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedBytes:
    """What a forward pass keeps for its backward pass: exact for two or more rows of `row_len` tokens, one may need a little less."""

    row_len: int
    fixed: int
    """Whatever the number of rows: gains of norms, masks of rows of `row_len`."""
    per_token: float
    per_score: float
    """For each pair of places in a row: attention probabilities, where rows are short enough to keep them."""

    def total(self, num_tokens: int, row_len: int) -> float:
        """With rows of another length: exact as long as attention treats both lengths alike."""
        return self.fixed + num_tokens * (self.per_token + self.per_score * row_len)


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


def lowest_layer(lora: LoRAConfig | None) -> int:
    """Below it nothing is kept; 0 when the base itself is trained."""
    return 0 if lora is None else min(layer_of(name) or 0 for name in lora.target_modules)


def layer_of(name: str) -> int | None:
    """The decoder layer a linear layer is in."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


class _Tracing:
    """A base of a few layers without data, and which differences between such bases make up the whole one."""

    def __init__(self, config: PreTrainedConfig, lora: LoRAConfig | None, dtype: torch.dtype) -> None:
        self.config, self.lora, self.dtype = config, lora, dtype
        self.first = lowest_layer(lora)

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
        names = [name for name in self.lora.target_modules if layer_of(name) == layer]
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
    kept = {name: _renumber(name, places[layer]) for name in lora.target_modules if (layer := layer_of(name)) in places}
    return replace(lora, target_modules=tuple(kept.values()), ranks={new: lora.rank_of(old) for old, new in kept.items()})


def _renumber(name: str, layer: int) -> str:
    return re.sub(r"\.\d+\.", f".{layer}.", name, count=1)
