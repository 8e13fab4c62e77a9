"""Rows that teach nothing: empty, too short or long, an echo of the prompt, or the same thing over and over.

Repetition of long texts follows Gopher's rules (Rae et al. 2021, arXiv:2112.11446, table A1): the share of lines that repeat, and of
characters in the most frequent 2-, 3- and 4-gram of words. They were set for web pages, so they apply from `MIN_WORDS` words on. What holds
for any length: one character in a row, one word over and over, and text that deflate makes almost nothing of.
"""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lorimer.data.example import Example
from lorimer.data.passages import learned, list_reasons
from lorimer.data.rules import Judged, fold
from lorimer.errors import ConfigError

MIN_WORDS = 100
MIN_TIMES = 5
"""An n-gram said less often is style, even where the shares say otherwise: short answers repeat what they count."""
GOPHER_NGRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
MAX_REPEATED_LINES = 0.30
MAX_SYMBOLS_PER_WORD = 0.1  # Gopher: hash signs and ellipses
MIN_COMPRESSED = 0.12  # of English at this length deflate keeps 0.4 to 0.6
MIN_COMPRESSED_CHARS = 300
NUM_CHARS = 20_000
SAME_RUN = re.compile(r"([^\s\-=_*.#~+\u2500-\u257f])\1{9,}")
NO_CONTENT = re.compile(r"(?:[\W_]*|n/?a|none|null|nan|nil|undefined|todo|tbd|test|asdf\w*|xxx+|\.+|-+)[.!]?", re.IGNORECASE)
LETTER_OR_DIGIT = re.compile(r"\w")


@dataclass(frozen=True, slots=True, kw_only=True)
class LowInformation:
    """A row rule over what a row teaches."""

    action: Literal["drop", "flag"] = "drop"
    keep_answers: Sequence[str] = ()
    """Answers that look like nothing but are right, such as `none` as a label."""
    name: str = field(default="low_information", init=False)

    def __post_init__(self) -> None:
        _check_action(self.name, self.action)

    def __call__(self, example: Example) -> Judged:
        """Judge one row by its answers, or by its text."""
        reason = self.judge(example)
        return Judged(None if reason and self.action == "drop" else example, reason)

    def judge(self, example: Example) -> str:
        """Why a row teaches nothing; empty if it does."""
        text = learned(example)
        if not LETTER_OR_DIGIT.search(text):
            return "" if text in self.keep_answers else "nothing is said"
        if example.text is None and text not in self.keep_answers:
            if len(text) < 32 and NO_CONTENT.fullmatch(text.strip()):
                return f"the answer is {text.strip()!r}"
            if is_echo(example):
                return "the answer repeats the prompt"
        return list_reasons(find_repetition(text[:NUM_CHARS]))


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBounds:
    """A row rule over lengths in characters: of the prompt's turns together, and of the answer; of a plain text, the text's."""

    min_prompt: int = 1
    max_prompt: int = 20_000
    min_answer: int = 1
    max_answer: int = 20_000
    action: Literal["drop", "flag"] = "drop"
    name: str = field(default="length", init=False)

    def __post_init__(self) -> None:
        _check_action(self.name, self.action)
        if not 0 <= self.min_prompt <= self.max_prompt or not 0 <= self.min_answer <= self.max_answer:
            raise ConfigError(
                f"length: prompt {self.min_prompt} to {self.max_prompt} and answer {self.min_answer} to {self.max_answer} must "
                f"be bounds in order"
            )

    def __call__(self, example: Example) -> Judged:
        """Judge one row."""
        reason = self.judge(example)
        return Judged(None if reason and self.action == "drop" else example, reason)

    def judge(self, example: Example) -> str:
        """Which bound a row breaks; empty if none."""
        if example.text is not None:
            return _outside("the text", len(example.text), self.min_answer, self.max_answer)
        prompt = sum(len(message.content) for message in example.prompt if message.role != "system")
        answer = max(len(example.answer), len(example.rejected or ""))
        return _outside("the prompt", prompt, self.min_prompt, self.max_prompt) or _outside(
            "the answer", answer, self.min_answer, self.max_answer
        )


def is_echo(example: Example) -> bool:
    """Whether the last answer says what the last question says, up to case and white space."""
    asked = next((message.content for message in reversed(example.prompt) if message.role == "user"), "")
    return len(asked) >= 12 and abs(len(asked) - len(example.answer)) < 8 and fold(asked) == fold(example.answer)


def find_repetition(text: str) -> list[str]:
    """How a text repeats itself, in words for the card."""
    found = []
    if match := SAME_RUN.search(text):
        found.append(f"{match[1]!r} {len(match[0])} times in a row")
    if len(text) < 40:
        return found
    words = text.split()
    if len(words) >= 8:
        word, count = Counter(words).most_common(1)[0]
        if count > 0.5 * len(words) and LETTER_OR_DIGIT.search(word):
            found.append(f"{word[:20]!r} is {count} of {len(words)} words")
    if len(words) >= MIN_WORDS:
        found += _find_gopher(text, words)
    if len(text) >= MIN_COMPRESSED_CHARS:
        raw = text.encode(errors="surrogatepass")
        if len(zlib.compress(raw, 1)) < MIN_COMPRESSED * len(raw):
            found.append("it compresses to almost nothing")
    return found


def _find_gopher(text: str, words: Sequence[str]) -> list[str]:
    found = []
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    repeated = len(lines) - len(set(lines))
    if len(lines) >= 4 and repeated > MAX_REPEATED_LINES * len(lines):
        found.append(f"{repeated} of {len(lines)} lines repeat")
    num_chars = sum(map(len, words))
    for size, most in GOPHER_NGRAMS:
        ngrams = Counter(zip(*(words[start:] for start in range(size)), strict=False))
        ngram, count = ngrams.most_common(1)[0]
        if count >= MIN_TIMES and count * sum(map(len, ngram)) > most * num_chars:
            found.append(f"{' '.join(ngram)[:30]!r} again and again")
            break
    symbols = text.count("#") + text.count("...") + text.count("\u2026")
    if symbols > MAX_SYMBOLS_PER_WORD * len(words) and "\n#" not in text:
        found.append(f"{symbols} hash signs or ellipses in {len(words)} words")
    return found


def _outside(what: str, num_chars: int, least: int, most: int) -> str:
    if num_chars < least:
        return f"{what} has {num_chars} characters, fewer than {least}"
    return f"{what} has {num_chars:,} characters, more than {most:,}" if num_chars > most else ""


def _check_action(name: str, action: str) -> None:
    if action not in ("drop", "flag"):
        raise ConfigError(f"{name}: action {action!r} must be drop or flag")
