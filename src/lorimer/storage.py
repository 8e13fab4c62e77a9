"""Bytes on disk: atomic writes, digests, JSON Lines. The only file that opens files for writing; it knows nothing of what they mean."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from lorimer.errors import IntegrityError, StorageError

CHUNK_BYTES = 1 << 20
SECONDS_A_DAY = 86_400
SETTLING_SECONDS = 0.05


def canonical_json(value: Any) -> bytes:
    """One spelling for one value: sorted keys, no spaces, UTF-8; what digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON value's canonical form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one sentence for the reader.

    Raises:
        StorageError: for "no space left", "quota exceeded", "read-only" and "permission denied".
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"the disk is full while writing {str(path)!r}: free some space or point LORIMER_HOME at a larger disk"
            ) from exc
        if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StorageError(
                f"cannot write {str(path)!r} ({exc.strerror}): check its permissions or point LORIMER_HOME elsewhere"
            ) from exc
        raise


def require_free_bytes(path: Path, num_bytes: int, purpose: str) -> None:
    """Refuse before a large write that cannot fit, rather than in its middle.

    Raises:
        StorageError: if the file system that holds `path` has less than `num_bytes` free.
    """
    existing = path
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise StorageError(
            f"{purpose} needs {num_bytes / 1e6:.0f} MB in {str(path)!r} but only {free / 1e6:.0f} MB are free: "
            "free some space or point LORIMER_HOME at a larger disk"
        )


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file whole or not at all: temporary file beside it, flushed to disk, renamed over it."""
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for a JSON value a person may read."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """One JSON value a line, whole or not at all."""
    write_bytes(path, b"".join(canonical_json(row) + b"\n" for row in rows))


def read_json(path: Path) -> Any:
    """The value of a file that `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_jsonl(path: Path, row: Any) -> None:
    """Add one line in a single write, so that readers and other writers never see half of it."""
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, canonical_json(row) + b"\n")
        finally:
            os.close(descriptor)


def replace_lines(path: Path, keeps: Callable[[bytes], bool]) -> int:
    """Take lines out of a file that others may be adding to; returns how many. What is added meanwhile is carried over."""
    with path.open("rb") as old:
        lines = [line for line in old if line.strip()]
        kept = [line for line in lines if keeps(line)]
        if len(kept) == len(lines):
            return 0
        write_bytes(path, b"".join(kept))
        time.sleep(SETTLING_SECONDS)  # for whoever had the file open to write a line
        with explain_disk_errors(path), path.open("ab") as new:
            new.writelines(line for line in old if keeps(line))
    return len(lines) - len(kept)


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[bool]:
    """A lock among processes of this machine, given up when the process ends however it does; yields whether it was free."""
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[IO[bytes]]:
    """A file to which another process writes its log, at its end; readable by its owner alone."""
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
            yield file


def read_jsonl(path: Path) -> Iterator[Any]:
    """The values of a file that `write_jsonl` or `append_jsonl` wrote."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written piece by piece, in a folder that is not yet anyone's; it is on the disk at the end of the block."""
    with explain_disk_errors(path), path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A folder for what a long piece of work does not hold in memory; gone at its end, or a day after a process that was killed."""
    with explain_disk_errors(beside):
        beside.mkdir(parents=True, exist_ok=True)
        for left in beside.glob(".scratch.*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > SECONDS_A_DAY:
                    shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=beside, prefix=".scratch."))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears whole or not at all: fill the yielded one, it is renamed to `path` at the end.

    If `path` exists by then (another process was faster, or the content is the same), the new one is thrown away.
    """
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield temporary
            os.chmod(temporary, 0o755)
            try:
                os.rename(temporary, path)
            except OSError as exc:
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def receive_file(path: Path) -> Iterator[Path]:
    """A file that appears whole or not at all: let others fill the yielded one, it is renamed to `path` at the end."""
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file whole or not at all, without having all of it in memory."""
    with receive_file(path) as temporary, temporary.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def copy_checked(parts: Iterable[Path], target: Path, sha256: str) -> None:
    """Join `parts` into `target`, whole or not at all, and only if the result has the stated SHA-256.

    Raises:
        IntegrityError: if it has another.
    """
    with explain_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        digest = hashlib.sha256()
        try:
            with os.fdopen(descriptor, "wb") as file:
                for part in parts:
                    with part.open("rb") as source:
                        while chunk := source.read(CHUNK_BYTES):
                            digest.update(chunk)
                            file.write(chunk)
            if digest.hexdigest() != sha256:
                raise IntegrityError(
                    f"{target.name!r} has SHA-256 {digest.hexdigest()[:12]}..., expected {sha256[:12]}...: "
                    "the installed files are damaged or were changed; reinstall them"
                )
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)
