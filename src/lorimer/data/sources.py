"""Where rows come from: files and folders opened as sources, and JSON Lines, JSON lists and CSV read in chunks. It knows nothing of shapes.

A source is read from front to back in bounded memory, as often as asked; every row it holds comes out as values or as a named problem.
"""

import csv
import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from lorimer.data.raw import BROKEN_UTF8, Chunk, CsvRows, JsonLines, RawRow, ReadyRows, as_row, explain_json, is_unicode, unique_keys
from lorimer.data.shapes import list_columns
from lorimer.errors import ConfigError, DataError, NotFoundError
from lorimer.storage import digest_of_file

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
CSV_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIXES = (".parquet",)
SUFFIXES = (*JSON_SUFFIXES, *CSV_SUFFIXES, *PARQUET_SUFFIXES)
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
UTF8_MARK = b"\xef\xbb\xbf"
BETWEEN_ELEMENTS = re.compile(r"[ \t\n\r]*")
BLOCK_BYTES = 1 << 20
ROWS_A_CHUNK = 4_000
MAX_LINE_BYTES = 32 << 20
"""A longer line is a problem, not a row: it would not fit any base either."""


class Source(Protocol):
    """Something that holds rows."""

    @property
    def name(self) -> str:
        """What stands before the line in an example's `source`; without a folder, so that digests are equal on every machine."""

    @property
    def num_bytes(self) -> int | None:
        """How much there is to read, if it is known before."""

    def chunks(self) -> Iterator[Chunk]:
        """All rows, from the first.

        Raises:
            DataError: if it cannot be read at all, or not past some place.
        """

    def describe(self) -> dict[str, Any]:
        """What the card says of it; called once it has been read."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """One file of JSON or CSV."""

    path: Path
    name: str

    @property
    def num_bytes(self) -> int | None:
        """The file's size."""
        return self.path.stat().st_size

    def chunks(self) -> Iterator[Chunk]:
        """See `Source.chunks`."""
        start = _first_bytes(self.path)
        suffix = self.path.suffix.lower()
        if suffix in CSV_SUFFIXES:
            return _read_csv(self.path, self.name)
        is_list = suffix == ".json" and start.removeprefix(UTF8_MARK).lstrip().startswith(b"[")
        return _read_json_list(self.path, self.name) if is_list else _read_json_lines(self.path)

    def describe(self) -> dict[str, Any]:
        """See `Source.describe`."""
        return {"file": self.name, "sha256": digest_of_file(self.path), "num_bytes": self.path.stat().st_size}


class Opened(NamedTuple):
    """The sources that paths stand for."""

    sources: tuple[Source, ...]
    test: tuple[Source, ...]
    """What a Hugging Face dataset calls its test split."""
    not_read: tuple[str, ...]
    """Files in the folders that hold no rows, as far as their names tell."""


def open_sources(paths: Sequence[Path]) -> Opened:
    """The sources in files and folders; a folder's files in the order of their names.

    Raises:
        NotFoundError: if a path is not there.
        ConfigError: for a file of another kind, or a folder without any that can be read.
    """
    from lorimer.data.tables import is_hugging_face, open_hugging_face, open_parquet  # not imported where no table is read

    sources, test, not_read = list[Source](), list[Source](), list[str]()
    for path in paths:
        if path.is_dir() and is_hugging_face(path):
            opened = open_hugging_face(path)
            sources += opened.sources
            test += opened.test
        elif path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.is_file() and not _is_hidden(each.relative_to(path)))
            files = [each for each in inside if each.suffix.lower() in SUFFIXES]
            if not files:
                raise ConfigError(f"folder {str(path)!r} holds no file that ends in {', '.join(SUFFIXES)}, and is no saved dataset either")
            not_read += [str(each.relative_to(path)) for each in inside if each not in files]
            names = {each: each.relative_to(path).as_posix() for each in files}
            sources += [open_parquet(each, names[each]) if _is_parquet(each) else FileSource(each, names[each]) for each in files]
        else:
            _check_file(path)
            sources.append(open_parquet(path, path.name) if _is_parquet(path) else FileSource(path, path.name))
    return Opened(tuple(sources), tuple(test), tuple(not_read))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in PARQUET_SUFFIXES


