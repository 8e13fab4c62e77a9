"""What is taken out of examples, or said about them: one small function per rule, applied in order. It knows nothing of files."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from lorimer.data.example import Example
from lorimer.errors import DataError

MAX_CHARS = 20_000
NUM_EXAMPLES_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one rule did, for the card."""

    rule: str
    num_removed: int = 0
    num_changed: int = 0
    message: str
    examples: tuple[str, ...] = ()
    """Sources of the first few rows it took, changed or reports."""


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


class RuleResult(NamedTuple):
    """The examples a rule kept, and what it found."""

    examples: tuple[Example, ...]
    finding: Finding


Rule = Callable[[Sequence[Example]], RuleResult]


class Cleaned(NamedTuple):
    """The examples all rules kept, and one finding per rule."""

    examples: tuple[Example, ...]
    findings: tuple[Finding, ...]


def apply_rules(examples: Sequence[Example], rules: Sequence[Rule]) -> Cleaned:
    """Apply rules one after the other; each sees what the one before it kept."""
    findings = []
    for rule in rules:
        examples, finding = rule(examples)
        findings.append(finding)
    return Cleaned(tuple(examples), tuple(findings))


def fold(text: str) -> str:
    """A text without what readers do not see: Unicode composed (NFC), white space runs as one space, case folded."""
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


def folded_prompt(example: Example, *, with_system: bool = True) -> str:
    """What two rows have in common that ask the same; for plain text, the whole text."""
    if example.text is not None:
        return fold(example.text)
    turns = (message for message in example.prompt if with_system or message.role != "system")
    return "\0".join(f"{message.role}\0{fold(message.content)}" for message in turns)


def strip_whitespace(examples: Sequence[Example]) -> RuleResult:
    """Take white space off both ends of every content: it is rarely meant, and a model learns it."""
    kept = tuple(_stripped(example) for example in examples)
    changed = [after for before, after in zip(examples, kept, strict=True) if before is not after]
    message = f"{count_rows(len(changed))} had white space at an end, which was taken off"
    return RuleResult(kept, Finding(rule="strip_whitespace", num_changed=len(changed), message=message, examples=_sources(changed)))


def drop_exact_duplicates(examples: Sequence[Example]) -> RuleResult:
    """Keep the first of rows with the same prompt and the same answers, up to case (in the prompt), white space and composition."""
    seen: set[tuple[str, str, str]] = set()
    kept: list[Example] = []
    removed: list[Example] = []
    for example in examples:
        key = (folded_prompt(example), _folded_answer(example), _compose(example.rejected or ""))
        (removed if key in seen else kept).append(example)
        seen.add(key)
    return _dropped("drop_exact_duplicates", kept, removed, f"{count_rows(len(removed))} repeated an earlier row")


def flag_conflicts(examples: Sequence[Example]) -> RuleResult:
    """Report prompts with more than one answer; which one is right is for a person to say, so all are kept."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        if example.text is None:
            groups.setdefault(folded_prompt(example), []).append(example)
    conflicts = [group for group in groups.values() if len({_folded_answer(example) for example in group}) > 1]
    flagged = [example for group in conflicts for example in group]
    message = "no prompt had more than one answer"
    if conflicts:
        plural = "s" if len(conflicts) > 1 else ""
        message = (
            f"{len(conflicts):,} prompt{plural} had more than one answer ({count_rows(len(flagged))}), all kept: decide which is right"
        )
    return RuleResult(tuple(examples), Finding(rule="flag_conflicts", message=message, examples=_sources(flagged)))


def drop_too_long(max_chars: int = MAX_CHARS) -> Rule:
    """A rule that drops rows of more characters than any base can take in."""

    def rule(examples: Sequence[Example]) -> RuleResult:
        kept = [example for example in examples if _longest(example) <= max_chars]
        removed = [example for example in examples if _longest(example) > max_chars]
        return _dropped("drop_too_long", kept, removed, f"{count_rows(len(removed))} had more than {max_chars:,} characters")

    return rule


def keep_languages(languages: Sequence[str]) -> Rule:
    """A rule that drops rows tagged with a language not listed; rows without a tag stay.

    The rule raises DataError if rows are tagged but a listed language has none.
    """

    def rule(examples: Sequence[Example]) -> RuleResult:
        tags = Counter(example.tags["language"] for example in examples if "language" in example.tags)
        without = [wanted for wanted in languages if not any(speaks(tag, wanted) for tag in tags)]
        if tags and without:
            found = ", ".join(f"{tag} ({count:,})" for tag, count in tags.most_common())
            raise DataError(f"no example is tagged {', '.join(map(repr, without))}, only {found}: add examples or leave the language out")
        kept = [example for example in examples if _is_spoken(example, languages)]
        removed = [example for example in examples if not _is_spoken(example, languages)]
        message = f"{count_rows(len(removed))} had languages other than {', '.join(languages)}"
        if num_untagged := len(examples) - tags.total():
            message += f"; {count_rows(num_untagged)} without a language tag were kept, whatever their language"
        return _dropped("keep_languages", kept, removed, message)

    return rule


def speaks(tag: str, wanted: str) -> bool:
    """Whether a language tag falls under a wanted one: `pt-BR` under `pt`, not the reverse (RFC 4647, basic filtering)."""
    return f"{tag.lower()}-".startswith(f"{wanted.lower()}-")


def num_chars(example: Example) -> int:
    """Characters in all turns, or in the text; a rejected answer is none of them."""
    return len(example.text or "") + sum(len(message.content) for message in example.messages)


def _longest(example: Example) -> int:
    """Characters of the prompt and the longer of its two answers: a base takes them in one at a time."""
    return num_chars(example) + (max(0, len(example.rejected) - len(example.answer)) if example.rejected else 0)


def _is_spoken(example: Example, languages: Sequence[str]) -> bool:
    tag = example.tags.get("language")
    return tag is None or any(speaks(tag, wanted) for wanted in languages)


def _folded_answer(example: Example) -> str:
    return "" if example.text is not None else _compose(example.answer)


def _compose(answer: str) -> str:
    """Case stays: an answer that differs in case is another answer."""
    return " ".join(unicodedata.normalize("NFC", answer).split())


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


def _dropped(rule: str, kept: Sequence[Example], removed: Sequence[Example], message: str) -> RuleResult:
    return RuleResult(tuple(kept), Finding(rule=rule, num_removed=len(removed), message=message, examples=_sources(removed)))


def _sources(examples: Sequence[Example]) -> tuple[str, ...]:
    return tuple(example.source for example in examples[:NUM_EXAMPLES_SHOWN])


def count_rows(count: int) -> str:
    """A number of rows as a sentence begins with it."""
    return "no row" if count == 0 else "1 row" if count == 1 else f"{count:,} rows"
