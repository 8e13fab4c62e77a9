"""Content-addressed folders in a store that several homes share: published whole, fetched on a miss, checked before use.

`LORIMER_STORAGE` names it; without, everything lives in the home folder alone and nothing here does anything. A folder's files lie in the
store under their SHA-256; the manifest that names them is written last, so that half an upload is never seen. It knows nothing of what the
folders hold.
"""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorimer.config import home
from lorimer.errors import ConfigError, IntegrityError, LorimerError, StorageError
from lorimer.storage import canonical_json, copy_checked, digest_of_file, new_folder, receive_file, write_bytes

VARIABLE = "LORIMER_STORAGE"
MANIFEST = "manifest.json"
SINGLE = ".json"  # what single files end with, and folders do not
PART_PATTERN = re.compile(r"[^./\\\0][^/\\\0]*")
CLIENTS = ("botocore.", "aiobotocore.", "aiohttp.", "s3fs.")  # whose errors are the store's


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of a folder in the store."""

    sha256: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where `LORIMER_STORAGE` points."""

    url: str
    filesystem: Any
    """fsspec's; of S3, a shared folder, or whatever else its URL names."""
    root: str
    is_local: bool

    def key(self, path: Path, *parts: str) -> str:
        """What a path below the home folder is called in the store."""
        return "/".join((self.root, *path.relative_to(home()).parts, *parts))

    def read(self, key: str) -> bytes | None:
        """An object's bytes, None if there is none."""
        with explain_store_errors(self.url):
            try:
                found: bytes = self.filesystem.cat_file(key)
            except FileNotFoundError:
                return None
            return found

    def write(self, key: str, data: bytes) -> None:
        """An object, whole or not at all."""
        if self.is_local:
            write_bytes(Path(key), data)
            return
        with explain_store_errors(self.url):
            self.filesystem.pipe_file(key, data)

    def put(self, source: Path, key: str, sha256: str) -> None:
        """A file as an object, whole or not at all."""
        if self.is_local:
            copy_checked([source], Path(key), sha256)
            return
        with explain_store_errors(self.url):
            self.filesystem.put_file(str(source), key)

    def get(self, key: str, target: Path, sha256: str) -> None:
        """An object as a file, whole or not at all, and only if it has the stated SHA-256."""
        with receive_file(target) as temporary:
            with explain_store_errors(self.url):
                self.filesystem.get_file(key, str(temporary))
            if (found := digest_of_file(temporary)) != sha256:
                raise IntegrityError(
                    f"{key!r} in {self.url!r} has SHA-256 {found[:12]}, its manifest says {sha256[:12]}: restore it from a backup"
                )

    def manifest(self, folder: Path) -> dict[str, Entry] | None:
        """The files of a folder, by name; None if it was never published."""
        data = self.read(self.key(folder, MANIFEST))
        if data is None:
            return None
        try:
            files = {name: Entry(**entry) for name, entry in json.loads(data)["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise IntegrityError(
                f"{self.key(folder, MANIFEST)!r} in {self.url!r} cannot be read ({exc}): restore it from a backup"
            ) from exc
        if wrong := [name for name in files if not is_plain_name(name)]:
            raise IntegrityError(f"{self.key(folder, MANIFEST)!r} in {self.url!r} names {wrong[0][:80]!r}, which is no file of a folder")
        return files


def open_store() -> Store | None:
    """The store that `LORIMER_STORAGE` names, None if it names none.

    Raises:
        ConfigError: if it is no URL, or what it needs is not installed.
    """
    url = os.environ.get(VARIABLE, "").rstrip("/")
    if not url:
        return None
    if "://" not in url:
        raise ConfigError(f"{VARIABLE}={url!r} is no URL: write it as 's3://bucket/prefix' or 'file:///a/shared/folder'")
    try:
        from fsspec.core import url_to_fs

        options = {"use_listings_cache": False} if url.startswith("s3:") else {}
        filesystem, root = url_to_fs(url, **options)
    except ImportError as exc:
        raise ConfigError(f"{VARIABLE}={url!r} needs {exc.name or 'a package'}, which is not installed: pip install 'lorimer[s3]'") from exc
    except ValueError as exc:
        raise ConfigError(f"{VARIABLE}={url!r} names no store that is known here ({exc}): write it as 's3://bucket/prefix'") from exc
    return Store(url=url, filesystem=filesystem, root=root, is_local="file" in filesystem.protocol)


def publish(folder: Path) -> None:
    """Put a folder of the home into the store; what is there already is not sent again, and files others added stay.

    Raises:
        StorageError: if the store cannot be reached or written.
    """
    store = open_store() if folder.is_relative_to(home()) else None
    if store is None:
        return
    before = store.manifest(folder) or {}
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file() and path.name[0] != "."}
    entries = {name: Entry(sha256=digest_of_file(path), num_bytes=path.stat().st_size) for name, path in files.items()}
    if changed := {name: entry for name, entry in entries.items() if before.get(name) != entry}:
        for name, entry in changed.items():
            store.put(files[name], store.key(folder, entry.sha256), entry.sha256)
        described = {name: asdict(entry) for name, entry in {**before, **entries}.items()}
        store.write(store.key(folder, MANIFEST), canonical_json({"files": described}))


