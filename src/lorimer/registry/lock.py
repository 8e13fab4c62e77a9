"""A version's whole lock: what was written down when it was trained, and what came later, which is kept beside that and not in it."""

import json
from pathlib import Path
from typing import Any

from sqlalchemy import select

from lorimer.errors import IntegrityError
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import FINGERPRINT, Registry
from lorimer.registry.schema import gate_results
from lorimer.registry.seal import read_seal

LOCK = "adapter.lock.json"


def read_trained_lock(folder: Path) -> dict[str, Any]:
    """`adapter.lock.json`; empty for an adapter that has none.

    Raises:
        IntegrityError: if it cannot be read.
    """
    path = folder / LOCK
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise IntegrityError(f"{LOCK} cannot be read ({type(exc).__name__})") from exc
    if not isinstance(value, dict):
        raise IntegrityError(f"{LOCK} holds no names and digests")
    return value


def whole_lock(registry: Registry, version: AdapterVersion) -> dict[str, Any]:
    """Base, tokenizer, template, libraries, dataset, recipe and seeds; files, seal and fingerprint; and every gate's verdict, by digest.

    Raises:
        IntegrityError: if the lock or the seal cannot be read.
    """
    if version.parts:
        parts = {part.id: whole_lock(registry, registry.find_digest(part.digest)) for part in version.parts}
        return {"adapter": version.id, "adapter_digest": version.digest, "parts": parts}
    seal, lock = read_seal(version.path), read_trained_lock(version.path)
    return {
        "adapter": version.id,
        "adapter_digest": version.digest,
        **lock,
        "base_digest": version.base_digest,
        "dataset_digest": version.dataset_digest,
        "template_digest": version.template_digest,
        "files": dict(seal.files) if seal else {},
        "fingerprint_digest": seal.files.get(FINGERPRINT) if seal else None,
        "seal": {"manifest_digest": seal.manifest_digest, "key_ids": list(seal.signatures), "origin": seal.origin} if seal else None,
        "gates": _verdicts(registry, version),
    }


def _verdicts(registry: Registry, version: AdapterVersion) -> list[dict[str, Any]]:
    gates = gate_results.c
    query = select(gates.digest, gates.verdict, gates.report_digest, gates.recorded_at)
    query = query.where(gates.adapter_digest == version.digest, gates.base_digest == version.base_digest).order_by(gates.id)
    with registry.engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]
