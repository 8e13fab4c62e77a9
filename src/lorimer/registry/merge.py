"""Merging adapters into one with files of its own: their changes to the base's weights are combined layer by layer and factorised anew.

What is combined are the changes themselves, scale * B A. Averaging the factors A and B separately, as PEFT's `linear` does, is no linear
combination of the changes: (B1 + B2)(A1 + A2) holds B1 A2 and B2 A1 too, which nobody trained. Here
- `linear` lays the factors side by side, [w1 s1 B1, w2 s2 B2] [A1; A2]: exact, and ranks add up;
- `svd` is the same sum, in the closest product of a given rank (Eckart and Young 1936);
- `ties` trims each change to its largest entries, elects a sign for each entry, and averages those that agree (Yadav et al. 2023,
  arXiv:2306.01708); trimmed layer by layer, as PEFT and mergekit do;
- `dare` drops entries at random and scales up the rest, then adds (Yu et al. 2024, arXiv:2311.03099).
An adapter without a layer changes nothing there. How it is computed is in model/changes.py, imported inside functions: the registry itself
does without torch.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lorimer.config import home
from lorimer.errors import AdapterError, UsageError
from lorimer.model.peft_config import CONFIG_FILE, MAX_RANK
from lorimer.registry.compositions import is_dora, parts_of
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry, check_name
from lorimer.storage import digest_of, new_folder, write_bytes, write_json

if TYPE_CHECKING:
    from lorimer.model.changes import Factors

Method = Literal["linear", "svd", "ties", "dare"]
WEIGHTS_FILE, TEMPLATE_FILE, LOCK_FILE = "adapter_model.safetensors", "chat_template.jinja", "adapter.lock.json"
PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRecipe:
    """How adapters become one."""

    method: Method
    weights: tuple[float, ...] | None = None
    """Of each adapter's change; by default 1, as in a composition."""
    density: float = 0.5
    """Share of each change's entries that `ties` and `dare` keep."""
    rank: int | None = None
    """Of the result; by default the sum of ranks for `linear`, else the highest of the parents'."""
    seed: int = 0
    """What `dare` draws from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What came of it."""

    version: AdapterVersion
    kept_share: float
    """Of the combined change's squared size, what the result's rank holds: 1 is all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parent:
    version: AdapterVersion
    weight: float
    layers: "Mapping[str, Factors]"


def merge_adapters(registry: Registry, names: Sequence[str], *, name: str, recipe: MergeRecipe, actor: str | None = None) -> Merged:
    """Make the next version of `name` out of adapters and compositions; it has files of its own, and its parents' digests.

    Raises:
        NotFoundError: if there is no adapter of one of the names.
        UsageError: if they do not go together, or the recipe cannot be followed; every reason is given.
        IntegrityError: if an adapter's files are not those that were registered.
        AdapterError: if they cannot be read.
    """
    from lorimer.model.changes import read_factors

    check_name(name)
    named = [registry.resolve(each) for each in names]
    weights = recipe.weights or (1.0,) * len(named)
    if problems := [*_problems_of_recipe(recipe, len(named)), *_problems_of_parents(named, registry)]:
        raise UsageError(f"{name!r} cannot be merged: {'; '.join(problems)}")
    parents = []
    for version, weight in zip(named, weights, strict=True):
        registry.verify_files(version)
        for part in parts_of(version, weight):
            own = registry.find_digest(part.digest)
            parents.append(_Parent(version=own, weight=part.scale, layers=read_factors(own.path)))
    merged, kept_share = _combine(parents, recipe)
    folder = home() / "merges" / _digest_of_merge(parents, recipe)
    try:
        _write(folder, merged, [parent.version for parent in parents])
        new = _new_version(name, folder, merged, parents)
        weights_used = [parent.weight for parent in parents]
        details = {**asdict(recipe), "weights": weights_used, "kept_share": round(kept_share, 6)}
        more = {"merge": details, "parents": list(new.parents)}
        version = registry.register(new, actor=actor, action="merge", more=more)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Merged(version=version, kept_share=kept_share)


def _problems_of_recipe(recipe: MergeRecipe, num: int) -> list[str]:
    problems = []
    if num < 2:
        problems.append("one adapter alone is itself: name several")
    if recipe.weights is not None and len(recipe.weights) != num:
        problems.append(f"{num} adapters have {len(recipe.weights)} weights: give one for each")
    if recipe.weights is not None and not all(map(math.isfinite, recipe.weights)):
        problems.append("a weight is not a finite number")
    if not 0 < recipe.density <= 1:
        problems.append(f"density {recipe.density:g} is none: it is above 0 and at most 1")
    if recipe.rank is not None and not 1 <= recipe.rank <= MAX_RANK:
        problems.append(f"rank {recipe.rank} is none: ranks are 1 to {MAX_RANK}")
    return problems


def _problems_of_parents(named: Sequence[AdapterVersion], registry: Registry) -> list[str]:
    """Why they do not go together, a sentence each."""
    parts = [registry.find_digest(part.digest) for version in named for part in parts_of(version)]
    problems = [
        f"{part.id!r} is a DoRA adapter: its magnitudes do not add to another's change" for part in dict.fromkeys(parts) if is_dora(part)
    ]
    for what, values in (
        ("bases", {part.base_digest: part for part in parts}),
        ("chat templates", {part.template_digest: part for part in parts}),
    ):
        if len(values) > 1:
            problems.append(f"they were made for different {what}: " + ", ".join(f"{a.id} for {key[:12]}" for key, a in values.items()))
    if twice := [part.id for part in dict.fromkeys(parts) if parts.count(part) > 1]:
        problems.append(f"{twice[0]!r} is in it twice: name it once, with the sum of its weights")
    return problems


def _combine(parents: Sequence[_Parent], recipe: MergeRecipe) -> "tuple[dict[str, Factors], float]":
    """Every layer that any of them changes, and how much of the combined change the result holds."""
    from lorimer.model.changes import concatenate, dare, factorise, ties, truncate

    names = sorted({layer for parent in parents for layer in parent.layers})
    highest = max(own.a.shape[0] for parent in parents for own in parent.layers.values())
    merged, kept, whole = {}, 0.0, 0.0
    for layer in names:
        having = [parent for parent in parents if layer in parent.layers]
        own, weights = [parent.layers[layer] for parent in having], [parent.weight for parent in having]
        if len({(factors.b.shape[0], factors.a.shape[1]) for factors in own}) > 1:
            raise AdapterError(f"layer {layer!r} has different shapes in {', '.join(parent.version.id for parent in having)}")
        if recipe.method in ("linear", "svd"):
            whole_sum = concatenate(own, weights)
            rank = recipe.rank or (whole_sum.a.shape[0] if recipe.method == "linear" else highest)
            merged[layer], of_layer, of_all = truncate(whole_sum, rank)
        else:
            keys = [f"{recipe.seed} {parent.version.digest} {layer}" for parent in having]
            delta = ties(own, weights, recipe.density) if recipe.method == "ties" else dare(own, weights, recipe.density, keys)
            merged[layer], of_layer, of_all = factorise(delta, recipe.rank or highest, seed=recipe.seed)
        kept, whole = kept + of_layer, whole + of_all
    if too_high := [layer for layer, factors in merged.items() if factors.a.shape[0] > MAX_RANK]:
        raise UsageError(f"ranks would add up to more than {MAX_RANK} in {too_high[0]!r}: give `--rank`")
    return merged, kept / whole if whole else 1.0


def _digest_of_merge(parents: Sequence[_Parent], recipe: MergeRecipe) -> str:
    return digest_of([asdict(recipe), [[parent.version.digest, parent.weight] for parent in parents]])[:16]


def _write(folder: Path, merged: "Mapping[str, Factors]", parents: Sequence[AdapterVersion]) -> None:
    """As stock PEFT reads it, every layer at scale 1: alpha is the rank."""
    from safetensors.torch import save

    from lorimer.model.adapter import Lock, read_lock

    tensors = {}
    for layer, factors in merged.items():
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = factors.a.contiguous()
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = factors.b.contiguous()
    locks = {(lock.quantisation if (lock := read_lock(parent.path)) else None) for parent in parents}
    first = parents[0]
    lock = Lock(
        base_name=first.base_name,
        base_digest=first.base_digest,
        template_digest=first.template_digest,
        dataset_digest=_common_dataset(parents)[1],
        run_id="",
        quantisation=locks.pop() if len(locks) == 1 else None,
    )
    with new_folder(folder) as temporary:
        write_bytes(temporary / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
        write_json(temporary / CONFIG_FILE, _peft_config(merged, parents))
        write_json(temporary / LOCK_FILE, {field: getattr(lock, field) for field in Lock.__slots__})
        templates = [path for parent in parents if (path := parent.path / TEMPLATE_FILE).is_file()]
        if templates:
            write_bytes(temporary / TEMPLATE_FILE, templates[0].read_bytes())


def _peft_config(merged: "Mapping[str, Factors]", parents: Sequence[AdapterVersion]) -> dict[str, Any]:
    ranks = {layer: factors.a.shape[0] for layer, factors in merged.items()}
    rank = max(ranks.values())
    others = {layer: own for layer, own in ranks.items() if own != rank}
    targets = [json.loads((parent.path / CONFIG_FILE).read_text(encoding="utf-8")).get("target_modules") for parent in parents]
    # each parent's names mean exactly its own layers, so that together they mean exactly those of the merge
    short = sorted({name for own in targets for name in own}) if all(isinstance(own, list) and own for own in targets) else sorted(merged)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": parents[0].base_name,
        "r": rank,
        "lora_alpha": float(rank),
        "target_modules": short,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "rank_pattern": others,
        "alpha_pattern": {layer: float(own) for layer, own in others.items()},
        "modules_to_save": None,
    }


def _new_version(name: str, folder: Path, merged: "Mapping[str, Factors]", parents: Sequence[_Parent]) -> NewVersion:
    versions = [parent.version for parent in parents]
    rank = max(factors.a.shape[0] for factors in merged.values())
    dataset_name, dataset_digest = _common_dataset(versions)
    return NewVersion(
        name=name,
        source=folder,
        base_name=versions[0].base_name,
        base_digest=versions[0].base_digest,
        dataset_name=dataset_name,
        dataset_digest=dataset_digest,
        run_id="",
        rank=rank,
        alpha=float(rank),
        num_parameters=sum(factors.a.numel() + factors.b.numel() for factors in merged.values()),
        template_digest=versions[0].template_digest,
        parents=tuple(dict.fromkeys(version.digest for version in versions)),
    )


def _common_dataset(versions: Sequence[AdapterVersion]) -> tuple[str, str]:
    """The dataset all were trained on, if it is one."""
    found = {version.dataset_digest: version.dataset_name for version in versions}
    return next((name, digest) for digest, name in found.items()) if len(found) == 1 else ("", "")
