"""Shapes of bases, without their weights: enough to plan for a base that is not here.

The two that are shipped hold the published sizes of Meta Llama 3 ("The Llama 3 Herd of Models", Grattafiori et al. 2024,
arXiv:2407.21783, table 3, and the context length of its first release).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from lorimer.errors import ConfigError, NotFoundError
from lorimer.model.lora import LoRAConfig

FOLDER = Path(__file__).parent / "configs"
SHIPPED_SHAPES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a base is made of."""

    linears: Mapping[str, tuple[int, int]]
    """(in, out) of every linear layer but the head, by full name."""
    num_parameters: int
    """A tied head counted once."""
    vocabulary_len: int
    hidden_len: int
    num_layers: int

    @property
    def num_linear(self) -> int:
        """Weights in the linear layers."""
        return sum(i * o for i, o in self.linears.values())

    def num_trained(self, lora: LoRAConfig) -> int:
        """Numbers such an adapter learns."""
        low_rank = sum(lora.rank_of(name) * sum(self.linears[name]) for name in lora.target_modules)
        return low_rank + (sum(self.linears[name][1] for name in lora.target_modules) if lora.kind == "dora" else 0)


def find_shape(name: str) -> PreTrainedConfig:
    """The configuration of a base's language model: shipped (`llama-3-8b`), a folder with a `config.json`, or such a file.

    Raises:
        NotFoundError: if there is none of that name; the message lists what there is.
        ConfigError: if the file is not the configuration of a causal language model transformers knows.
    """
    path = _find_file(name)
    value = _read(path)
    kind = value.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ConfigError(f"{str(path)!r} has model_type {kind!r}, which this version of transformers does not know")
    try:
        config = CONFIG_MAPPING[kind].from_dict(value).get_text_config()
    except (StrictDataclassError, TypeError, ValueError, AttributeError) as exc:
        raise ConfigError(f"{str(path)!r} is not a valid {kind!r} configuration: {' '.join(str(exc).split())}") from exc
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(f"{str(path)!r} describes a {kind!r} model, which is no causal language model")
    return config


def sizes_of(config: PreTrainedConfig) -> Sizes:
    """Names and shapes of a base's layers.

    Raises:
        ConfigError: if it is none of the dense decoders Lorimer adapts.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if any(parameter.ndim > 2 for parameter in model.parameters()):
        raise ConfigError(f"a {config.model_type!r} base is a mixture of experts or convolves: Lorimer plans for dense decoders only")
    head = model.get_output_embeddings()
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}
    if not linears:
        raise ConfigError(f"a {config.model_type!r} base has no linear layers but its head: there is nothing an adapter could change")
    return Sizes(
        linears={name: (linear.in_features, linear.out_features) for name, linear in linears.items()},
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary_len=head.weight.shape[0],
        hidden_len=head.weight.shape[1],
        num_layers=int(config.num_hidden_layers),
    )


def _find_file(name: str) -> Path:
    if name in SHIPPED_SHAPES:
        return FOLDER / f"{name}.json"
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if (path / "config.json").is_file():
            return path / "config.json"
        raise NotFoundError(f"folder {name!r} has no config.json: a base's shape is read from that file")
    near = get_close_matches(name, SHIPPED_SHAPES, n=1)
    shipped = ", ".join(SHIPPED_SHAPES)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {shipped}; or give a folder or file with a base's config.json"
    raise NotFoundError(f"no shape of a base is named {name!r}: {hint}")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{str(path)!r} cannot be read as JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ConfigError(f"{str(path)!r} holds {type(value).__name__}, not a base's configuration")
    return value
