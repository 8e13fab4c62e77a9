"""A paraphrase of a row's question: what is asked for, when it is of use, and how it is kept away from the rows a model is judged by."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from lorimer.data.example import Example
from lorimer.data.rules import fold

NEAR_OVERLAP = 0.5
"""Share of common word triples (Jaccard) from which two prompts are near: a paraphrase so close to a test row gives its answer away."""
SHINGLE_LEN = 3
INSTRUCTION = (
    "Say the message below in other words, as another person might write it. Keep its meaning, its language, and every name, number and "
    "placeholder exactly. Answer with the new message alone, without quotes.\n\nMessage:\n"
)
MUST_STAY = re.compile(r"\d+|\{\{[^{}\n]{1,60}\}\}|\{[a-z_]{2,30}\}|\[[A-Z][A-Z_]+\]|https?://\S+")
PREFIX = re.compile(r"^(?:sure[,!.]?[^\n]*:\s*\n|(?:new |rephrased |reworded )?message:\s*|paraphrase:\s*)", re.IGNORECASE)


class Made(NamedTuple):
    """A paraphrase, or the reason why there is none."""

    example: Example | None
    reason: str = ""


def make_row(parent: Example, paraphrase: str, model: str, guard: "Guard") -> Made:
    """A synthetic row from a paraphrase of its parent's question, or the reason for having none."""
    asked = question(parent)
    text = PREFIX.sub("", paraphrase.strip()).strip().strip('"“”').strip()
    if not text:
        return Made(None, "the endpoint said nothing")
    if fold(text) == fold(asked):
        return Made(None, "the paraphrase says the same")
    if len(text) > 3 * len(asked) + 80:
        return Made(None, "the paraphrase is far longer than its parent")
    if Counter(MUST_STAY.findall(text)) != Counter(MUST_STAY.findall(asked)):
        return Made(None, "a number, link or placeholder changed")
    if reason := guard.refuses(text):
        return Made(None, reason)
    index = max(place for place, message in enumerate(parent.messages) if message.role == "user")
    messages = tuple(replace(m, content=text) if place == index else m for place, m in enumerate(parent.messages))
    tags = {**parent.tags, "synthetic": "paraphrase", "synthetic_model": model}
    return Made(replace(parent, messages=messages, tags=tags, source=f"{parent.source}+paraphrase", parent=parent.record_digest))


class Guard:
    """Keeps paraphrases away from held-out rows, by equality and by common word triples, and from repeating a training row."""

    def __init__(self, held_out: Iterable[Example], train: Iterable[Example]) -> None:
        self._held_out: list[frozenset[str]] = []
        self._rows_with: dict[str, list[int]] = {}
        self._equal = set[str]()
        self._known = {fold(question(example)) for example in train}
        for text in (question(example) for example in held_out):
            if text:
                self._add_held_out(text)

    def _add_held_out(self, text: str) -> None:
        shingles = shingle(text)
        for one in shingles:
            self._rows_with.setdefault(one, []).append(len(self._held_out))
        self._held_out.append(shingles)
        self._equal.add(fold(text))

    def add(self, example: Example) -> None:
        """Remember a synthetic row: it must not be made twice."""
        self._known.add(fold(question(example)))

    def refuses(self, text: str) -> str:
        """Why a text may not become a training row; empty if it may."""
        folded = fold(text)
        if folded in self._equal:
            return "it is a validation or test row"
        if folded in self._known:
            return "it repeats a training row"
        shingles = shingle(text)
        common = Counter(row for one in shingles for row in self._rows_with.get(one, ()))
        near = any(count >= NEAR_OVERLAP * len(shingles | self._held_out[row]) for row, count in common.most_common(50))
        return "it is near a validation or test row" if near else ""


def shingle(text: str) -> frozenset[str]:
    """Word triples of a folded text, the whole text where it has fewer words; triples of characters where words are not spaced."""
    folded = fold(re.sub(r"[^\w\s]", " ", text))
    words: Sequence[str] = folded.split()
    if len(words) <= 2 and len(folded) > 12 and not folded.isascii():
        words = list(folded)
    if len(words) < SHINGLE_LEN:
        return frozenset([" ".join(words)])
    return frozenset(" ".join(words[at : at + SHINGLE_LEN]) for at in range(len(words) - SHINGLE_LEN + 1))


def question(example: Example) -> str:
    """The last thing a user says in a row; of a plain text, all of it."""
    if example.text is not None:
        return example.text
    return next((message.content for message in reversed(example.prompt) if message.role == "user"), "")
