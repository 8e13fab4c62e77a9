"""PEFT's `adapter_config.json`, as strangers may have written it: read, checked, and nothing in it ignored that would change answers."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorimer.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_RANK = 2048
"""Of a layer: twice what recipes may ask for, since PiSSA's adapters are saved at twice their rank."""
UNSUPPORTED = {
    "lora_bias": "biases in the adapter",
    "modules_to_save": "trained copies of base layers",
    "fan_in_fan_out": "transposed weights",
    "layer_replication": "base layers more than once",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "adapted parameters that are no layers",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal factors",
    "arrow_config": "a router in the adapter (Arrow)",
    "kasa_config": "singular values beside the factors (KaSA)",
    "monteclora_config": "sampled factors (MonteCLoRA)",
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin after which PEFT trains beside other base weights, unless it converts the adapter as it saves it; then it says `true`."""
MAX_PATTERNS, MAX_WILD_PATTERNS, MAX_PATTERN_LEN = 4096, 32, 300
PATTERN = re.compile(r"\^?(?:(?:[\w-]|\.|\\[.d]|\[[\w-]+\])[*+?]?)+\$?", re.ASCII)
"""A name, or a regular expression without groups: those of strangers can be made to take longer than anybody waits."""
MAX_WILDCARDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftConfig:
    """What it says of an adapter's numbers."""

    rank: int | None
    alpha: float
    ranks: Mapping[str, int]
    """By name of a layer, its end, or a pattern of it."""
    alphas: Mapping[str, float]
    is_dora: bool
    is_rank_stabilised: bool

    def rank_of(self, name: str) -> int | None:
        """What a layer's rank should be, by its full name; None where nothing is said."""
        rank: int | None = _matching(self.ranks, name, self.rank)
        return rank

    def scale_of(self, name: str, rank: int) -> float:
        """What the product of a layer's factors is multiplied by."""
        alpha: float = _matching(self.alphas, name, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilised else rank)


def read_peft_config(folder: Path) -> PeftConfig:
    """Read an adapter's configuration.

    Raises:
        AdapterError: if it is none of a LoRA adapter, or of one that works otherwise than Lorimer does; every problem at once.
    """
    path = folder / CONFIG_FILE
    try:
        if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
            raise AdapterError(f"adapter in {str(folder)!r}: {CONFIG_FILE} has {size} bytes, at most {MAX_CONFIG_BYTES} are read")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise AdapterError(f"adapter in {str(folder)!r}: {CONFIG_FILE} cannot be read ({exc})") from exc
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or "lora_alpha" not in config:
        raise AdapterError(
            f"adapter in {str(folder)!r} is no LoRA adapter in PEFT's format: {CONFIG_FILE} needs peft_type LORA and lora_alpha"
        )
    if asked := [what for key, what in UNSUPPORTED.items() if config.get(key)] + list(_describe_unserved(config)):
        raise AdapterError(f"adapter in {str(folder)!r} uses {', '.join(asked)}, which Lorimer does not serve")
    if problems := list(_problems(config)):
        raise AdapterError(f"adapter in {str(folder)!r}: {CONFIG_FILE} cannot be meant: {'; '.join(problems)}")
    return PeftConfig(
        rank=config.get("r"),
        alpha=float(config["lora_alpha"]),
        ranks=config.get("rank_pattern") or {},
        alphas=config.get("alpha_pattern") or {},
        is_dora=bool(config.get("use_dora")),
        is_rank_stabilised=bool(config.get("use_rslora")),
    )


def _describe_unserved(config: Mapping[str, Any]) -> Iterator[str]:
    """What changes answers by its value."""
    if config.get("bias") not in (None, "none"):
        yield "trained biases of the base"
    beginning = config.get("init_lora_weights")
    if isinstance(beginning, str) and beginning.lower().startswith(CHANGES_BASE):
        yield f"base weights that {beginning.split('_niter')[0]!r} changed (save it with `path_initial_model_for_weight_conversion`)"


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    """What is no value of its key."""
    if not _is_alpha(config["lora_alpha"]):
        yield f"lora_alpha is {_shown(config['lora_alpha'])}"
    if config.get("r") is not None and not _is_rank(config["r"]):
        yield f"r is {_shown(config['r'])}, where ranks are 1 to {MAX_RANK}"
    for key in ("use_dora", "use_rslora"):
        if not isinstance(config.get(key), bool | None):
            yield f"{key} is {_shown(config[key])}"
    for key, is_value in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict) or len(patterns) > MAX_PATTERNS:
            yield f"{key} is not an object of at most {MAX_PATTERNS} names"
            continue
        if wrong := [name for name, value in patterns.items() if not is_value(value)]:
            yield f"{key} of {_shown(wrong[0])} is {_shown(patterns[wrong[0]])}"
        if wild := [name for name in patterns if not _is_readable(name)]:
            yield f"{key} names {_shown(wild[0])}: write names, or patterns with at most {MAX_WILDCARDS} wildcards and no groups"
        if sum(map(_num_wildcards, patterns)) > MAX_WILD_PATTERNS:
            yield f"{key} has more than {MAX_WILD_PATTERNS} wildcards: write out the names"


def _is_alpha(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e6 <= value <= 1e6


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK


def _is_readable(pattern: str) -> bool:
    return len(pattern) <= MAX_PATTERN_LEN and _num_wildcards(pattern) <= MAX_WILDCARDS and PATTERN.fullmatch(pattern) is not None


def _num_wildcards(pattern: str) -> int:
    return sum(pattern.count(mark) for mark in "*+?")


def _matching(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """PEFT's per-layer override: a pattern counts when it matches the end of the layer's name at a dot."""
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)), default)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
