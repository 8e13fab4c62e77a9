"""What is kept in memory of each row while the rows themselves are on disk: digests, lengths and sketches, as arrays. No texts."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from lorimer.config import Shingling
from lorimer.data.example import Example
from lorimer.data.rules import compose, fold
from lorimer.data.shingles import NUM_BANDS, SIGNATURE_LEN, Sketches, shingle, sketch
from lorimer.storage import canonical_json

ABSENT = -1  # a length, where a row has no such part


@dataclass(slots=True, kw_only=True)
class Features:
    """One entry a row in each array."""

    num_bytes: npt.NDArray[np.int64]
    """Of the row's line on disk, its end included."""
    record: npt.NDArray[np.uint8]
    """SHA-256 of the whole row; shape: rows, 32."""
    content: npt.NDArray[np.uint8]
    """SHA-256 of what training sees of it; shape: rows, 32."""
    whole: npt.NDArray[np.uint64]
    """Prompt and answers, folded; shape: rows, 2. Equal in rows that repeat each other."""
    prompt: npt.NDArray[np.uint64]
    """The folded prompt with its system message."""
    asked: npt.NDArray[np.uint64]
    """The folded prompt without it."""
    answer: npt.NDArray[np.uint64]
    place: npt.NDArray[np.float64]
    """Where in [0, 1) the row stands, for its split."""
    lengths: npt.NDArray[np.int32]
    """Characters of prompt, answer, rejected answer and text; shape: rows, 4."""
    keys: npt.NDArray[np.uint32]
    """Of the asked text, see `shingles.Sketches`."""
    low: npt.NDArray[np.uint8]
    is_long: npt.NDArray[np.bool_]
    """Whether the asked text is long enough for nearness to mean something."""
    subject: npt.NDArray[np.uint64]
    """Hash of the subject's key; 0 for none."""
    is_synthetic: npt.NDArray[np.bool_]
    language: npt.NDArray[np.int32]
    """A number for each distinct value, see `Vocabulary`."""
    licence: npt.NDArray[np.int32]
    consent: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.num_bytes)

    def record_digests(self, rows: npt.NDArray[np.int64]) -> Iterator[bytes]:
        """The SHA-256 of some rows, one by one."""
        for at in range(0, len(rows), 10_000):
            block = self.record[rows[at : at + 10_000]].tobytes()
            yield from (block[begin : begin + 32] for begin in range(0, len(block), 32))

    @property
    def sketches(self) -> Sketches:
        """To find near rows by."""
        return Sketches(self.keys, self.low)


def join(parts: Sequence[Features]) -> Features:
    """One after the other; the parts are emptied on the way, so that all is held only once and a little."""
    joined: dict[str, Any] = {}
    for each in fields(Features):
        joined[each.name] = np.concatenate([getattr(part, each.name) for part in parts])
        for part in parts:
            setattr(part, each.name, None)
    return Features(**joined)


class Vocabulary:
    """Distinct values in order of appearance, each with its number; 0 is the empty text."""

    def __init__(self, values: Sequence[str] = ("",)) -> None:
        self.values = list(values)
        self._numbers = {value: number for number, value in enumerate(self.values)}

    def number(self, value: str) -> int:
        """The value's number, a new one if it was not seen before."""
        found = self._numbers.setdefault(value, len(self.values))
        if found == len(self.values):
            self.values.append(value)
        return found

    def renumber(self, numbers: npt.NDArray[np.int32], other: "Vocabulary") -> npt.NDArray[np.int32]:
        """Numbers of another vocabulary as those of this one."""
        return np.array([self.number(value) for value in other.values], np.int32)[numbers]


@dataclass(slots=True)
class Vocabularies:
    """Of the three parts whose values repeat."""

    language: Vocabulary
    licence: Vocabulary
    consent: Vocabulary


def new_vocabularies() -> Vocabularies:
    """All empty."""
    return Vocabularies(Vocabulary(), Vocabulary(), Vocabulary())


