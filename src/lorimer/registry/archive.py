"""One file of many: a tar whose last entry is a manifest of the others' digests. It knows nothing of what they mean.

The manifest comes last because files are hashed as they are written: what grows meanwhile is kept up to the length it had. Whoever reads an
archive gets all of it, byte for byte, or an error.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lorimer.blobs import is_plain_name
from lorimer.errors import IntegrityError
from lorimer.storage import CHUNK_BYTES, canonical_json, explain_disk_errors, receive_file, write_chunks

MANIFEST = "manifest.json"
FORMAT = "lorimer-backup-1"
MAX_MANIFEST_BYTES = 1 << 30


@dataclass(slots=True, kw_only=True)
class ArchiveWriter:
    """An archive that is being written; as a context manager it appears whole at the end, or not at all."""

    path: Path
    described: dict[str, Any] = field(default_factory=dict)
    """What the manifest says beside the digests."""
    digest: str = ""
    """Of the manifest, once it is written: names all that the archive holds."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    _tar: tarfile.TarFile | None = None
    _receiving: Any = None

    def __enter__(self) -> "ArchiveWriter":
        self._receiving = receive_file(self.path)
        temporary = self._receiving.__enter__()
        self._tar = tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._tar is not None
        try:
            if kind is None:
                manifest = canonical_json({"format": FORMAT, **self.described, "files": self.files})
                self.digest = hashlib.sha256(manifest).hexdigest()
                self._add(MANIFEST, io.BytesIO(manifest), len(manifest))
            self._tar.close()
        finally:
            self._receiving.__exit__(kind, error, trace)

    def add_file(self, name: str, path: Path) -> None:
        """A file as it is now; if it is replaced meanwhile the old one is kept, if it grows its beginning is."""
        with path.open("rb") as file:
            self._note(name, file, os.fstat(file.fileno()).st_size)

    def _note(self, name: str, file: IO[bytes], size: int) -> None:
        assert is_plain_name(name), name
        assert name not in self.files, name
        self.files[name] = {"sha256": self._add(name, file, size), "num_bytes": size}

    def _add(self, name: str, file: IO[bytes], size: int) -> str:
        assert self._tar is not None
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o600
        reader = _Hashing(file)
        with explain_disk_errors(self.path):
            self._tar.addfile(info, reader)  # only `read` is asked of it
        return reader.digest.hexdigest()


class _Hashing:
    """A file that hashes what is read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.digest.update(data)
        return data


def unpack(path: Path, folder: Path) -> Mapping[str, Any]:
    """Put an archive's files into a folder, which is only to be used if this returns; returns the manifest.

    Raises:
        IntegrityError: if anything is missing, added, changed, cut off, or is no plain file.
    """
    found: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg() or not is_plain_name(member.name) or member.name in found or MANIFEST in found:
                    raise _damaged(path, f"{member.name[:80]!r} has no place in it")
                found[member.name] = _unpack_one(tar, member, folder / member.name)
        data = (folder / MANIFEST).read_bytes() if MANIFEST in found else b""
        manifest = json.loads(data)
        wanted = manifest["files"]
        if manifest["format"] != FORMAT:
            raise _damaged(path, f"its format is {manifest['format']!r}, this Lorimer reads {FORMAT!r}")
    except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError, RecursionError) as exc:
        raise _damaged(path, f"it cannot be read to its end, {type(exc).__name__}") from exc
    del found[MANIFEST]
    if differing := _differences(wanted, found):
        raise _damaged(path, "; ".join(differing[:5]) + (f"; and {len(differing) - 5} more" if len(differing) > 5 else ""))
    return {**manifest, "digest": hashlib.sha256(data).hexdigest()}


def _unpack_one(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> dict[str, Any]:
    source = tar.extractfile(member)
    assert source is not None
    if member.name == MANIFEST and member.size > MAX_MANIFEST_BYTES:
        raise ValueError("its manifest is too long")
    reader = _Hashing(source)
    write_chunks(target, iter(lambda: reader.read(CHUNK_BYTES), b""))
    return {"sha256": reader.digest.hexdigest(), "num_bytes": member.size}


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    names: Iterable[str] = sorted({*wanted, *found})
    return [
        f"{name!r} {'is missing' if name not in found else 'was added' if name not in wanted else 'was changed'}"
        for name in names
        if wanted.get(name) != found.get(name)
    ]


def _damaged(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(f"backup {str(path)!r} is damaged or is none: {reason}; nothing was restored from it, use another")
