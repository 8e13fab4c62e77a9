"""Rows on their way into a dataset: on disk as they will be kept, one line each, and in memory only their features."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lorimer.data.example import Example, example_from_json
from lorimer.data.features import Collector, Features, Vocabularies, asked_text, join, new_vocabularies
from lorimer.data.reading import UNREADABLE, Asked, JudgedChunk, Reading, RowProblem, find_shape
from lorimer.data.rules import LeftOut, RowRule, Tally
from lorimer.data.sources import Source
from lorimer.data.workers import Workers
from lorimer.storage import canonical_json

NUM_PROBLEMS_KEPT = 100
Rows = npt.NDArray[np.int64]
Progress = Callable[[str, int], None]
"""Called with what is being done and how many rows that step has done so far."""


@dataclass(slots=True, kw_only=True)
class SourceRead:
    """What one source held, for the card."""

    source: Source
    use: str
    shape: str
    columns: dict[str, str]
    unused: Counter[str]
    num_read: int
    num_examples: int
    num_problems: int


class Staging:
    """All rows that row rules have kept, in order, and an account of those they have not."""

    def __init__(self, folder: Path, rows: IO[bytes], left_out: IO[bytes], progress: Progress) -> None:
        self._path = folder / "rows.jsonl"
        self._rows = rows
        self._left_out = left_out
        self._progress = progress
        self._parts: list[Features] = []
        self.words: Vocabularies = new_vocabularies()
        self.read: list[SourceRead] = []
        self.problems: list[RowProblem] = []
        """The first of them."""
        self.tallies: dict[str, dict[str, Tally]] = {}
        """By use, by rule."""
        self.languages: dict[str, Counter[str]] = {}
        self.num_read = 0
        self.num_left_out: Counter[str] = Counter()
        """Rows that are in no split, by the rule that took them."""
        self.uses: list[tuple[str, int]] = []
        """How many staged rows each source gave, in order."""

    def add(self, source: Source, use: str, asked: Asked, rules: Sequence[RowRule], workers: Workers) -> None:
        """Read a source to its end; again from its beginning if a late column changes what its rows are.

        Raises:
            ConfigError, DataError: as `find_shape` and the source's `chunks`.
        """
        shape, keys = find_shape(source, asked)
        if shape is None:
            self._add_unreadable(source, use)
            return
        before = self._rows.tell()
        judged, late = self._judge(
            source, Reading(name=source.name, shape=shape, asked=asked, rules=tuple(rules), known_keys=keys), workers
        )
        if late:
            whole, keys = find_shape(source, asked, peek=None)
            assert whole is not None
            if whole != shape:
                self._rows.seek(before)
                self._rows.truncate()
                shape = whole
                reading = Reading(name=source.name, shape=shape, asked=asked, rules=tuple(rules), known_keys=keys)
                judged, _ = self._judge(source, reading, workers)
        self._take(source, use, shape.name, {str(part): column for part, column in shape.columns.items()}, judged)

    def _judge(self, source: Source, reading: Reading, workers: Workers) -> tuple[list[JudgedChunk], bool]:
        """Write a source's rows, as one reading of it has them; whether columns came up that the reading does not know."""
        judged, num_read = list[JudgedChunk](), self.num_read
        for chunk in workers.apply(source.chunks(), reading):
            self._rows.write(chunk.lines)
            chunk.lines = b""
            judged.append(chunk)
            num_read += chunk.num_read
            self._progress(f"reading {source.name}", num_read)
        return judged, any(chunk.new_keys for chunk in judged)

    def _add_unreadable(self, source: Source, use: str) -> None:
        """A source of problems alone."""
        problems = [RowProblem(f"{source.name}:{row.line}", row.reason) for chunk in source.chunks() for row in chunk.rows()]
        self.read.append(
            SourceRead(
                source=source,
                use=use,
                shape="unknown",
                columns={},
                unused=Counter(),
                num_read=len(problems),
                num_examples=0,
                num_problems=len(problems),
            )
        )
        self.uses.append((use, 0))
        self.num_read += len(problems)
        self._note_problems(problems)

    def _take(self, source: Source, use: str, shape: str, columns: dict[str, str], judged: Sequence[JudgedChunk]) -> None:
        """Count what became of a source's rows."""
        tallies = self.tallies.setdefault(use, {})
        unused, num_problems, num_rows = Counter[str](), 0, 0
        for chunk in judged:
            for rule, tally in chunk.tallies.items():
                tallies.setdefault(rule, Tally()).merge(tally)
            unused += chunk.unused
            self.languages.setdefault(use, Counter()).update(chunk.languages)
            self._note_problems(chunk.problems)
            self.leave_out(chunk.left_out)
            num_problems += len(chunk.problems)
            num_rows += len(chunk.features)
            for name in ("language", "licence", "consent"):
                numbers = getattr(chunk.features, name)
                setattr(chunk.features, name, getattr(self.words, name).renumber(numbers, getattr(chunk.words, name)))
            self._parts.append(chunk.features)
        num_read = sum(chunk.num_read for chunk in judged)
        self.num_read += num_read
        self.uses.append((use, num_rows))
        self.read.append(
            SourceRead(
                source=source,
                use=use,
                shape=shape,
                columns=columns,
                unused=unused,
                num_read=num_read,
                num_examples=sum(chunk.num_examples for chunk in judged),
                num_problems=num_problems,
            )
        )

    def leave_out(self, rows: Iterable[LeftOut]) -> None:
        """Write down that rows are in no split, and why."""
        for row in rows:
            self.num_left_out[row.rule] += 1
            self._left_out.write(canonical_json(row._asdict()) + b"\n")

    def _note_problems(self, problems: Sequence[RowProblem]) -> None:
        self.problems += problems[: NUM_PROBLEMS_KEPT - len(self.problems)]
        self.leave_out(LeftOut(problem.source, UNREADABLE, problem.reason) for problem in problems)

    def finish(self) -> "Staged":
        """No more rows come."""
        self._rows.flush()
        features = join(self._parts) if self._parts else _no_features()
        self._parts = []
        is_test = np.repeat(np.array([use == "test" for use, _ in self.uses], np.bool_), [num for _, num in self.uses])
        return Staged(self._path, features, self.words, is_test)


