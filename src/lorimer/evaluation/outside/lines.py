"""JSON from strangers, line by line or whole: bounded, and every fault with its place."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorimer.errors import DataError

MAX_FILE_BYTES = 4_000_000_000
MAX_LINE_BYTES = 64_000_000
MAX_JSON_BYTES = 256_000_000


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSONL file; empty lines are left out.

    Raises:
        DataError: if it cannot be read, is larger than bounds, or a line is cut off or no object.
    """
    if _size_of(path) > MAX_FILE_BYTES:
        raise DataError(f"{path.name} has more than {MAX_FILE_BYTES:,} bytes: that is no result of one run")
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path.name}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{where} has more than {MAX_LINE_BYTES:,} bytes: that is no result of one item")
            if not line.strip():
                continue
            yield number, _object(line, where, is_cut=not line.endswith(b"\n"))


def read_object(path: Path) -> dict[str, Any]:
    """A file that is one JSON object.

    Raises:
        DataError: as `read_objects`.
    """
    if _size_of(path) > MAX_JSON_BYTES:
        raise DataError(f"{path.name} has more than {MAX_JSON_BYTES:,} bytes: that is no result of one run")
    return _object(path.read_bytes(), path.name, is_cut=False)


def object_of(data: bytes, where: str) -> dict[str, Any]:
    """The one JSON object that some bytes are; `where` they stood is named in the error.

    Raises:
        DataError: if they are something else.
    """
    return _object(data, where, is_cut=False)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as exc:
        raise DataError(f"{str(path)!r} cannot be read: {exc.strerror}") from exc


def _object(data: bytes, where: str, *, is_cut: bool) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        what = "is cut off: the run was interrupted while it wrote" if is_cut else f"is no JSON ({exc})"
        raise DataError(f"{where} {what}; run it again") from exc
    if not isinstance(value, dict):
        raise DataError(f"{where} is no JSON object, found {type(value).__name__}")
    return value
