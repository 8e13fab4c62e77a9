"""Raw rows into Examples: the shape of a source found, and its chunks judged row by row, here or in another process."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from lorimer.config import ColumnNames, Shingling, home
from lorimer.data.example import Example
from lorimer.data.features import Collector, Features, Vocabularies
from lorimer.data.raw import Chunk, RawRow
from lorimer.data.rules import LeftOut, RowRule, Tally, judge_row
from lorimer.data.shapes import (
    LABELS,
    Part,
    Shape,
    add_optional,
    list_columns,
    read_example,
    read_extras,
    recognise,
    shape_of_columns,
    unused_columns,
)
from lorimer.data.sources import Source, open_sources
from lorimer.data.subjects import subject_keys
from lorimer.database import open_database
from lorimer.errors import ConfigError, DataError

ROWS_PEEKED = 2_000
REQUEST_LOG_KEYS = {"adapter", "num_prompt_tokens", "latency_seconds"}  # of serving's own log, which holds nothing to learn from
UNREADABLE = "skip_bad_rows"
"""The name under which rows that could not be read are counted."""


class RowProblem(NamedTuple):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How rows are to be read, whatever source they come from."""

    columns: ColumnNames | None = None
    system: str | None = None
    default_tags: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    """For rows whose column says none."""
    consent: str = ""
    seed: int = 0
    shingling: Shingling = field(default_factory=Shingling)
    keep_subjects: bool = False
    """Whether a column names whom rows are about, for whom keys are kept in the database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All that is needed to judge a chunk of one source; it can be sent to another process."""

    name: str
    shape: Shape
    asked: Asked
    rules: tuple[RowRule, ...]
    known_keys: frozenset[str]


@dataclass(slots=True, kw_only=True)
class JudgedChunk:
    """What became of a chunk's rows: each is a line, or a problem, or left out by a rule."""

    lines: bytes
    features: Features
    words: Vocabularies
    num_read: int
    num_examples: int
    """Rows that were understood, before any rule."""
    problems: list[RowProblem]
    left_out: list[LeftOut]
    tallies: dict[str, Tally]
    languages: Counter[str]
    """Tags before any rule; untagged rows as an empty text."""
    unused: Counter[str]
    new_keys: set[str]
    """Columns that were not there in the rows from which the shape was found."""


def find_shape(source: Source, asked: Asked, peek: int | None = ROWS_PEEKED) -> tuple[Shape | None, frozenset[str]]:
    """The source's shape, as named by the columns or that of the first row which has one, and the keys it was found from.

    It looks at the first rows, or at all with `peek=None`. A source without any row that can be read has no shape.

    Raises:
        ConfigError: for columns it does not have, or rows of no shape that is known.
        DataError: if it holds no rows.
    """
    keys, first, num_rows, is_whole = _peek(source, peek)
    if not num_rows:
        raise DataError(f"{source_path(source)!r} holds no rows: give a file with at least one example")
    if not keys and is_whole:
        return None, frozenset()
    try:
        return shape_from(source, list(keys), first, asked), frozenset(keys)
    except ConfigError:
        if is_whole:
            raise
    keys, first, _, _ = _peek(source, None)  # perhaps a later row has the column that was missed
    return (shape_from(source, list(keys), first, asked) if keys else None), frozenset(keys)


def shape_from(source: Source, keys: list[str], first: Shape | None, asked: Asked) -> Shape:
    """The shape of rows that have these keys, where the first row that has a shape has `first`.

    Raises:
        ConfigError: if there is none, or it does not go with what was asked.
    """
    name, columns = source_path(source), asked.columns
    # a column for a licence or a subject says nothing of the shape
    shape = shape_of_columns(columns, keys, name) or first if columns else first
    if shape is None and set(keys) >= REQUEST_LOG_KEYS:
        raise ConfigError(f"{name!r} is a log of requests: it says who answered and how long that took, never what was said")
    if shape is None:
        raise ConfigError(
            f"{name!r}: its columns {list_columns(keys)} are of no shape that is known: name them with "
            "`--prompt-column` and `--completion-column`, or `--text-column` (in a recipe, under `columns:`, which also takes `chosen` and "
            "`rejected`)"
        )
    label = next((key for key in LABELS if key in keys), None)
    if shape.name == "text" and label and not (columns and columns.text):
        raise ConfigError(
            f"{name!r} has {list_columns(keys)}: to learn the label, name `--prompt-column text --completion-column {label}`; "
            "to learn the plain text alone, `--text-column text` (in a recipe, under `columns:`)"
        )
    if shape.name == "text" and asked.system:
        raise ConfigError(f"{name!r} holds plain text, which has no system message: leave the system text out")
    return add_optional(shape, keys)


def source_path(source: Source) -> str:
    """How a message names a source: by its path, where it has one."""
    return str(getattr(source, "path", source.name))


