"""What stands under many texts and says nothing: signatures, disclaimers, footers, and lines repeated over a whole set."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal, NamedTuple

from lorimer.data.example import Example
from lorimer.data.passages import is_emptied, list_reasons, passages, with_passages
from lorimer.data.rules import Judged
from lorimer.errors import ConfigError

MIN_LINE_CHARS = 20
NUM_SEEN = 2_000_000
"""Distinct lines counted at most: beyond it those seen once are forgotten, so that memory stays bounded (Misra and Gries 1982)."""

KINDS: tuple[tuple[str, str], ...] = (
    ("signature", r"^--[ \t]*$(?:\n.*){0,8}\Z"),
    ("signature", r"^(?:sent from my |get outlook for |gesendet von meinem |envoyé de mon |inviato da |enviado desde mi )[^\n]{2,60}$"),
    (
        "disclaimer",
        r"^[^\n]*(?:if you are not the intended recipient|(?:this|diese) e-?mail (?:and any|is intended|message is|may contain|enthält)|"
        r"confidentiality notice|received this (?:e-?mail|message) in error|may contain (?:confidential|"
        r"privileged))[^\n]*$(?:\n[^\n]{30,})*",
    ),
    (
        "footer",
        r"^[^\n]*(?:to unsubscribe|click here to unsubscribe|unsubscribe from this|manage your (?:email )?preferences|"
        r"you (?:are receiv|have receiv)(?:ing|ed) this (?:e-?mail|message|newsletter))[^\n]*$",
    ),
    ("footer", r"^[^\n]{0,40}(?:©|\(c\)|copyright) ?(?:19|20)\d\d[^\n]{0,80}$"),
    ("footer", r"^[^\n]{0,40}\ball rights reserved\b[^\n]{0,40}$"),
    # lines that C4 takes out (Raffel et al. 2020, section 2.2)
    (
        "web notice",
        r"^[^\n]*(?:this (?:web)?site uses cookies|we use cookies|accept (?:all )?cookies|please enable javascript|"
        r"javascript (?:is|must be) "
        r"(?:disabled|enabled))[^\n]*$",
    ),
    (
        "footer",
        r"^(?:terms of (?:use|service)|privacy policy|cookie policy)(?: ?[|·•-] ?(?:terms of (?:use|service)|privacy policy|"
        r"cookie policy|[\w ]{2,20}))*$",
    ),
)
PATTERNS = tuple((kind, re.compile(pattern, re.MULTILINE | re.IGNORECASE)) for kind, pattern in KINDS)
HINTS = (
    *("--\n", "-- \n", "sent from my", "outlook for", "gesendet von", "envoyé de", "inviato da", "enviado desde", "intended recipient"),
    *("mail and any", "mail is intended", "mail message is", "mail may contain", "mail enthält", "confidentiality notice", "in error"),
    *(
        "may contain",
        "unsubscribe",
        "preferences",
        "ed this",
        "ing this",
        "©",
        "(c)",
        "copyright",
        "rights reserved",
        "cookie",
        "javascript",
    ),
    *("terms of", "privacy policy"),
)
"""What every pattern needs, in lower case: looking for these is ten times as quick, and most texts have none."""


class RepeatedLine(NamedTuple):
    """A line that stands in many rows."""

    line: str
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Boilerplate:
    """A row rule: takes boilerplate out, reports it, or drops the row; a row of nothing else is always taken out."""

    action: Literal["strip", "flag", "drop"] = "flag"
    lines: Collection[str] = ()
    """Lines to treat so too, as `find_repeated_lines` found them."""
    name: str = field(default="boilerplate", init=False)

    def __post_init__(self) -> None:
        if self.action not in ("strip", "flag", "drop"):
            raise ConfigError(f"boilerplate: action {self.action!r} must be strip, flag or drop")

    def __call__(self, example: Example) -> Judged:
        """Judge every text of a row."""
        kinds = [kind for text in passages(example) for kind in find_boilerplate(text, self.lines)]
        if not kinds:
            return Judged(example)
        if self.action == "drop":
            return Judged(None, list_reasons(kinds))
        if self.action == "flag":
            return Judged(example, list_reasons(kinds))
        stripped = with_passages(example, lambda text: strip_boilerplate(text, self.lines))
        return Judged(None, "nothing but boilerplate") if is_emptied(example, stripped) else Judged(stripped, list_reasons(kinds))


def find_boilerplate(text: str, lines: Collection[str] = ()) -> list[str]:
    """Which kinds of boilerplate stand in a text."""
    found = [kind for kind, pattern in PATTERNS if pattern.search(text)] if _has_hint(text) else []
    if lines and "\n" in text and any(line.strip() in lines for line in text.splitlines()):
        found.append("repeated line")
    return found


def strip_boilerplate(text: str, lines: Collection[str] = ()) -> str:
    """A text without its boilerplate."""
    stripped = text
    if _has_hint(text):
        for _, pattern in PATTERNS:
            stripped = pattern.sub("", stripped)
    if lines and "\n" in stripped:
        stripped = "\n".join(line for line in stripped.split("\n") if line.strip() not in lines)
    return text if stripped == text else re.sub(r"\n{3,}", "\n\n", stripped).strip()


def find_repeated_lines(texts: Iterable[str], *, min_share: float = 0.02, min_rows: int = 20) -> list[RepeatedLine]:
    """Lines of texts of several lines that stand in many of them, the most frequent first; counted by digest, in bounded memory."""
    counts: Counter[bytes] = Counter()
    spelled: dict[bytes, str] = {}
    num_texts = 0
    for text in texts:
        num_texts += 1
        if "\n" not in text:
            continue
        for line in {line.strip() for line in text.splitlines()}:
            if len(line) >= MIN_LINE_CHARS:
                key = blake2b(line.encode(errors="surrogatepass"), digest_size=12).digest()
                counts[key] += 1
                if counts[key] == 2:
                    spelled[key] = line
        if len(counts) > NUM_SEEN:
            counts = Counter({key: count for key, count in counts.items() if count > 1})
    least = max(min_rows, min_share * num_texts)
    return [RepeatedLine(spelled[key], count) for key, count in counts.most_common() if count >= least and key in spelled]


def _has_hint(text: str) -> bool:
    lowered = text.lower()
    return any(hint in lowered for hint in HINTS) or lowered.endswith(("\n--", "\n-- "))
