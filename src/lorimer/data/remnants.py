"""What a template left behind: turn markers of other models, placeholders nobody filled, filler text, a model speaking of itself.

Turn markers can be taken out; a placeholder cannot be filled here, so its row is reported or dropped. In a row of code braces are code.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from lorimer.data.example import Example
from lorimer.data.passages import is_emptied, learned, list_reasons, passages, with_passages
from lorimer.data.rules import Judged
from lorimer.errors import ConfigError

MARKER = re.compile(
    r"<\|[a-zA-Z0-9_ -]{2,32}\|>|<[\uff5c][^>\n]{2,32}[\uff5c]>|\[/?INST\]|<</?SYS>>|^<s>|</s>$|<(?:start|end)_of_turn>|"
    r"<(?:bos|eos|pad|unk)>|"
    r"\[(?:BOS|EOS|PAD)\]|###? ?(?:end|eos_token|stop)(?:_token)? ?###?|"
    r"^###? ?(?:Instructions?|Input|Response|Output|Human|User|Assistant|System|Answer) ?: ?$|"
    r"^(?:Below is an instruction that describes a task[^\n]*)$",
    re.MULTILINE | re.IGNORECASE,
)
FIELD = (
    r"(?:your|my|our|the|first|last|full|user|customer|client|company|business|agent|account|order|product|phone|email|e-mail|contact|"
    r"website|insert|enter|person|recipient|sender|street|postal|zip|date|current|support|team|service|store|city|purchase|invoice)"
)
PLACEHOLDER = re.compile(
    rf"\{{\{{ ?[\w#/^&.| '-]{{1,60}} ?\}}\}}|\{{% ?\w[^%\n]{{0,80}}%\}}|\$\{{[a-zA-Z_][\w.]{{0,40}}\}}|%\([a-z_]{{2,30}}\)s|"
    rf"\{{(?:{FIELD}_?[a-z_]{{0,30}}|name|email|date|company|address|city)\}}|\[{FIELD}(?:['\u2019]s)?[ _][\w' \u2019/-]{{1,40}}\]|"
    rf"<{FIELD}[ _-](?:name|number|id|email|address|date|here|company|text)[ \w-]{{0,20}}>|"
    rf"\[(?:insert|todo|tbd|placeholder)\b[^\]\n]{{0,60}}\]",
    re.IGNORECASE,
)
FILLER = re.compile(r"\blorem ipsum\b|\bdolor sit amet\b|\bthe answer goes here\b|\byour text here\b", re.IGNORECASE)
SELF = re.compile(
    r"\bas an? (?:ai|artificial intelligence)(?: (?:language )?model| assistant)?,? I\b|\bmy (?:knowledge|training) (?:cut-?off|"
    r"data (?:ends|only))|"
    r"\bas a large language model\b|\bI am (?:only )?an ai (?:language )?model\b",
    re.IGNORECASE,
)
SIGNS = ("{", "<", "[", "#", "%(", "${")
PHRASES = ("lorem", "dolor", "goes here", "text here", "an ai", "artificial", "my know", "my train", "large lang", "below is")
CODE = re.compile(
    r"```|^\s*(?:def |class |import |from \w+ import|function |const |let |var |public |#include|SELECT )|=>|\);\s*$|f[\"'][^\"']*\{",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateRemnants:
    """A row rule over what templates leave behind."""

    markers: Literal["strip", "flag", "drop"] = "strip"
    placeholders: Literal["flag", "drop"] = "flag"
    """What is done with a row whose answer holds a placeholder, filler text, or a model speaking of itself."""
    name: str = field(default="template_remnants", init=False)

    def __post_init__(self) -> None:
        if self.markers not in ("strip", "flag", "drop") or self.placeholders not in ("flag", "drop"):
            raise ConfigError(
                f"template_remnants: markers {self.markers!r} must be strip, flag or drop; placeholders {self.placeholders!r} flag or drop"
            )

    def __call__(self, example: Example) -> Judged:
        """Judge one row: markers in any text, the others in what is learned."""
        if not any(map(_has_hint, passages(example))):
            return Judged(example)
        markers = list(dict.fromkeys(match[0].strip() for text in passages(example) for match in MARKER.finditer(text)))
        said = find_remnants(learned(example))
        reasons = [*(f"marker {marker}" for marker in markers), *said]
        if (markers and self.markers == "drop") or (said and self.placeholders == "drop"):
            return Judged(None, list_reasons(reasons))
        if markers and self.markers == "strip":
            stripped = with_passages(example, strip_markers)
            return Judged(None, "nothing but markers") if is_emptied(example, stripped) else Judged(stripped, list_reasons(reasons))
        return Judged(example, list_reasons(reasons))


def strip_markers(text: str) -> str:
    """A text without turn markers, and without the blank lines they leave."""
    stripped = MARKER.sub("", text)
    return text if stripped == text else re.sub(r"\n{3,}", "\n\n", stripped).strip()


def find_remnants(text: str) -> list[str]:
    """What stands in a text that nobody meant to say, in words for the card."""
    if not _has_hint(text):
        return []
    found = [] if CODE.search(text) else [f"placeholder {match[0]}" for match in PLACEHOLDER.finditer(text)]
    found += [f"filler {match[0].lower()!r}" for match in FILLER.finditer(text)]
    return found + [f"a model speaks of itself: {match[0]!r}" for match in SELF.finditer(text)]


def _has_hint(text: str) -> bool:
    """Whether anything is worth looking for: most texts have none of these."""
    if any(sign in text for sign in SIGNS):
        return True
    lowered = text.lower()
    return any(phrase in lowered for phrase in PHRASES)
