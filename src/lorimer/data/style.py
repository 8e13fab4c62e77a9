"""How a person wrote: colloquially, politely, as a question, in key words, with slips of spelling. Said of rows, never held against them.

Variety of style is wanted in training data, so this reports and drops nothing. Slips are found over a whole set: a word that is rare in it
and one edit away from a word that is frequent in it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

COLLOQUIAL = re.compile(
    r"(?<!\w)(?:wanna|gonna|gotta|gimme|lemme|dunno|kinda|sorta|ya|yall|ur|u|r|thx|pls|plz|cuz|coz|cya|btw|asap|yeah|yep|nope|hey|hiya|"
    r"i[md]|ive|ill|dont|doesnt|didnt|cant|couldnt|wont|wouldnt|isnt|arent|wasnt|havent|hasnt|thats|whats|hows|wheres|im|ain'?t)(?!\w)"
)
POLITE = re.compile(
    r"(?<!\w)(?:please|kindly|could you|could i|would you|would i|may i|might i|would like|'d like|thank you|thanks|appreciate|"
    r"grateful)(?!\w)",
    re.IGNORECASE,
)
QUESTION = re.compile(
    r"\?\s*$|^(?:how|what|where|when|who|whom|why|which|can|could|may|is|are|am|do|does|did|will|would|should)(?!\w)", re.IGNORECASE
)
FUNCTION_WORD = re.compile(
    r"(?<!\w)(?:i|you|he|she|it|we|they|me|us|them|my|your|ur|our|their|the|a|an|is|are|am|was|were|be|do|does|did|have|has|had|can|could|will|"
    r"would|should|may|must|how|what|where|when|who|why|which|want|wanna|need|help|please|that|this|these|those)(?!\w)",
    re.IGNORECASE,
)
WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")
NO_SUBJECT = re.compile(r"(?:want|need|have|got)(?!\w)")
SPACING = re.compile(r"[^\W\d_] {2,}\w|\w {2,}[^\W\d_]|[^\W\d_]{3,}\d{4,}| [,?!](?:\s|$)")
LOWER_I = re.compile(r"(?<!\w)i(?=[ ']|$)")
MAX_KEY_WORDS = 8
RARE, FREQUENT, TIMES = 6, 20, 12
MIN_WORD_LEN = 4


class Slip(NamedTuple):
    """A word that looks like a slip, and the word it was to be."""

    word: str
    meant: str


def describe_style(text: str) -> tuple[str, ...]:
    """What can be said of the style of a short message in English."""
    said = []
    has_capital = text[:1].isupper()
    if COLLOQUIAL.search(text) or LOWER_I.search(text) or NO_SUBJECT.match(text):
        said.append("colloquial")
    if POLITE.search(text):
        said.append("polite")
    if QUESTION.search(text.strip()):
        said.append("question")
    if SPACING.search(text):
        said.append("spacing")
    words = WORD.findall(text)
    if 0 < len(words) <= MAX_KEY_WORDS and not has_capital and not FUNCTION_WORD.search(text):
        said.append("keywords")
    return tuple(said)


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word stands in a set, in lower case."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(WORD.findall(text.lower()))
    return counts


def find_slips(counts: Counter[str]) -> dict[str, Slip]:
    """Rare words one edit (a letter more, less, another, or two swapped) from a frequent one, or two frequent words run together."""
    frequent = {word for word, count in counts.items() if count >= FREQUENT}
    slips = {}
    for word, count in counts.items():
        if count > RARE or len(word) < MIN_WORD_LEN or word in frequent:
            continue
        near = [other for other in _edits(word) if other in frequent and counts[other] >= TIMES * count]
        # a form of the same word (order, orders; ship, shipped) is no slip
        near = [other for other in near if not _is_form(word, other)]
        joined = next((f"{word[:at]} {word[at:]}" for at in range(1, len(word)) if word[:at] in frequent and word[at:] in frequent), "")
        if near:
            slips[word] = Slip(word, max(near, key=lambda other: (counts[other], other)))
        elif joined and len(word) > MIN_WORD_LEN:
            slips[word] = Slip(word, joined)
    return slips


def slips_in(text: str, slips: dict[str, Slip]) -> list[Slip]:
    """The slips that stand in a text."""
    return [slips[word] for word in WORD.findall(text.lower()) if word in slips]


def _edits(word: str) -> Sequence[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    parts = [(word[:at], word[at:]) for at in range(len(word) + 1)]
    swapped = [left + right[1] + right[0] + right[2:] for left, right in parts if len(right) > 1]
    shorter = [left + right[1:] for left, right in parts if right]
    other = [left + letter + right[1:] for left, right in parts if right for letter in letters]
    longer = [left + letter + right for left, right in parts for letter in letters]
    return list({*swapped, *shorter, *other, *longer} - {word})


def _is_form(word: str, other: str) -> bool:
    short, long = sorted((word, other), key=len)
    return long in (f"{short}s", f"{short}d", f"{short}'s", f"{short}r", f"{short}y", f"{short}n")