class Collector:
    """The features of some rows, gathered one by one."""

    def __init__(self, seed: int, how: Shingling) -> None:
        self.how = how
        self.seed = seed
        self.words = new_vocabularies()
        self.lines: list[bytes] = []
        self._texts: list[str] = []
        self._found: dict[str, list[Any]] = {each.name: [] for each in fields(Features)}

    def add(self, example: Example, group: str) -> None:
        """Take in one row; rows of one group share their place."""
        line = canonical_json(example.to_json())
        self.lines.append(line)
        turns = [(message.role, fold(message.content)) for message in example.prompt]
        prompt = fold(example.text) if example.text is not None else "\0".join(f"{role}\0{text}" for role, text in turns)
        asked = prompt if example.text is not None else "\0".join(f"{role}\0{text}" for role, text in turns if role != "system")
        text = prompt if example.text is not None else "\n".join(text for role, text in turns if role != "system")
        answer = "" if example.text is not None else compose(example.answer)
        whole = hashlib.blake2b(f"{prompt}\1{answer}\1{compose(example.rejected or '')}".encode(), digest_size=16).digest()
        self._texts.append(text)
        own: dict[str, Any] = {
            "num_bytes": len(line) + 1,
            "record": hashlib.sha256(line).digest(),
            "content": hashlib.sha256(canonical_json(example.content())).digest(),
            "whole": whole,
            "prompt": hash_of(prompt),
            "asked": hash_of(asked),
            "answer": hash_of(answer),
            "place": place_of(f"{self.seed}\0group\0{group}" if group else f"{self.seed}\0{asked}"),
            "lengths": _lengths(example),
            "is_long": len(text) >= self.how.min_chars,
            "subject": hash_of(example.subject) if example.subject else 0,
            "is_synthetic": bool(example.parent),
            "language": self.words.language.number(example.tags.get("language", "")),
            "licence": self.words.licence.number(example.licence),
            "consent": self.words.consent.number(example.consent),
        }
        for name, value in own.items():
            self._found[name].append(value)

    def features(self) -> Features:
        """All rows' at once."""
        found, num = self._found, len(self.lines)
        sketches = sketch(shingle(self._texts, self.how)) if num else None
        return Features(
            num_bytes=np.array(found["num_bytes"], np.int64),
            record=np.frombuffer(b"".join(found["record"]), np.uint8).reshape(num, 32),
            content=np.frombuffer(b"".join(found["content"]), np.uint8).reshape(num, 32),
            whole=np.frombuffer(b"".join(found["whole"]), "<u8").reshape(num, 2).astype(np.uint64),
            prompt=np.array(found["prompt"], np.uint64),
            asked=np.array(found["asked"], np.uint64),
            answer=np.array(found["answer"], np.uint64),
            place=np.array(found["place"], np.float64),
            lengths=np.array(found["lengths"], np.int32).reshape(num, 4),
            keys=sketches.keys if sketches else np.zeros((0, NUM_BANDS), np.uint32),
            low=sketches.low if sketches else np.zeros((0, SIGNATURE_LEN), np.uint8),
            is_long=np.array(found["is_long"], np.bool_),
            subject=np.array(found["subject"], np.uint64),
            is_synthetic=np.array(found["is_synthetic"], np.bool_),
            language=np.array(found["language"], np.int32),
            licence=np.array(found["licence"], np.int32),
            consent=np.array(found["consent"], np.int32),
        )


def asked_text(example: Example) -> str:
    """What nearness is judged by: the folded prompt without its system message; of plain text, all of it."""
    if example.text is not None:
        return fold(example.text)
    return "\n".join(fold(message.content) for message in example.prompt if message.role != "system")


def hash_of(text: str) -> int:
    """64 bits; among a million texts, two different ones agree once in 37 million sets."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def place_of(key: str) -> float:
    """A place in [0, 1), uniform over keys."""
    return (int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 11) / 2**53


def _lengths(example: Example) -> tuple[int, int, int, int]:
    if example.text is not None:
        return ABSENT, ABSENT, ABSENT, len(example.text)
    prompt = sum(len(message.content) for message in example.prompt)
    return prompt, len(example.answer), ABSENT if example.rejected is None else len(example.rejected), ABSENT
