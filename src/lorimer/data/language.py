"""Which language a row is written in: by its script where that says it, else by py3langid (Lui and Baldwin 2012), offline.

A text of few letters is not judged: "ok" is many languages. Confidence is the model's share for its best guess among those asked about;
`candidates` narrows them, which is quicker to trust than a guess among a hundred.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

from lorimer.data.example import Example
from lorimer.data.passages import passages
from lorimer.data.rules import Judged, speaks
from lorimer.errors import ConfigError

NUM_CHARS = 160
"""How much of a row is read: more hardly changes the answer and costs in proportion."""
MIN_LETTERS = 12
MIN_CONFIDENCE = 0.8
LETTERS = re.compile(r"[^\W\d_]+")
# scripts that one living language uses almost alone (Unicode's Scripts.txt); Cyrillic, Arabic, Devanagari and Latin are for the model
SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af\u1100-\u11ff]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("ka", re.compile(r"[\u10a0-\u10ff]")),
    ("hy", re.compile(r"[\u0530-\u058f]")),
    ("ta", re.compile(r"[\u0b80-\u0bff]")),
    ("te", re.compile(r"[\u0c00-\u0c7f]")),
    ("bn", re.compile(r"[\u0980-\u09ff]")),
    ("km", re.compile(r"[\u1780-\u17ff]")),
    ("zh", re.compile(r"[\u4e00-\u9fff]")),
)
MIN_SCRIPT_SHARE = 0.3
VIETNAMESE = re.compile(r"[\u01a0\u01a1\u01af\u01b0\u1ea0-\u1ef9]")
"""Letters that Vietnamese alone has."""


class Guess(NamedTuple):
    """A language and how sure it is; no language where there is too little to read."""

    language: str
    confidence: float


def detect_language(text: str, candidates: tuple[str, ...] = ()) -> Guess:
    """The language of a text, an ISO 639-1 code."""
    text = text[:NUM_CHARS]
    num_letters = sum(map(len, LETTERS.findall(text)))
    if not text.isascii() and num_letters:
        for language, script in SCRIPTS:
            if (not candidates or language in candidates) and len(script.findall(text)) >= MIN_SCRIPT_SHARE * num_letters:
                return Guess(language, 1.0)
        if (not candidates or "vi" in candidates) and len(VIETNAMESE.findall(unicodedata.normalize("NFC", text))) >= 2:
            return Guess("vi", 1.0)
    if num_letters < MIN_LETTERS:
        return Guess("", 0.0)
    language, confidence = _identifier(candidates).classify(text)
    return Guess(str(language), float(confidence))


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectLanguage:
    """A row rule: tags a row that has no language tag; with `keep`, takes out rows surely written in another language.

    A row that is tagged otherwise than it reads is reported, and keeps its tag: whoever tagged it may know better.
    """

    keep: Sequence[str] = ()
    candidates: Sequence[str] = ()
    """ISO 639-1 codes to choose among; empty for all."""
    min_confidence: float = MIN_CONFIDENCE
    name: str = field(default="language", init=False)

    def __post_init__(self) -> None:
        unknown = [code for code in (*self.candidates, *self.keep) if code.split("-")[0] not in known_languages()]
        if unknown:
            raise ConfigError(
                f"languages {', '.join(map(repr, unknown))} are not told apart here; known are {', '.join(known_languages())}"
            )
        absent = [code for code in self.keep if self.candidates and code.split("-")[0] not in self.candidates]
        if absent:
            raise ConfigError(f"languages to keep {', '.join(map(repr, absent))} are not among the candidates {', '.join(self.candidates)}")

    def __call__(self, example: Example) -> Judged:
        """Judge one row by its prompt and answers, without the system message, which is often English."""
        if example.text is not None:
            text = example.text[:NUM_CHARS]
        else:
            text = "\n".join(message.content[:NUM_CHARS] for message in example.messages if message.role != "system") or next(
                passages(example)
            )
        guess = detect_language(text, tuple(self.candidates))
        if not guess.language or guess.confidence < self.min_confidence:
            return Judged(example)
        tag = example.tags.get("language")
        if tag is not None:
            agrees = speaks(tag, guess.language)
            return Judged(example, "" if agrees else f"tagged {tag}, reads as {guess.language}")
        if self.keep and not any(speaks(guess.language, wanted.split("-")[0]) for wanted in self.keep):
            return Judged(None, f"reads as {guess.language}")
        return Judged(replace(example, tags={**example.tags, "language": guess.language}), f"tagged {guess.language}")


@lru_cache(maxsize=1)
def known_languages() -> tuple[str, ...]:
    """The codes that can be told apart."""
    return tuple(sorted({str(code) for code in _identifier(()).nb_classes} | {language for language, _ in SCRIPTS}))


@lru_cache(maxsize=8)
def _identifier(candidates: tuple[str, ...]) -> Any:
    """py3langid's model over some languages; it takes a fifth of a second to read, once a process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if candidates:
        in_model = [code for code in candidates if code in set(identifier.nb_classes)]
        identifier.set_languages(in_model)
    return identifier