def fetch(folder: Path) -> bool:
    """Bring what the store has of a folder, and the home has not, into the home; returns whether the store has it.

    Raises:
        IntegrityError: if its bytes are not those its manifest names.
        StorageError: if the store cannot be reached.
    """
    store = open_store() if folder.is_relative_to(home()) else None
    files = store.manifest(folder) if store is not None else None
    if store is None or files is None:
        return False
    if folder.exists():
        _fill(store, folder, folder, files)
    else:
        with new_folder(folder) as temporary:
            _fill(store, folder, temporary, files)
    return True


def _fill(store: Store, folder: Path, target: Path, files: Mapping[str, Entry]) -> None:
    for name, entry in files.items():
        if not (target / name).exists():
            store.get(store.key(folder, entry.sha256), target / name, entry.sha256)


def publish_file(path: Path) -> None:
    """Put one small file of the home into the store, in the place of what is there."""
    if (store := open_store()) is not None:
        store.write(store.key(path), path.read_bytes())


def refresh_file(path: Path) -> None:
    """Make one small file of the home what the store has, where it has one: others may have changed it."""
    store = open_store()
    data = store.read(store.key(path)) if store is not None else None
    if data is not None and not (path.is_file() and path.read_bytes() == data):
        write_bytes(path, data)


def published_names(folder: Path, suffix: str) -> set[str]:
    """The names of single files directly in a folder of the store, without their suffix."""
    store = open_store()
    if store is None:
        return set()
    with explain_store_errors(store.url):
        try:
            found = store.filesystem.ls(store.key(folder), detail=False)
        except FileNotFoundError:
            return set()
    return {name.rpartition("/")[2].removesuffix(suffix) for name in found if name.endswith(suffix)}


def remove(path: Path) -> bool:
    """Take a folder or file out of the store, the manifest first; returns whether it was there. Versioned buckets keep what they keep.

    Raises:
        StorageError: if the store cannot be reached, or still has it afterwards.
    """
    store = open_store()
    if store is None:
        return False
    key = store.key(path)
    with explain_store_errors(store.url):
        found = _objects(store, key)
        for name in sorted(found, key=lambda name: not name.endswith(f"/{MANIFEST}")):
            store.filesystem.rm_file(name)
        left = _objects(store, key)
    if left:
        raise StorageError(
            f"{len(left)} objects of {key!r} are still in {store.url!r} after they were removed: check the rights of its keys"
        )
    return bool(found)


def _objects(store: Store, key: str) -> list[str]:
    """What lies below a key, or is it; some servers answer for a folder, emptied or not, as if it were an object."""
    below = [name for name in store.filesystem.find(key) if name.startswith(f"{key}/")]
    return below or ([key] if key.endswith(SINGLE) and store.filesystem.exists(key) else [])


def is_plain_name(name: str) -> bool:
    """Whether a name of somebody else's can be a file below a folder and nothing else."""
    return all(PART_PATTERN.fullmatch(part) for part in name.split("/"))


@contextlib.contextmanager
def explain_store_errors(url: str) -> Iterator[None]:
    """Turn what a store says into one sentence for the reader.

    Raises:
        StorageError: if it cannot be reached, has no such bucket, refuses the key, or the disk here is full.
    """
    try:
        yield
    except LorimerError:
        raise
    except Exception as exc:
        if not isinstance(exc, OSError) and not f"{type(exc).__module__}.".startswith(CLIENTS):
            raise
        if isinstance(exc, FileNotFoundError) and "bucket" not in str(exc):
            raise
        if getattr(exc, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"the disk is full while reading from {url!r}: free some space or point LORIMER_HOME elsewhere") from exc
        advice = "check its keys (AWS_ACCESS_KEY_ID, ...)" if isinstance(exc, PermissionError) else "check that it runs and has that bucket"
        raise StorageError(f"store {url!r} does not do what it is asked ({type(exc).__name__}: {exc}): {advice}, try again") from exc