class Staged:
    """The rows that were staged: their features, and the rows themselves when asked for."""

    def __init__(self, path: Path, features: Features, words: Vocabularies, is_test: npt.NDArray[np.bool_]) -> None:
        self.features = features
        self.words = words
        self.is_test = is_test
        """Whether a row came from a file that is the test split."""
        self._path = path
        self._ends = np.cumsum(features.num_bytes)

    def __len__(self) -> int:
        return len(self.features)

    def values(self, rows: Rows) -> Iterator[Mapping[str, Any]]:
        """Rows as they are on disk, in the order asked for."""
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            for row in rows.tolist():
                num_bytes = int(self.features.num_bytes[row])
                yield json.loads(os.pread(descriptor, num_bytes, int(self._ends[row]) - num_bytes))
        finally:
            os.close(descriptor)

    def examples(self, rows: Rows) -> Iterator[Example]:
        """Rows as examples, in the order asked for."""
        return (example_from_json(dict(value)) for value in self.values(rows))

    def sources(self, rows: Rows) -> list[str]:
        """Where rows came from."""
        return [value["source"] for value in self.values(rows)]

    def asked_texts(self, rows: Rows) -> list[str]:
        """What nearness is judged by."""
        return [asked_text(example) for example in self.examples(rows)]

    def lines(self, is_wanted: npt.NDArray[np.bool_]) -> Iterator[bytes]:
        """The lines of some rows, ends included, from the first to the last."""
        with self._path.open("rb") as file:
            for line, wanted in zip(file, is_wanted.tolist(), strict=True):
                if wanted:
                    yield line


def _no_features() -> Features:
    return Collector(0, Asked().shingling).features()
