"""Adapters from elsewhere: a folder in PEFT's format, checked against its base, its seal if it has one, and registered as what it is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorimer.config import Recipe
from lorimer.data.dataset import read_dataset
from lorimer.errors import AdapterError, IntegrityError, UsageError
from lorimer.registry.recipes import digest_of_recipe, keep_recipe, recorded_digest
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry, check_name
from lorimer.registry.seal import Origin, digest_of_folder, read_seal, verify_adapter_folder
from lorimer.registry.trust import trusted
from lorimer.storage import canonical_json

if TYPE_CHECKING:
    from lorimer.model.base import Base

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""Formats that may run code when they are read."""


def base_name_of(folder: Path) -> str:
    """The base that an adapter's folder names: its lock, else PEFT's configuration.

    Raises:
        AdapterError: if it names none.
    """
    for file, key in (("adapter.lock.json", "base_name"), ("adapter_config.json", "base_model_name_or_path")):
        try:
            name = json.loads((folder / file).read_text(encoding="utf-8"))[key]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(name, str) and name:
            return name
    raise AdapterError(f"{str(folder)!r} names no base: say which with `--base`")


def origin_of(registry: Registry, folder: Path, *, allow_unsigned: bool) -> Origin:
    """Whether somebody who is trusted has sealed a folder; refused if nobody has, unless that is allowed.

    Raises:
        AdapterError: if it is no adapter's folder, or holds files that may run code.
        IntegrityError: if its files are not those that were sealed, or nobody who is trusted has sealed them.
    """
    digest = digest_of_folder(folder)
    if pickles := sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES):
        raise AdapterError(f"{str(folder)!r} holds {', '.join(pickles)}, which may run code when read: keep the safetensors alone")
    seal = read_seal(folder)
    if seal is not None:
        keys = trusted(registry.engine)
        if seal.signer_among(keys) is not None:
            verify_adapter_folder(folder, digest, keys)
            return "imported-signed"
    if not allow_unsigned:
        by = f"signed by {seal.key_id[:16]}, which is not trusted here (`lorimer trust add FILE`)" if seal else "not signed"
        raise IntegrityError(
            f"{str(folder)!r} is {by}: import it with `--allow-unsigned` if you know where it comes from; that is recorded"
        )
    return "imported-unsigned"


def import_adapter(
    registry: Registry,
    folder: Path,
    name: str,
    base: "Base",
    *,
    recipe: Recipe | None = None,
    allow_unsigned: bool = False,
    actor: str | None = None,
) -> AdapterVersion:
    """Register a folder from elsewhere as the next version of `name`, once it is seen to fit `base`; its fingerprint is taken now.

    `recipe` says what it is held to: the test items of its dataset, as they are now, and its gate. Without one no gate lets it through.

    Raises:
        UsageError: if the name cannot be one, or has these bytes already, held to something else.
        NotFoundError, DataError: if the recipe's dataset is not there or cannot be read.
        AdapterError: if it is no adapter, holds files that may run code, or does not fit the base, with everything that does not.
        IntegrityError: as `origin_of`.
        AccessError: if the actor may not.
    """
    from lorimer.inference.adapter_pool import AdapterPool
    from lorimer.inference.decoder import make_decoder
    from lorimer.inference.fingerprint import FINGERPRINT_FILE, Prober, norms_of
    from lorimer.model.adapter import LOCK_FILE, Lock, load_adapter, lock_json, read_lock

    check_name(name)
    if recipe is not None:
        recipe = recipe.model_copy(update={"dataset": read_dataset(recipe.dataset).digest})
    origin = origin_of(registry, folder, allow_unsigned=allow_unsigned)
    lora, lock, decoder = load_adapter(folder, base), read_lock(folder), make_decoder(base)
    template = base.renderer.template_digest
    if lock is not None and lock.template_digest not in ("", template):
        raise AdapterError(
            f"adapter in {str(folder)!r} was trained behind chat template {lock.template_digest[:12]}, {base.name!r} has {template[:12]}: "
            "give the base with its own template"
        )
    ready = AdapterPool(base, dense_weight=decoder.dense_weight).prepare(lora)
    digest = digest_of_folder(folder)
    fingerprint = Prober(base, decoder).take(digest, ready, norms_of(lora, decoder.dense_weight))
    companions = {FINGERPRINT_FILE: fingerprint.to_bytes()}
    if lock is None:  # pins it to the base that it was seen to fit
        lock = Lock(base_name=base.name, base_digest=base.digest, template_digest=template, dataset_digest="", run_id="")
        lock = replace(lock, quantisation=base.quantisation, base_files=base.files, tokenizer_files=base.tokenizer_files)
        companions[LOCK_FILE] = canonical_json(lock_json(lock)) + b"\n"
    new = NewVersion(
        name=name,
        source=folder,
        base_name=base.name,
        base_digest=base.digest,
        dataset_name="",
        dataset_digest=lock.dataset_digest,
        run_id=lock.run_id,
        rank=lora.config.rank,
        alpha=lora.config.alpha,
        num_parameters=lora.num_parameters,
        template_digest=template,
        companions=companions,
        origin=origin,
        recipe_digest=digest_of_recipe(recipe) if recipe else "",
    )
    version = registry.register(new, actor=actor, action="import", more={"origin": origin})
    if recipe is not None:
        if recorded_digest(registry, version) != new.recipe_digest:
            raise UsageError(f"{version.id} has these very bytes, and what it is held to was settled then: import them under another name")
        keep_recipe(recipe)
    return version
