"""Adapters on disk, in PEFT's format; the only place where PEFT's names (`r`, `lora_alpha`) are spoken."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from lorimer.errors import AdapterError
from lorimer.model.base import Base
from lorimer.model.lora import LoRA, LoRAConfig, LoRALinear, LoRAWeights
from lorimer.model.peft_config import CONFIG_FILE, MAX_RANK, PeftConfig, read_peft_config
from lorimer.storage import new_folder, write_bytes, write_json, write_text

WEIGHTS_FILE, LOCK_FILE, TEMPLATE_FILE = "adapter_model.safetensors", "adapter.lock.json", "chat_template.jinja"
DTYPES = ("F32", "F16", "BF16")
MAX_HEADER_BYTES = 16 << 20
MAPPINGS = ("base_files", "tokenizer_files", "recipe", "seeds", "libraries")
PREFIX = "base_model.model."
MAX_SHOWN, MAX_NAME_LEN = 8, 200
ALPHA_TOLERANCE = 1e-5  # scales are computed from alphas and back


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What an adapter belongs to: kept beside its weights, checked when it is loaded."""

    base_name: str
    base_digest: str
    template_digest: str
    dataset_digest: str
    run_id: str
    quantisation: str | None = None
    """In how few bits the base was held while the adapter was trained."""
    base_files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the files that the base's digest is taken of, by name; older locks, and bases made in memory, have none."""
    tokenizer_files: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Resolved: with every default, as the plan settled them."""
    seeds: Mapping[str, int] = field(default_factory=dict)
    """By what they are for."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Versions of what it was trained with."""

    def differences(self, base: Base) -> list[str]:
        """How a base differs from the one that the adapter was made for, a sentence each; none if it is that one."""
        if self.base_digest != base.digest:
            named = f"made for base {self.base_name!r} ({self.base_digest[:12]}), not for {base.name!r} ({base.digest[:12]})"
            return [named, *_file_differences(self.base_files, base.files), *_file_differences(self.tokenizer_files, base.tokenizer_files)]
        found = _file_differences(self.tokenizer_files, base.tokenizer_files)
        return [f"made with another tokenizer than {base.name!r} has now", *found] if found else []


