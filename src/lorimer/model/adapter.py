"""Adapters on disk, in PEFT's format; the only place where PEFT's names (`r`, `lora_alpha`) are spoken."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from lorimer.errors import AdapterError
from lorimer.model.base import Base
from lorimer.model.lora import LoRA, LoRAConfig, LoRALinear, LoRAWeights
from lorimer.storage import new_folder, write_bytes, write_json, write_text

CONFIG_FILE, WEIGHTS_FILE, LOCK_FILE, TEMPLATE_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter.lock.json",
    "chat_template.jinja",
)
PREFIX = "base_model.model."
UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "biases in the adapter",
    "modules_to_save": "trained copies of base layers",
    "fan_in_fan_out": "transposed weights",
}
MAX_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What an adapter belongs to: kept beside its weights, checked when it is loaded."""

    base_name: str
    base_digest: str
    template_digest: str
    dataset_digest: str
    run_id: str


def save_adapter(lora: LoRA, folder: Path, base: Base, lock: Lock) -> None:
    """Write an adapter as stock PEFT reads it, with its lock and chat template; the folder appears whole or not at all."""
    tensors = {}
    for name, weights in lora.weights.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = weights.a.detach().float().cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = weights.b.detach().float().cpu().contiguous()
    with new_folder(folder) as temporary:
        write_bytes(temporary / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
        write_json(temporary / CONFIG_FILE, _peft_config(lora.config, base))
        write_json(temporary / LOCK_FILE, {field: getattr(lock, field) for field in Lock.__slots__})
        write_text(temporary / TEMPLATE_FILE, base.renderer.template)


def _peft_config(config: LoRAConfig, base: Base) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": _shortest_names(config.target_modules, base.layers),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
    }


def _shortest_names(targets: Iterable[str], layers: Mapping[str, LoRALinear]) -> list[str]:
    """Last parts of the names (`q_proj`) where they mean exactly the targets, else the full names."""
    wanted = set(targets)
    endings = {name.rpartition(".")[2] for name in wanted}
    meant = {name for name in layers if name.rpartition(".")[2] in endings}
    return sorted(endings if meant == wanted else wanted)


def read_lock(folder: Path) -> Lock | None:
    """The lock of an adapter of ours; None for one made elsewhere."""
    path = folder / LOCK_FILE
    return Lock(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def load_adapter(folder: Path, base: Base) -> LoRA:
    """Read an adapter in PEFT's format for use on `base`, float32.

    Raises:
        AdapterError: naming every way in which it does not fit.
    """
    config = _read_config(folder)
    lock = read_lock(folder)
    if lock is not None and lock.base_digest != base.digest:
        raise AdapterError(
            f"adapter in {str(folder)!r} was made for base {lock.base_name!r} ({lock.base_digest[:12]}), "
            f"not for {base.name!r} ({base.digest[:12]}): load it on its own base"
        )
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (FileNotFoundError, SafetensorError) as exc:
        raise AdapterError(f"adapter in {str(folder)!r}: {WEIGHTS_FILE} is missing or damaged ({exc})") from exc
    pairs, problems = _pair(tensors)
    problems += _misfits(pairs, base.layers)
    if problems:
        shown = "; ".join(problems[:MAX_SHOWN]) + (f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else "")
        raise AdapterError(f"adapter in {str(folder)!r} does not fit base {base.name!r}: {shown}")
    weights = {}
    for name, pair in pairs.items():
        rank, alpha = pair["A"].shape[0], float(_pattern(config, "alpha_pattern", name, config["lora_alpha"]))
        scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        weights[name] = LoRAWeights(a=pair["A"].float(), b=pair["B"].float(), scale=scale)
    ranks = [w.a.shape[0] for w in weights.values()]
    return LoRA(config=LoRAConfig(rank=max(ranks), alpha=float(config["lora_alpha"]), target_modules=tuple(weights)), weights=weights)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise AdapterError(f"adapter in {str(folder)!r}: {CONFIG_FILE} cannot be read ({exc})") from exc
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or "lora_alpha" not in config:
        raise AdapterError(
            f"adapter in {str(folder)!r} is no LoRA adapter in PEFT's format: {CONFIG_FILE} needs peft_type LORA and lora_alpha"
        )
    asked = [what for key, what in UNSUPPORTED.items() if config.get(key)]
    if asked:
        raise AdapterError(f"adapter in {str(folder)!r} uses {', '.join(asked)}, which Lorimer does not serve")
    return config


def _pair(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, dict[str, torch.Tensor]], list[str]]:
    """Layer name -> {"A": .., "B": ..}, and what was not understood."""
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    problems = []
    for key, tensor in tensors.items():
        match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight", key)
        if match is None or tensor.ndim != 2:
            problems.append(f"tensor {key!r} is not a two-dimensional lora_A or lora_B weight")
        else:
            pairs.setdefault(match[1], {})[match[2]] = tensor
    return pairs, problems if tensors else ["the file holds no tensors"]


def _misfits(pairs: Mapping[str, Mapping[str, torch.Tensor]], layers: Mapping[str, LoRALinear]) -> list[str]:
    problems = []
    for name, pair in pairs.items():
        layer = layers.get(name)
        if layer is None:
            problems.append(f"the base has no linear layer {name!r}")
        elif set(pair) != {"A", "B"}:
            problems.append(f"{name!r} has only its {', '.join(pair)} half")
        else:
            rank = pair["A"].shape[0]
            found = tuple(pair["A"].shape), tuple(pair["B"].shape)
            wanted = (rank, layer.in_features), (layer.out_features, rank)
            if found != wanted:
                problems.append(f"{name!r} has shapes {found[0]} and {found[1]}, the base needs {wanted[0]} and {wanted[1]}")
            if not all(bool(torch.isfinite(tensor).all()) for tensor in pair.values()):
                problems.append(f"{name!r} holds values that are not finite")
    return problems


def _pattern(config: Mapping[str, Any], key: str, name: str, default: float) -> float:
    """PEFT's per-layer override: a pattern counts when it matches the end of the layer's name at a dot."""
    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return float(value)
    return default