def _check_file(path: Path) -> None:
    suffix = path.suffix.lower()
    if not path.exists():
        raise NotFoundError(f"file {str(path)!r} does not exist")
    if not path.is_file() or suffix not in SUFFIXES:
        found = f"ends in {suffix!r}" if path.is_file() else "is no file"
        raise ConfigError(f"{str(path)!r} {found}: give files that end in {', '.join(SUFFIXES)}, or a folder of them")


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as exc:
        raise DataError(f"{str(path)!r} cannot be read ({exc.strerror}): check its permissions") from exc
    if start.startswith(UTF16_MARKS):
        raise DataError(f"{str(path)!r} is in UTF-16: save it as UTF-8")
    return start


def _read_json_lines(path: Path) -> Iterator[Chunk]:
    line, kept = 1, b""
    with path.open("rb") as file:
        if file.read(len(UTF8_MARK)) != UTF8_MARK:
            file.seek(0)
        while block := file.read(BLOCK_BYTES):
            whole, newline, rest = block.rpartition(b"\n")
            if newline:
                data = kept + whole
                yield JsonLines(line, data)
                line, kept = line + data.count(b"\n") + 1, rest
            elif len(kept) + len(block) > MAX_LINE_BYTES:
                num_bytes, kept = _skip_line(file, len(kept) + len(block))
                reason = f"is longer than {MAX_LINE_BYTES >> 20} MB ({num_bytes / 1e6:,.0f} MB): no row is that long"
                yield ReadyRows([RawRow(line, None, reason)])
                line += 1
            else:
                kept += block
    if kept:
        yield JsonLines(line, kept)


def _skip_line(file: IO[bytes], num_bytes: int) -> tuple[int, bytes]:
    """Go past the end of a line without holding it: its length, and what follows it in the last block that was read."""
    while block := file.read(BLOCK_BYTES):
        inside, newline, rest = block.partition(b"\n")
        num_bytes += len(inside)
        if newline:
            # the rest may hold whole lines: read it again with what follows
            file.seek(-len(rest), 1)
            break
    return num_bytes, b""


def _read_json_list(path: Path, name: str) -> Iterator[Chunk]:
    """The elements of a list, each with the line it begins on.

    Raises:
        DataError: at a broken place, since nothing after it can be told apart.
    """
    rows: list[RawRow] = []
    for row in _list_elements(path, name):
        rows.append(row)
        if len(rows) == ROWS_A_CHUNK:
            yield ReadyRows(rows)
            rows = []
    if rows:
        yield ReadyRows(rows)


