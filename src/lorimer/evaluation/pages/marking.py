"""Answers as a page may show them: what strangers wrote, escaped, with hidden characters named, long texts folded, differences marked."""

import re
from difflib import SequenceMatcher

from markupsafe import Markup, escape

MAX_CHARS = 4_000  # shown of one text, folded; the record has all of it
FOLDED_CHARS = 320  # a longer text is folded
HEAD_CHARS = 200  # of it, what can be read unopened
MAX_WORDS = 250  # of each of two texts to compare: the time grows with their product
MIN_ALIKE = 0.3  # of the shorter text that must stand in the other, in equal words: marking nearly everything shows nothing

Part = tuple[str, bool]
"""Some text, and whether it differs."""

# Control characters, marks and overrides of the writing direction, invisible spaces, tag characters, halves of characters: they can hide
# or reorder what a reader sees (Boucher and Anderson 2021, "Trojan Source", arXiv:2111.00169). Joiners stay: Persian and emoji need them.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
WORDS = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\\w+|\\s+|.")  # scripts without spaces: character by character


def show_text(text: str, other: str | None = None) -> Markup:
    """One text as HTML; with `other`, the words in which it differs from that are marked."""
    if not text:
        return Markup('<pre class="empty">(empty)</pre>')
    shown = text[:MAX_CHARS]
    parts, note = [(shown, False)], ""
    if other is not None and text != other:
        parts, note = _compare(text, other)
    rest = len(text) - len(shown)
    if rest:
        note = f"{rest:,} more characters are in the record. {note}"
    footnote = Markup("<small>{}</small>").format(note.strip()) if note else Markup("")
    if len(shown) <= FOLDED_CHARS:
        return Markup('<pre dir="auto">{}</pre>{}').format(_render(parts), footnote)
    return Markup(
        '<details class="long"><summary><pre dir="auto" class="head">{}…</pre><small>all {:,} characters</small></summary>'
        '<pre dir="auto">{}</pre>{}</details>'
    ).format(_render(_head(parts)), len(text), _render(parts), footnote)


def name_hidden(text: str) -> Markup:
    """Text as HTML in which every hidden character is spelled out: `U+202E`."""
    parts, end = [], 0
    text = text.replace("\r\n", "\n")
    for match in HIDDEN.finditer(text):
        parts += [escape(text[end : match.start()]), Markup('<span class="hidden">U+{:04X}</span>').format(ord(match.group()))]
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


def mark_differences(text: str, other: str) -> list[Part] | None:
    """`text` in parts, those that are not in `other` at that place marked; None where the two are too long, or have little in common."""
    words, others = WORDS.findall(text), WORDS.findall(other)
    if len(words) > MAX_WORDS or len(others) > MAX_WORDS:
        return None
    matcher = SequenceMatcher(None, words, others, autojunk=False)
    parts = [("".join(words[start:end]), kind != "equal") for kind, start, end, _, _ in matcher.get_opcodes()]
    shorter = min(sum(len(word) for word in own if not word.isspace()) for own in (words, others))
    num_shared = sum(len(part) - sum(map(str.isspace, part)) for part, is_different in parts if not is_different)
    if num_shared < MIN_ALIKE * shorter:
        return None
    return [(part, is_different) for part, is_different in parts if part]


def _compare(text: str, other: str) -> tuple[list[Part], str]:
    shown = text[:MAX_CHARS]
    if shown == other[:MAX_CHARS]:
        return [(shown, False)], "They differ only after what is shown."
    parts = mark_differences(shown, other[:MAX_CHARS])
    if parts is None:
        return [(shown, False)], "Too long or too different to mark the differences." if len(shown) > FOLDED_CHARS else ""
    return parts, ""


def _head(parts: list[Part]) -> list[Part]:
    head, room = [], HEAD_CHARS
    for part, is_different in parts:
        head.append((part[:room], is_different))
        room -= len(part)
        if room <= 0:
            break
    return head


def _render(parts: list[Part]) -> Markup:
    return Markup("").join(Markup("<mark>{}</mark>").format(name_hidden(part)) if marked else name_hidden(part) for part, marked in parts)


def one_line(text: str, most: int = 300) -> Markup:
    """A name or a reason as HTML: hidden characters named, the middle of a long one left out."""
    if len(text) > most:
        text = f"{text[: most * 2 // 3]} … {text[-most // 3 :]}"
    return name_hidden(text)