def judge_chunk(chunk: Chunk, reading: Reading) -> JudgedChunk:
    """Read, check and clean a chunk's rows; in the order of their lines."""
    collector = Collector(reading.asked.seed, reading.asked.shingling)
    problems, left_out, tallies = list[RowProblem](), list[LeftOut](), dict[str, Tally]()
    languages, unused, new_keys = Counter[str](), Counter[str](), set[str]()
    num_read = num_examples = 0
    for row, example, group in _examples(chunk, reading):
        num_read += 1
        if isinstance(example, str):
            problems.append(RowProblem(f"{reading.name}:{row.line}", example))
            continue
        assert row.value is not None
        num_examples += 1
        unused.update(unused_columns(row.value, reading.shape))
        new_keys.update(row.value.keys() - reading.known_keys)
        languages[example.tags.get("language", "")] += 1
        judged = judge_row(example, reading.rules, tallies)
        if judged.example is None:
            left_out.append(LeftOut(example.source, judged.rule, judged.reason))
        else:
            collector.add(judged.example, group)
    return JudgedChunk(
        lines=b"".join(line + b"\n" for line in collector.lines),
        features=collector.features(),
        words=collector.words,
        num_read=num_read,
        num_examples=num_examples,
        problems=problems,
        left_out=left_out,
        tallies=tallies,
        languages=languages,
        unused=unused,
        new_keys=new_keys,
    )


def read_rows(path: Path, columns: ColumnNames | None = None, system: str | None = None) -> ReadResult:
    """Read one file whole; the shape of its rows is recognised unless `columns` names it.

    Raises:
        NotFoundError: if there is no such file.
        ConfigError: for another kind of file, columns it does not have, or rows of no shape that is known.
        DataError: if it holds no rows, or is not text in UTF-8 at all.
    """
    sources = open_sources([path]).sources
    if len(sources) != 1:
        raise ConfigError(f"{str(path)!r} holds {len(sources)} files: give one of them")
    source = sources[0]
    asked = Asked(columns=columns, system=system)
    shape, keys = find_shape(source, asked)
    rows = [row for chunk in source.chunks() for row in chunk.rows()]
    if shape is None:
        problems = tuple(RowProblem(f"{source.name}:{row.line}", row.reason) for row in rows)
        return ReadResult(examples=(), shape="unknown", columns={}, problems=problems, unused={})
    if any(row.value.keys() - keys for row in rows if row.value):
        shape, _ = find_shape(source, asked, peek=None)
        assert shape is not None
    examples, found, unused = list[Example](), list[RowProblem](), Counter[str]()
    for row in rows:
        example, _ = _read(row, shape, asked, source.name)
        if isinstance(example, str):
            found.append(RowProblem(f"{source.name}:{row.line}", example))
        else:
            examples.append(example)
            unused.update(unused_columns(row.value or {}, shape))
    parts = {str(part): column for part, column in shape.columns.items()}
    return ReadResult(examples=tuple(examples), shape=shape.name, columns=parts, problems=tuple(found), unused=dict(unused))


def _peek(source: Source, num: int | None) -> tuple[dict[str, None], Shape | None, int, bool]:
    """The keys of the first rows (or of all), the shape of the first that has one, how many rows that were, and whether these are all."""
    keys, first, num_rows = dict[str, None](), None, 0
    for chunk in source.chunks():
        for row in chunk.rows():
            if num is not None and num_rows >= num and keys:
                return keys, first, num_rows, False
            num_rows += 1
            value: Mapping[str, Any] = row.value or {}
            keys.update(dict.fromkeys(value))
            if first is None and value:
                # exports that merge several shapes write null under the keys of the others
                first = recognise([key for key, cell in value.items() if cell is not None]) or recognise(value)
    return keys, first, num_rows, True


def _examples(chunk: Chunk, reading: Reading) -> Iterator[tuple[RawRow, Example | str, str]]:
    """Each row with its example, or what is wrong with it, and its group; all subjects of a chunk get their keys in one transaction."""
    found = list[tuple[RawRow, Example | str, Mapping[Part, str]]]()
    for row in chunk.rows():
        example, extras = _read(row, reading.shape, reading.asked, reading.name)
        found.append((row, example, extras))
    subjects = {extras["subject"] for _, _, extras in found if extras.get("subject")}
    keys = _keys_of(subjects) if reading.asked.keep_subjects else {}
    for row, example, extras in found:
        if not isinstance(example, str) and (subject := extras.get("subject")):
            example = replace(example, subject=keys[subject])
        yield row, example, extras.get("group", "")


def _read(row: RawRow, shape: Shape, asked: Asked, name: str) -> tuple[Example | str, Mapping[Part, str]]:
    """The row's example, or what is wrong with it; and what its columns say beside."""
    if row.value is None:
        return row.reason, {}
    try:
        extras = read_extras(row.value, shape)
        example = read_example(row.value, shape, system=asked.system, source=f"{name}:{row.line}")
    except DataError as exc:
        return str(exc), {}
    licence, consent = extras.get("licence") or asked.licence, extras.get("consent") or asked.consent
    if asked.default_tags or licence or consent:
        example = replace(example, tags={**asked.default_tags, **example.tags}, licence=licence, consent=consent)
    return example, extras


_engines: dict[str, Any] = {}  # one a process and home: workers open their own


def _keys_of(subjects: set[str]) -> dict[str, str]:
    place = os.environ.get("LORIMER_DATABASE") or str(home())
    if place not in _engines:
        _engines[place] = open_database()
    return subject_keys(_engines[place], subjects)
