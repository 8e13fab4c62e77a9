"""Words that a reader may take offence at, matched whole, in English: a flag for a person to look at, never a judgement.

A word list knows no context: a complaint that quotes an insult is flagged like the insult, and an insult without such a word is not. The
list is short and our own; add words of your trade, or other languages, with `words`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from lorimer.data.example import Example
from lorimer.data.passages import learned, list_reasons, passages
from lorimer.data.rules import Judged
from lorimer.errors import ConfigError

# regular expressions, each matched as a whole word
WORDS: dict[str, tuple[str, ...]] = {
    "profanity": (
        r"(?:god)?damn(?:ed|it)?",
        r"bloody",
        r"f+u+c+k+(?:s|ed|er|ers|ing|in|face|wit)?",
        r"f[*#@]{1,3}c?k?(?:ing|ed|er)?",
        r"(?:bull|horse)?sh[i1*]t(?:s|ty|ting|head)?",
        r"(?:ass|arse)(?:hole|holes)?",
        r"b[i1*]tch(?:es|ing|y)?",
        r"bastards?",
        r"crap(?:py)?",
        r"piss(?:ed)?(?: off)?",
        r"(?:motherf\w+|wtf|stfu|gtfo)",
        r"dick(?:head|heads)",
        r"wank(?:er|ers)",
        r"bollocks",
        r"cunts?",
        r"twats?",
    ),
    "insult": (
        r"idiots?",
        r"morons?",
        r"imbeciles?",
        r"retard(?:s|ed)?",
        r"dumb(?:ass|asses)",
        r"scumbags?",
        r"stupid",
        r"losers?",
        r"whores?",
        r"sluts?",
    ),
    "slur": (
        r"n[i1]gg(?:er|ers|a|as)",
        r"f[a4]gg?(?:ot|ots)",
        r"k[i1]kes?",
        r"ch[i1]nks?",
        r"sp[i1]cs?",
        r"trann(?:y|ies)",
        r"wetbacks?",
        r"ragheads?",
    ),
    "threat": (
        r"kill (?:you|him|her|them|yourself|urself)",
        r"kys",
        r"(?:i(?: wi|')ll|gonna|going to) (?:hurt|beat|shoot|stab|murder|rape) (?:you|him|her|them)",
        r"(?:you|they) (?:should|deserve to) die",
        r"bomb threat",
    ),
    "sexual": (r"porn(?:o|ography)?", r"blowjobs?", r"cumshots?", r"dildos?", r"hentai", r"milfs?", r"jerk(?:ing)? off", r"nudes"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Toxicity:
    """A row rule that reports words of the list; `where` is the whole row, or only what is learned."""

    action: Literal["flag", "drop"] = "flag"
    where: Literal["row", "answer"] = "row"
    kinds: Sequence[str] = tuple(WORDS)
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """More words by kind, as they are spelled."""
    name: str = field(default="toxicity", init=False)

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in WORDS and kind not in self.words]
        if unknown:
            raise ConfigError(
                f"toxicity: kinds {', '.join(map(repr, unknown))} have no words; known are {', '.join((*WORDS, *self.words))}"
            )
        if self.action not in ("flag", "drop") or self.where not in ("row", "answer"):
            raise ConfigError(f"toxicity: action {self.action!r} must be flag or drop, where {self.where!r} row or answer")

    def __call__(self, example: Example) -> Judged:
        """Judge one row; the reason names kinds and words."""
        pattern = _compile(tuple(self.kinds), tuple((kind, tuple(words)) for kind, words in self.words.items()))
        texts = [learned(example)] if self.where == "answer" else passages(example)
        found = [f"{match.lastgroup}: {match[0].lower()}" for text in texts for match in pattern.finditer(text)]
        if not found:
            return Judged(example)
        return Judged(None if self.action == "drop" else example, list_reasons(found))


@lru_cache(maxsize=8)
def _compile(kinds: tuple[str, ...], more: tuple[tuple[str, tuple[str, ...]], ...]) -> re.Pattern[str]:
    extra = dict(more)
    groups = []
    for kind in kinds:
        words = [*WORDS.get(kind, ()), *(re.escape(word) for word in extra.get(kind, ()))]
        groups.append(rf"(?P<{kind}>{'|'.join(words)})")
    # typos run words together ("thisgoddamn"): the list's longest and rarest word may end one
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(groups)})(?![^\W_])", re.IGNORECASE)
