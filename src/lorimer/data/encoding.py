"""Texts that were decoded wrongly once: repaired where that can be undone, reported where characters are lost for good.

The repair is ftfy's (Speer 2019), which undoes a wrong decoding only where the result is likelier by far. Curly quotes, ligatures,
widths and HTML entities stay as they are: those are somebody's choice, not damage.
"""

import re
from dataclasses import dataclass, field

from ftfy import TextFixerConfig, fix_text

from lorimer.data.example import Example
from lorimer.data.passages import is_emptied, list_reasons, passages, with_passages
from lorimer.data.rules import Judged

CONFIG = TextFixerConfig(
    unescape_html=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    normalization=None,
    explain=False,
)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
# what UTF-8 read as a one-byte code looks like: a lead byte's letter, then a sign or letter that a continuation byte becomes
SUSPECT = re.compile(
    r"[\x80-\x9f\u00c0-\u00f7\u0102-\u0103\u0110\u05d0-\u05ea\u0e00-\u0e3a\u0413-\u0453][\x80-\xbf\u0152-\u0192\u02c6-\u02dc\u2010-\u203a\u20ac\u2122]|\ufffd"
)
LOST = "\ufffd"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairEncoding:
    """A row rule that undoes wrong decodings and takes control characters out; where characters are lost it says so, or drops the row."""

    drop_lost: bool = False
    """Take rows out in which U+FFFD stands for a character nobody knows any more."""
    name: str = field(default="encoding", init=False)

    def __call__(self, example: Example) -> Judged:
        """Repair every text of a row."""
        if not any(_is_suspect(text) for text in passages(example)):
            return Judged(example)
        repaired = with_passages(example, repair)
        if is_emptied(example, repaired):
            return Judged(None, "nothing but control characters")
        is_lost = any(LOST in text for text in passages(repaired))
        if is_lost and self.drop_lost:
            return Judged(None, "characters were lost (U+FFFD)")
        reasons = ["wrongly decoded text was repaired"] if repaired is not example else []
        reasons += ["characters were lost (U+FFFD)"] if is_lost else []
        return Judged(repaired, list_reasons(reasons))


def repair(text: str) -> str:
    """The text as it was meant."""
    if not _is_suspect(text):
        return text
    fixed: str = fix_text(text, CONFIG)
    return CONTROL.sub("", fixed)


def _is_suspect(text: str) -> bool:
    if text.isascii():
        return not text.isprintable() and bool(CONTROL.search(text))
    return bool(SUSPECT.search(text) or CONTROL.search(text))
