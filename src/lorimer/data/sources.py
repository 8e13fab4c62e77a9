"""Files into Examples: JSON Lines, JSON lists and CSV; every line is an example or a named problem. It knows nothing of datasets."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lorimer.config import ColumnNames
from lorimer.data.example import Example
from lorimer.data.shapes import (
    LABELS,
    Shape,
    add_optional,
    kind,
    list_columns,
    read_example,
    recognise,
    shape_of_columns,
    shorten,
    unused_columns,
)
from lorimer.errors import ConfigError, DataError, NotFoundError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
CSV_SUFFIXES = (".csv", ".tsv")
BROKEN_UTF8 = "not valid UTF-8: save the file as UTF-8"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
BETWEEN_ELEMENTS = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowProblem:
    """A row that could not be read; it is in no split."""

    source: str
    """File and line, as `tickets.jsonl:12`."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """What one file held."""

    examples: tuple[Example, ...]
    shape: str
    """`chat messages`, `ShareGPT`, `prompt/completion`, `Alpaca` or `text`, with two answers to each prompt `preference` or
    `OpenAI preference`; `unknown` if no row could be read at all."""
    columns: Mapping[str, str]
    """Which column held which part of an example."""
    problems: tuple[RowProblem, ...]
    unused: Mapping[str, int]
    """Columns that nothing was made from, with the number of rows that have them."""


class RawRow(NamedTuple):
    """One row before its shape is known: keys and values, or the reason why it has none."""

    line: int
    value: dict[str, Any] | None
    reason: str = ""


def read_rows(path: Path, columns: ColumnNames | None = None, system: str | None = None) -> ReadResult:
    """Read a .jsonl, .ndjson, .json, .csv or .tsv file; the shape of its rows is recognised unless `columns` names it.

    Raises:
        NotFoundError: if there is no such file.
        ConfigError: for another kind of file, columns it does not have, or rows of no shape that is known.
        DataError: if it holds no rows, or is not text in UTF-8 at all.
    """
    raw = list(_read_raw(path))
    if not raw:
        raise DataError(f"{str(path)!r} holds no rows: give a file with at least one example")
    rows = [row for row in raw if row.value is not None]
    problems = [(row.line, row.reason) for row in raw if row.value is None]
    if not rows:
        return ReadResult(examples=(), shape="unknown", columns={}, problems=_locate(path, problems), unused={})
    shape = _find_shape(path, rows, columns, system)
    examples: list[Example] = []
    unused: Counter[str] = Counter()
    for line, value, _ in rows:
        assert value is not None
        try:
            examples.append(read_example(value, shape, system=system, source=f"{path.name}:{line}"))
        except DataError as exc:
            problems.append((line, str(exc)))
        else:
            unused.update(unused_columns(value, shape))
    parts = {str(part): column for part, column in shape.columns.items()}
    return ReadResult(examples=tuple(examples), shape=shape.name, columns=parts, problems=_locate(path, problems), unused=dict(unused))


def _locate(path: Path, problems: list[tuple[int, str]]) -> tuple[RowProblem, ...]:
    return tuple(RowProblem(source=f"{path.name}:{line}", reason=reason) for line, reason in sorted(problems))


def _find_shape(path: Path, rows: list[RawRow], columns: ColumnNames | None, system: str | None) -> Shape:
    """The file's shape: as named by `columns`, else that of the first row which has one."""
    keys = list(dict.fromkeys(key for row in rows for key in row.value or {}))
    shape = shape_of_columns(columns, keys, str(path)) if columns else _recognise_first(rows)
    if shape is None:
        raise ConfigError(
            f"{str(path)!r}: its columns {list_columns(keys)} are of no shape that is known: name them with "
            "`--prompt-column` and `--completion-column`, or `--text-column` (in a recipe, under `columns:`, which also takes `chosen` and "
            "`rejected`)"
        )
    label = next((key for key in LABELS if key in keys), None)
    if shape.name == "text" and label and not (columns and columns.text):
        raise ConfigError(
            f"{str(path)!r} has {list_columns(keys)}: to learn the label, name `--prompt-column text --completion-column {label}`; "
            "to learn the plain text alone, `--text-column text` (in a recipe, under `columns:`)"
        )
    if shape.name == "text" and system:
        raise ConfigError(f"{str(path)!r} holds plain text, which has no system message: leave the system text out")
    return add_optional(shape, keys)


def _recognise_first(rows: list[RawRow]) -> Shape | None:
    for row in rows:
        value = row.value or {}
        # exports that merge several shapes write null under the keys of the others
        shape = recognise([key for key, cell in value.items() if cell is not None]) or recognise(value)
        if shape:
            return shape
    return None


def _read_raw(path: Path) -> Iterator[RawRow]:
    suffix = path.suffix.lower()
    if not path.exists():
        raise NotFoundError(f"file {str(path)!r} does not exist")
    if not path.is_file() or suffix not in JSON_SUFFIXES + CSV_SUFFIXES:
        found = "is a folder" if path.is_dir() else f"ends in {suffix!r}"
        raise ConfigError(f"{str(path)!r} {found}: give files that end in {', '.join(JSON_SUFFIXES + CSV_SUFFIXES)}")
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as exc:
        raise DataError(f"{str(path)!r} cannot be read ({exc.strerror}): check its permissions") from exc
    if start.startswith(UTF16_MARKS):
        raise DataError(f"{str(path)!r} is in UTF-16: save it as UTF-8")
    if suffix in CSV_SUFFIXES:
        return _read_csv(path)
    is_list = suffix == ".json" and start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    return _read_json_list(path) if is_list else _read_json_lines(path)