class _Window:
    """The part of a text file that is being looked at."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.text = ""
        self.is_whole = False
        self.line = 1
        """The line on which `text` begins."""

    def more(self) -> bool:
        """Read on: as much again as there is, so that a long element is not tried too often. False at the end."""
        if self.is_whole or len(self.text) > MAX_LINE_BYTES:
            return False
        block = self.file.read(max(BLOCK_BYTES, len(self.text)))
        self.text += block
        self.is_whole = not block
        return bool(block)

    def drop(self, position: int) -> None:
        """Forget what was read up to there."""
        self.line += self.text.count("\n", 0, position)
        self.text = self.text[position:]

    def skip_space(self, position: int) -> int:
        """The next place that is not white space."""
        while True:
            match = BETWEEN_ELEMENTS.match(self.text, position)
            assert match is not None
            if match.end() < len(self.text) or not self.more():
                return match.end()


def _list_elements(path: Path, name: str) -> Iterator[RawRow]:
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        window = _Window(file)
        position = window.skip_space(window.skip_space(0) + 1)
        closed = window.text[position : position + 1] == "]"
        while not closed:
            window.drop(position)
            try:
                value, end, after = _element(window, decoder)
            except (ValueError, RecursionError) as exc:
                at = window.line + (exc.lineno - 1 if isinstance(exc, json.JSONDecodeError) else 0)
                raise DataError(f"{name}:{at}: not valid JSON ({explain_json(exc)}): correct it, the list cannot be read past it") from exc
            yield as_row(window.line, window.text[:end], value)
            closed = window.text[after] == "]"
            position = after if closed else window.skip_space(after + 1)
        end = window.skip_space(position + 1)
        if end < len(window.text):
            raise DataError(f"{name}: there is text after the end of the list; correct it")


def _element(window: _Window, decoder: json.JSONDecoder) -> tuple[Any, int, int]:
    """The value at the window's beginning, where it ends, and where the comma or bracket after it stands.

    Raises:
        ValueError, RecursionError: if there is no value, or nothing that may follow it.
    """
    while True:
        seen = len(window.text)
        try:
            value, end = decoder.raw_decode(window.text)
            after = window.skip_space(end)
            if window.text[after : after + 1] not in ("]", ","):
                raise json.JSONDecodeError("expecting ',' or ']'", window.text, after)
            return value, end, after
        except json.JSONDecodeError:
            if len(window.text) == seen and not window.more():  # perhaps it was only cut off
                raise


class _Lines:
    """Lines one by one; those since a marked place can be read again."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._again: deque[str] = deque()
        self._since: list[str] = []
        self.num_read = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._since.append(line)
        self.num_read += 1
        return line

    def mark(self) -> None:
        """A row begins here."""
        self._since.clear()

    def back_to_second(self) -> None:
        """Read again all lines since the mark but the first."""
        self._again.extendleft(reversed(self._since[1:]))
        self.num_read -= len(self._since) - 1
        self._since.clear()


def _read_csv(path: Path, name: str) -> Iterator[Chunk]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = next((line for line in file if line.strip()), "")
        delimiter = "\t" if path.suffix.lower() == ".tsv" else next((mark for mark in ",;\t" if mark in first), ",")
        file.seek(0)
        rows = _read_cells(file, delimiter)
        header = _check_header(path, name, next(rows, None))
        found: list[tuple[int, list[str] | None, str]] = []
        for row in rows:
            found.append(row)
            if len(found) == ROWS_A_CHUNK:
                yield CsvRows(header, found)
                found = []
        if found:
            yield CsvRows(header, found)


class _Cells(NamedTuple):
    line: int
    cells: list[str] | None
    reason: str = ""


def _read_cells(file: Iterable[str], delimiter: str) -> Iterator[_Cells]:
    """The rows of a CSV text that are not blank, each with the line it begins on."""
    lines = _Lines(file)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        before = lines.num_read
        lines.mark()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            # a quote that is never closed swallows the rows after it: go back and read on with the next line
            lines.back_to_second()
            yield _Cells(before + 1, None, f"not valid CSV ({exc}): is a quote not closed or not doubled?")
            continue
        if not is_unicode("".join(cells)):
            yield _Cells(before + 1, None, BROKEN_UTF8)
        elif len(cells) > 1 or "".join(cells).strip():
            yield _Cells(before + 1, cells)


def _check_header(path: Path, name: str, row: _Cells | None) -> list[str]:
    """The column names.

    Raises:
        DataError: if there are none, or one stands twice.
    """
    if row is None:
        raise DataError(f"{str(path)!r} holds no rows: give a file with at least one example")
    if row.cells is None:
        raise DataError(f"{name}:{row.line}: the header is {row.reason}")
    header = [cell.strip() for cell in row.cells]
    check_unique(header, f"{name}:{row.line}: the header")
    return header


def check_unique(header: Sequence[str], where: str) -> None:
    """Refuse a table with two columns of one name.

    Raises:
        DataError: naming them.
    """
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(f"{where} names {list_columns(twice)} more than once; rename all but one")