def _file_differences(locked: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Of files that both know, or one alone."""
    if not locked or not here:
        return []
    return [
        f"{name} {'is not there' if name not in here else 'was not there' if name not in locked else 'differs'} "
        f"(locked {locked.get(name, 'none')[:12]}, here {here.get(name, 'none')[:12]})"
        for name in sorted(locked.keys() | here.keys())
        if locked.get(name) != here.get(name)
    ]


def save_adapter(lora: LoRA, folder: Path, base: Base, lock: Lock) -> None:
    """Write an adapter as stock PEFT reads it, with its lock and chat template; the folder appears whole or not at all."""
    tensors = {}
    for name, weights in lora.weights.items():
        a, b = weights.factors  # an anchor becomes part of them: on disk it is a plain adapter of twice the rank
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a.detach().float().cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b.detach().float().cpu().contiguous()
        if weights.magnitude is not None:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = weights.magnitude.detach().float().cpu().contiguous()
    with new_folder(folder) as temporary:
        write_bytes(temporary / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
        write_json(temporary / CONFIG_FILE, _peft_config(lora, base))
        write_json(temporary / LOCK_FILE, lock_json(lock))
        write_text(temporary / TEMPLATE_FILE, base.renderer.template)


def lock_json(lock: Lock) -> dict[str, Any]:
    """As its file holds it."""
    return {name: getattr(lock, name) for name in Lock.__slots__}


def _peft_config(lora: LoRA, base: Base) -> dict[str, Any]:
    ranks = {name: weights.factors[0].shape[0] for name, weights in lora.weights.items()}
    rank = max(ranks.values())
    scale = _commonest(weights.scale for weights in lora.weights.values())
    alphas = {name: weights.scale * ranks[name] for name, weights in lora.weights.items()}  # PEFT divides by the layer's own rank
    alpha = scale * rank
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": _shortest_names(lora.weights, base.layers),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,  # the alpha that comes to the same, as not every engine knows the other scale
        "use_dora": any(weights.magnitude is not None for weights in lora.weights.values()),
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {name: own for name, own in alphas.items() if abs(own - alpha) > ALPHA_TOLERANCE * alpha},
        "modules_to_save": None,
    }


def _commonest(values: Iterable[float]) -> float:
    """The value most have; those that differ by rounding alone count as one, and the first of them is taken as it is."""
    found = list(values)
    commonest = Counter(round(value, 6) for value in found).most_common(1)[0][0]
    return next(value for value in found if round(value, 6) == commonest)


def _shortest_names(targets: Iterable[str], layers: Mapping[str, LoRALinear]) -> list[str]:
    """Last parts of the names (`q_proj`) where they mean exactly the targets, else the full names."""
    wanted = set(targets)
    endings = {name.rpartition(".")[2] for name in wanted}
    meant = {name for name in layers if name.rpartition(".")[2] in endings}
    return sorted(endings if meant == wanted else wanted)


def read_lock(folder: Path) -> Lock | None:
    """The lock of an adapter of ours; None for one made elsewhere.

    Raises:
        AdapterError: if there is one that cannot be read.
    """
    path = folder / LOCK_FILE
    if not path.is_file():
        return None
    try:
        lock = Lock(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as exc:
        raise AdapterError(f"adapter in {str(folder)!r}: {LOCK_FILE} cannot be read ({exc}): restore it") from exc
    kinds: dict[str, Any] = {"quantisation": str | None, **dict.fromkeys(MAPPINGS, dict)}
    if not all(isinstance(getattr(lock, name), kinds.get(name, str)) for name in Lock.__slots__) or not _hold_texts(lock):
        raise AdapterError(f"adapter in {str(folder)!r}: {LOCK_FILE} holds other things than names and digests: restore it")
    return lock


def _hold_texts(lock: Lock) -> bool:
    found = (lock.base_files, lock.tokenizer_files, lock.libraries)
    return all(isinstance(value, str) for mapping in found for value in mapping.values())


def load_adapter(folder: Path, base: Base) -> LoRA:
    """Read an adapter in PEFT's format for use on `base`, float32.

    Raises:
        AdapterError: naming every way in which it does not fit.
    """
    config = read_peft_config(folder)
    lock = read_lock(folder)
    if lock is not None and (different := lock.differences(base)):
        shown = "; ".join(different[:MAX_SHOWN]) + (f"; and {len(different) - MAX_SHOWN} more" if len(different) > MAX_SHOWN else "")
        raise AdapterError(f"adapter in {str(folder)!r} was {shown}: load it on its own base")
    tensors = _read_tensors(folder, base)
    pairs, problems = _pair(tensors)
    problems += _misfits(pairs, base.layers, config)
    if config.is_dora and not all("magnitude" in pair for pair in pairs.values()):
        problems.append("it uses DoRA, but not every layer has magnitudes")
    if problems:
        shown = "; ".join(problems[:MAX_SHOWN]) + (f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else "")
        raise AdapterError(f"adapter in {str(folder)!r} does not fit base {base.name!r}: {shown}")
    weights = {}
    for name, pair in pairs.items():
        magnitude = pair["magnitude"].float() if "magnitude" in pair else None
        scale = config.scale_of(name, pair["A"].shape[0])
        weights[name] = LoRAWeights(a=pair["A"].float(), b=pair["B"].float(), scale=scale, magnitude=magnitude)
    ranks = {name: own.a.shape[0] for name, own in weights.items()}
    rank = max(ranks.values())
    found = LoRAConfig(
        rank=rank,
        alpha=config.alpha,
        target_modules=tuple(weights),
        ranks={name: own for name, own in ranks.items() if own != rank},
        kind="dora" if config.is_dora else "lora",
        rank_stabilised=config.is_rank_stabilised,
    )
    return LoRA(config=found, weights=weights)


def _read_tensors(folder: Path, base: Base) -> Mapping[str, torch.Tensor]:
    """An adapter's tensors, once their file says that they can be those of one for this base.

    Raises:
        AdapterError: if it does not, or is damaged.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file() and (pickles := sorted(file.name for file in folder.glob("adapter_model.*"))):
        raise AdapterError(f"adapter in {str(folder)!r} is {pickles[0]!r}, which may run code when it is read: save it as {WEIGHTS_FILE}")
    widths = sum(layer.in_features + 2 * layer.out_features for layer in base.layers.values())
    try:
        if (size := path.stat().st_size) > (most := 4 * MAX_RANK * widths + MAX_HEADER_BYTES):
            raise ValueError(f"{size} bytes, of an adapter for {base.name!r} there can be {most}")
        _check_header(path)
        return load(path.read_bytes())  # from a file safetensors 0.8 loses 56 bytes a tensor, at every load
    except (OSError, ValueError, SafetensorError, RecursionError) as exc:
        raise AdapterError(f"adapter in {str(folder)!r}: {WEIGHTS_FILE} is missing or damaged ({exc})") from exc


def _check_header(path: Path) -> None:
    """What safetensors' own reader lets pass: names that stand there twice, and numbers that are no weights.

    Raises:
        ValueError: if there are any.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"its header would be {length} bytes long")
        header = json.loads(file.read(length), object_pairs_hook=_without_twins)
    entries = header.items() if isinstance(header, dict) else ()
    dtypes = {name: entry.get("dtype") for name, entry in entries if isinstance(entry, dict) and name != "__metadata__"}
    if wrong := [f"{name!r} is of {dtype!r}" for name, dtype in dtypes.items() if dtype not in DTYPES]:
        raise ValueError(f"{wrong[0][:MAX_NAME_LEN]}, weights are of {', '.join(DTYPES)}")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return found


def _pair(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, dict[str, torch.Tensor]], list[str]]:
    """Layer name -> {"A": .., "B": .., with DoRA "magnitude": ..}, and what was not understood."""
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    problems = []
    for key, tensor in tensors.items():
        match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_(?:([AB])\.weight|magnitude_vector)", key)
        if match is None or tensor.ndim != (2 if match[2] else 1):
            problems.append(f"tensor {key[:MAX_NAME_LEN]!r} is not a two-dimensional lora_A or lora_B weight")
        else:
            pairs.setdefault(match[1], {})[match[2] or "magnitude"] = tensor
    return pairs, problems if tensors else ["the file holds no tensors"]


def _misfits(pairs: Mapping[str, Mapping[str, torch.Tensor]], layers: Mapping[str, LoRALinear], config: PeftConfig) -> list[str]:
    problems = []
    for name, pair in pairs.items():
        layer = layers.get(name)
        if layer is None:
            problems.append(f"the base has no linear layer {name[:MAX_NAME_LEN]!r}")
        elif not {"A", "B"} <= set(pair):
            problems.append(f"{name!r} has only its {', '.join(pair)} part")
        else:
            rank = pair["A"].shape[0]
            found = tuple(pair["A"].shape), tuple(pair["B"].shape)
            wanted = (rank, layer.in_features), (layer.out_features, rank)
            if found != wanted:
                problems.append(f"{name!r} has shapes {found[0]} and {found[1]}, the base needs {wanted[0]} and {wanted[1]}")
            elif not 1 <= rank <= MAX_RANK:
                problems.append(f"{name!r} has rank {rank}, ranks are 1 to {MAX_RANK}")
            elif (declared := config.rank_of(name)) not in (None, rank):
                problems.append(f"{name!r} has rank {rank}, {CONFIG_FILE} says {declared}")
            if "magnitude" in pair and pair["magnitude"].shape != (layer.out_features,):
                problems.append(f"{name!r} has magnitudes for {pair['magnitude'].shape[0]} outputs, the base needs {layer.out_features}")
            if not all(bool(torch.isfinite(tensor).all()) for tensor in pair.values()):
                problems.append(f"{name!r} holds values that are not finite")
    return problems
