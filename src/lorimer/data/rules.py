"""What is taken out of examples, changed in them, or said about them, row by row. It knows nothing of files.

A rule over one row is a `RowRule`: it has a name, and judges a row without having seen another, so that it may run in another process.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from lorimer.data.example import Example

MAX_CHARS = 20_000
NUM_EXAMPLES_SHOWN = 5
NUM_REASONS_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one rule did, for the card."""

    rule: str
    num_removed: int = 0
    num_changed: int = 0
    num_flagged: int = 0
    message: str
    examples: tuple[str, ...] = ()
    """Sources of the first few rows it took, changed or reports."""
    reasons: tuple[str, ...] = ()
    """Why, for each of these, where that differs from row to row."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a row rule says of one row: taken out (no example), changed (another one), flagged (the same, with a reason) or untouched."""

    example: Example | None
    reason: str = ""


class RowRule(Protocol):
    """A rule that needs to see one row alone; it may run in another process."""

    @property
    def name(self) -> str:
        """What the card calls it."""

    def __call__(self, example: Example) -> Judged:
        """Judge one row."""


class LeftOut(NamedTuple):
    """A row that is in no split."""

    source: str
    rule: str
    reason: str


@dataclass(slots=True)
class Tally:
    """What one rule did to the rows it has seen so far."""

    num_removed: int = 0
    num_changed: int = 0
    num_flagged: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str]] = field(default_factory=list)
    """Source and reason of the first few."""

    def add(self, source: str, judged: Judged, before: Example) -> None:
        """Count one judgement that says something."""
        if judged.example is None:
            self.num_removed += 1
        elif judged.example is before:
            self.num_flagged += 1
        else:
            self.num_changed += 1
        self.reasons[judged.reason] += 1
        if len(self.examples) < NUM_EXAMPLES_SHOWN:
            self.examples.append((source, judged.reason))

    def merge(self, later: "Tally") -> None:
        """Add what was counted over later rows."""
        self.num_removed += later.num_removed
        self.num_changed += later.num_changed
        self.num_flagged += later.num_flagged
        self.reasons += later.reasons
        self.examples = [*self.examples, *later.examples][:NUM_EXAMPLES_SHOWN]

    def finding(self, rule: str) -> Finding:
        """For the card: how many rows for each reason, the most frequent first."""
        ranked = sorted(self.reasons.items(), key=lambda pair: (-pair[1], pair[0]))
        said = [f"{count_rows(count)}{' ' if reason.startswith('had ') else ': '}{reason}" for reason, count in ranked[:NUM_REASONS_SHOWN]]
        if len(ranked) > NUM_REASONS_SHOWN:
            said.append(f"{count_rows(sum(count for _, count in ranked[NUM_REASONS_SHOWN:]))} for other reasons")
        return Finding(
            rule=rule,
            num_removed=self.num_removed,
            num_changed=self.num_changed,
            num_flagged=self.num_flagged,
            message="; ".join(said) or "no row",
            examples=tuple(source for source, _ in self.examples),
            reasons=tuple(reason for _, reason in self.examples) if len(ranked) > 1 else (),
        )


class RowJudged(NamedTuple):
    """What all rules left of a row: the example, or the rule that took it out and why."""

    example: Example | None
    rule: str = ""
    reason: str = ""


def judge_row(example: Example, rules: Sequence[RowRule], tallies: dict[str, Tally]) -> RowJudged:
    """Put a row to rules one after the other, each seeing what the one before made of it, and count what they said."""
    for rule in rules:
        judged = rule(example)
        if judged.example is example and not judged.reason:
            continue
        tallies.setdefault(rule.name, Tally()).add(example.source, judged, example)
        if judged.example is None:
            return RowJudged(None, rule.name, judged.reason)
        example = judged.example
    return RowJudged(example)


@dataclass(frozen=True, slots=True)
class StripWhitespace:
    """Take white space off both ends of every content: it is rarely meant, and a model learns it."""

    name: str = field(default="strip_whitespace", init=False)

    def __call__(self, example: Example) -> Judged:
        """Judge one row."""
        stripped = _stripped(example)
        return Judged(example) if stripped is example else Judged(stripped, "had white space at an end, which was taken off")


@dataclass(frozen=True, slots=True)
class DropTooLong:
    """Drop rows of more characters than any base can take in."""

    max_chars: int = MAX_CHARS
    name: str = field(default="drop_too_long", init=False)

    def __call__(self, example: Example) -> Judged:
        """Judge one row."""
        return Judged(example) if _longest(example) <= self.max_chars else Judged(None, f"had more than {self.max_chars:,} characters")


@dataclass(frozen=True, slots=True)
class KeepLanguages:
    """Drop rows tagged with a language not listed; rows without a tag stay."""

    languages: tuple[str, ...]
    name: str = field(default="keep_languages", init=False)

    def __call__(self, example: Example) -> Judged:
        """Judge one row."""
        tag = example.tags.get("language")
        if tag is None or any(speaks(tag, wanted) for wanted in self.languages):
            return Judged(example)
        return Judged(None, f"had languages other than {', '.join(self.languages)}")


def fold(text: str) -> str:
    """A text without what readers do not see: Unicode composed (NFC), white space runs as one space, case folded."""
    if text.isascii():
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


def folded_prompt(example: Example, *, with_system: bool = True) -> str:
    """What two rows have in common that ask the same; for plain text, the whole text."""
    if example.text is not None:
        return fold(example.text)
    turns = (message for message in example.prompt if with_system or message.role != "system")
    return "\0".join(f"{message.role}\0{fold(message.content)}" for message in turns)


def compose(answer: str) -> str:
    """An answer as it is compared: case stays, for an answer that differs in case is another answer."""
    return " ".join((answer if answer.isascii() else unicodedata.normalize("NFC", answer)).split())


def speaks(tag: str, wanted: str) -> bool:
    """Whether a language tag falls under a wanted one: `pt-BR` under `pt`, not the reverse (RFC 4647, basic filtering)."""
    return f"{tag.lower()}-".startswith(f"{wanted.lower()}-")


def num_chars(example: Example) -> int:
    """Characters in all turns, or in the text; a rejected answer is none of them."""
    return len(example.text or "") + sum(len(message.content) for message in example.messages)


def count_rows(count: int) -> str:
    """A number of rows as a sentence begins with it."""
    return "no row" if count == 0 else "1 row" if count == 1 else f"{count:,} rows"


def _longest(example: Example) -> int:
    """Characters of the prompt and the longer of its two answers: a base takes them in one at a time."""
    return num_chars(example) + (max(0, len(example.rejected) - len(example.answer)) if example.rejected else 0)


def _stripped(example: Example) -> Example:
    """The same object if there was nothing to take off."""
    if example.text is not None:
        text = example.text.strip()
        return example if text == example.text else replace(example, text=text)
    rejected = example.rejected and example.rejected.strip()
    if rejected == example.rejected and all(message.content == message.content.strip() for message in example.messages):
        return example
    messages = tuple(replace(message, content=message.content.strip()) for message in example.messages)
    return replace(example, messages=messages, rejected=rejected)
