"""Rows before their shape is known, in chunks small enough to hand to another process; each chunk opens itself there."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from lorimer.data.shapes import kind, shorten

BROKEN_UTF8 = "not valid UTF-8: save the file as UTF-8"
LONE_SURROGATE = "holds half of a surrogate pair (\\ud800 to \\udfff alone), which is no character"


class RawRow(NamedTuple):
    """One row before its shape is known: keys and values, or the reason why it has none."""

    line: int
    value: dict[str, Any] | None
    reason: str = ""


class Chunk(Protocol):
    """Some rows of one source, in order."""

    def rows(self) -> Iterator[RawRow]:
        """Take them apart."""


class ReadyRows(NamedTuple):
    """Rows that had to be taken apart to be found."""

    found: Sequence[RawRow]

    def rows(self) -> Iterator[RawRow]:
        """As they are."""
        return iter(self.found)


class JsonLines(NamedTuple):
    """Whole lines of a JSON Lines file."""

    first_line: int
    data: bytes

    def rows(self) -> Iterator[RawRow]:
        """One a line that is not blank."""
        for number, line in enumerate(self.data.split(b"\n"), self.first_line):
            if line and not line.isspace():
                row = _parse_line(number, line)
                if row is not None:
                    yield row


class CsvRows(NamedTuple):
    """Cells under one header."""

    header: Sequence[str]
    found: Sequence[tuple[int, list[str] | None, str]]
    """Line, cells or None, reason."""

    def rows(self) -> Iterator[RawRow]:
        """One a row; too many or too few cells are a problem, since nobody knows which is which."""
        for line, cells, reason in self.found:
            if cells is None:
                yield RawRow(line, None, reason)
            elif len(cells) != len(self.header):
                yield RawRow(line, None, f"has {len(cells)} cell(s) where the header has {len(self.header)}")
            else:
                yield RawRow(line, dict(zip(self.header, cells, strict=True)))


def _parse_line(number: int, line: bytes) -> RawRow | None:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return RawRow(number, None, BROKEN_UTF8)
    if text.isspace():
        return None
    try:
        return as_row(number, text, json.loads(text, object_pairs_hook=unique_keys))
    except (ValueError, RecursionError) as exc:
        return RawRow(number, None, f"not valid JSON ({explain_json(exc)})")


def as_row(line: int, text: str, value: Any) -> RawRow:
    """A JSON value as a row, if it is one; `text` is how it was spelled."""
    if not is_unicode(text):
        return RawRow(line, None, BROKEN_UTF8)
    # only an escape can bring a lone surrogate, which no UTF-8 file can hold again
    if "\\u" in text and "\\ud" in text.lower() and not is_unicode(json.dumps(value, ensure_ascii=False)):
        return RawRow(line, None, LONE_SURROGATE)
    if not isinstance(value, dict) or not value:
        return RawRow(line, None, f"is not an object with keys, but {kind(value) if value != {} else 'an empty one'}")
    return RawRow(line, value)


def as_table_row(line: int, value: dict[str, Any]) -> RawRow:
    """A row of a table or a query, whose texts may hold what UTF-8 cannot."""
    if any(isinstance(cell, str) and not cell.isascii() and not is_unicode(cell) for cell in value.values()):
        return RawRow(line, None, BROKEN_UTF8)
    return RawRow(line, value)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that stands twice: JSON readers keep the last one without a word.

    Raises:
        ValueError: naming it.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {shorten(twice)!r} stands twice")
    return value


def explain_json(exc: ValueError | RecursionError) -> str:
    """What is wrong with a JSON text, shortly."""
    if isinstance(exc, json.JSONDecodeError):
        return f"{exc.msg}, column {exc.colno}"
    return "nested too deep" if isinstance(exc, RecursionError) else str(exc)


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: undecoded bytes and lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
