"""What vLLM may serve, told by the gateway in a file: which base, and where the files of each registered adapter lie, by digest.

A file, and not the registry itself: vLLM's environment has no use for our database's drivers and none of its passwords, and a file can be
read before any gateway runs. Nothing here needs more than the standard library, since vLLM's environment reads it too.
"""

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorimer.errors import IntegrityError, StorageError
from lorimer.storage import canonical_json, digest_of, write_bytes

FORMAT = 1
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One registered adapter."""

    folder: Path
    bases: tuple[str, ...]
    """Digests of the bases it was registered for; more than one if the same bytes were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One base and all registered adapters, those of other bases too, so that a refusal can say what it is about."""

    base_files: Mapping[str, str]
    """SHA-256 of the base's files, by name."""
    adapters: Mapping[str, Listed]

    @property
    def base_digest(self) -> str:
        """As the registry knows it."""
        return digest_of(dict(self.base_files))

    def write(self, path: Path) -> None:
        """Replace the file, for nobody's eyes but our own.

        Raises:
            StorageError: if the disk is full or not writable.
        """
        adapters = {digest: {"folder": str(one.folder), "bases": list(one.bases)} for digest, one in self.adapters.items()}
        write_bytes(path, canonical_json({"format": FORMAT, "base_files": self.base_files, "adapters": adapters}) + b"\n", mode=0o600)


def read_manifest(path: Path) -> Manifest:
    """What `Manifest.write` wrote.

    Raises:
        StorageError: if it is not there, or others may write it: then anybody may say which files are adapters.
        IntegrityError: if it is not one.
    """
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            data = file.read()
    except OSError as exc:
        raise StorageError(f"{str(path)!r} cannot be read ({exc.strerror}): start the gateway, which writes it") from exc
    if state.st_uid not in (os.getuid(), 0) or stat.S_IMODE(state.st_mode) & 0o022:
        raise StorageError(f"{str(path)!r} belongs to somebody else or can be written by others: it says which files are served; chmod 600")
    try:
        value = json.loads(data)
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r}")
        adapters = {
            digest: Listed(folder=Path(one["folder"]), bases=tuple(map(str, one["bases"]))) for digest, one in value["adapters"].items()
        }
        return Manifest(base_files={str(k): str(v) for k, v in value["base_files"].items()}, adapters=adapters)
    except (ValueError, LookupError, TypeError, AttributeError) as exc:
        raise IntegrityError(f"{str(path)!r} is no list of adapters ({exc}): start the gateway again, which writes it") from exc