def _read_json_lines(path: Path) -> Iterator[RawRow]:
    # surrogateescape: a broken byte spoils its own line, not those after it
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield _as_row(number, line, json.loads(line, object_pairs_hook=_unique_keys))
            except (ValueError, RecursionError) as exc:
                yield RawRow(number, None, f"not valid JSON ({_explain_json(exc)})")


def _read_json_list(path: Path) -> Iterator[RawRow]:
    """The elements of a list, each with the line it begins on.

    Raises:
        DataError: at a broken place, since nothing after it can be told apart.
    """
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys)
    position, line, counted = _skip_space(text, text.index("[") + 1), 1, 0
    closed = text[position : position + 1] == "]"
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = decoder.raw_decode(text, position)
            yield _as_row(line, text[position:end], value)
            after = _skip_space(text, end)
            closed = text[after : after + 1] == "]"
            if not closed and text[after : after + 1] != ",":
                raise json.JSONDecodeError("expecting ',' or ']'", text, after)
        except (ValueError, RecursionError) as exc:
            at = exc.lineno if isinstance(exc, json.JSONDecodeError) else line
            raise DataError(
                f"{path.name}:{at}: not valid JSON ({_explain_json(exc)}): correct it, the list cannot be read past it"
            ) from exc
        position = after if closed else _skip_space(text, after + 1)
    if text[position + 1 :].strip():
        raise DataError(f"{path.name}: there is text after the end of the list; correct it")


def _skip_space(text: str, position: int) -> int:
    match = BETWEEN_ELEMENTS.match(text, position)
    assert match is not None
    return match.end()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that stands twice: JSON readers keep the last one without a word."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {shorten(twice)!r} stands twice")
    return value


def _explain_json(exc: ValueError | RecursionError) -> str:
    if isinstance(exc, json.JSONDecodeError):
        return f"{exc.msg}, column {exc.colno}"
    return "nested too deep" if isinstance(exc, RecursionError) else str(exc)


def _as_row(line: int, text: str, value: Any) -> RawRow:
    if not _is_unicode(text):
        return RawRow(line, None, BROKEN_UTF8)
    # only an escape can bring a lone surrogate, which no UTF-8 file can hold again
    if "\\ud" in text.lower() and not _is_unicode(json.dumps(value, ensure_ascii=False)):
        return RawRow(line, None, "holds half of a surrogate pair (\\ud800 to \\udfff alone), which is no character")
    if not isinstance(value, dict) or not value:
        return RawRow(line, None, f"is not an object with keys, but {kind(value) if value != {} else 'an empty one'}")
    return RawRow(line, value)


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: undecoded bytes and lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Cursor:
    """Lines one by one, from wherever `position` was set to."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.position = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.position >= len(self.lines):
            raise StopIteration
        self.position += 1
        return self.lines[self.position - 1]


def _read_csv(path: Path) -> Iterator[RawRow]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = list(file)
    first = next((line for line in lines if line.strip()), "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else next((mark for mark in ",;\t" if mark in first), ",")
    rows = _read_cells(lines, delimiter)
    header = _check_header(path, next(rows, None))
    for line, cells, reason in rows:
        if cells is None:
            yield RawRow(line, None, reason)
        elif len(cells) != len(header):
            yield RawRow(line, None, f"has {len(cells)} cell(s) where the header has {len(header)}")
        else:
            yield RawRow(line, dict(zip(header, cells, strict=True)))


class _Cells(NamedTuple):
    line: int
    cells: list[str] | None
    reason: str = ""


def _read_cells(lines: list[str], delimiter: str) -> Iterator[_Cells]:
    """The rows of a CSV text that are not blank, each with the line it begins on."""
    cursor = _Cursor(lines)
    reader = csv.reader(cursor, delimiter=delimiter, strict=True)
    while True:
        before = cursor.position
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            # a quote that is never closed swallows the rows after it: go back and read on with the next line
            cursor.position = before + 1
            yield _Cells(before + 1, None, f"not valid CSV ({exc}): is a quote not closed or not doubled?")
            continue
        if not _is_unicode("".join(cells)):
            yield _Cells(before + 1, None, BROKEN_UTF8)
        elif len(cells) > 1 or "".join(cells).strip():
            yield _Cells(before + 1, cells)


def _check_header(path: Path, row: _Cells | None) -> list[str]:
    """The column names.

    Raises:
        DataError: if there are none, or one stands twice.
    """
    if row is None:
        raise DataError(f"{str(path)!r} holds no rows: give a file with at least one example")
    if row.cells is None:
        raise DataError(f"{path.name}:{row.line}: the header is {row.reason}")
    header = [cell.strip() for cell in row.cells]
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(f"{path.name}:{row.line}: the header names {list_columns(twice)} more than once; rename all but one")
    return header
