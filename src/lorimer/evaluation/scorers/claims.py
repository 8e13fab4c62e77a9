"""What an answer claims that a text can bear out: numbers, dates, names, quotations, addresses. Found by rule, so always the same.

Claims of other kinds ("the shop is popular") are not seen, nor are false links between true parts ("Anna pays" where Bert does): a share
of 1 means that nothing was made up that these rules see. A number that was worked out (two of three left: one) counts as not borne out.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

from lorimer.evaluation.scorers.words import FUNCTION_WORDS, GREETINGS, MONTHS, number_words

Kind = Literal["address", "quotation", "date", "number", "name"]

ADDRESS = re.compile(r"(?:https?://|www\.)[^\s<>\"')\]]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+", re.IGNORECASE)
QUOTATION = re.compile(
    r"\"([^\"\n]{2,})\"|\u201c([^\u201d\n]{2,})\u201d|\u201e([^\u201c\u201d\n]{2,})[\u201c\u201d]|\u00ab([^\u00bb\n]{2,})\u00bb"
)
MIN_QUOTED_WORDS = 2  # one word in marks is a manner of speaking
LIST_MARK = re.compile(r"^[ \t]*(?:\d{1,2}[.)]|[-*\u2022])[ \t]+", re.MULTILINE)
HEADING = re.compile(r"^[ \t]*(?:#.*|\*\*[^*\n]+\*\*:?[ \t]*)$", re.MULTILINE)
NUMBER = re.compile(r"\d+(?:[.,:'\u2019\u00a0\u202f]\d+)*")
WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
SENTENCE_END = re.compile(r"(?<=[^\d\s][.!?])\s+|\n+")
ISO_DATE = re.compile(r"(?<!\d)(\d{4})-(\d{1,2})-(\d{1,2})(?!\d)")
SHORT_DATE = re.compile(r"(?<![\d.])(\d{1,2})[./](\d{1,2})[./](\d{4})(?!\d)")
_MONTH = "|".join(sorted(MONTHS, key=len, reverse=True))
DAY_FIRST = re.compile(
    rf"(?<!\d)(\d{{1,2}})(?:st|nd|rd|th|er|\u00ba|\.)?\s+(?:of\s+|de\s+)?({_MONTH})\b(?:,?\s+(?:de\s+)?(\d{{4}}))?", re.IGNORECASE
)
MONTH_FIRST = re.compile(rf"\b({_MONTH})\s+(\d{{1,2}})(?:st|nd|rd|th)?(?![\d:])(?:,?\s+(\d{{4}}))?", re.IGNORECASE)
NAMES_BY_CASE = frozenset({"en", "fr", "es", "it"})  # German writes every noun with a capital: there only names of several words count
MAX_UPPER_SHARE = 0.6  # a text in capitals says nothing by them


class Date(NamedTuple):
    """A day; a year of 0 was not said."""

    day: int
    month: int
    year: int = 0


class Claim(NamedTuple):
    """One thing said that another text can hold or not."""

    kind: Kind
    text: str
    """As the answer writes it."""
    value: str | Date | set[str] | tuple[str, ...]
    """What is compared: the text in one case, a Date, readings of a number, or the words of a name."""


@dataclass(frozen=True)
class Source:
    """A text that claims are held against."""

    text: str
    language: str = "en"

    @cached_property
    def plain(self) -> str:
        """In one case, spaces and quotation marks made alike."""
        return plain(self.text)

    @cached_property
    def numbers(self) -> frozenset[str]:
        return frozenset(numbers_in(self.text, self.language))

    @cached_property
    def words(self) -> tuple[str, ...]:
        return tuple(WORD.findall(_normal(self.text)))

    @cached_property
    def stems(self) -> frozenset[str]:
        """Its words; parts of "north-west" count, too."""
        return frozenset(stem(part) for word in self.words for part in (word, *re.split(r"['\u2019-]", word)))

    @cached_property
    def days(self) -> frozenset[tuple[str, int]]:
        """(day, month) wherever both stand in one sentence: "from 5 to 11 May" holds both days."""
        pairs = {(str(date.day), date.month) for date, _ in dates_in(self.text)}
        for sentence in SENTENCE_END.split(_normal(self.text)):
            months = {MONTHS[word] for word in WORD.findall(sentence.casefold()) if word in MONTHS}
            pairs |= {(number, month) for number in numbers_in(sentence, self.language) for month in months}
        return frozenset(pairs)

    @cached_property
    def neighbours(self) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
        """For each word what follows it and what goes before it; "" for anything that is not a word with a capital."""
        after: dict[str, set[str]] = {}
        before: dict[str, set[str]] = {}
        for left, right in zip(("", *self.words), (*self.words, ""), strict=True):
            after.setdefault(stem(left), set()).add(stem(right) if right[:1].isupper() else "")
            before.setdefault(stem(right), set()).add(stem(left) if left[:1].isupper() else "")
        return after, before


def find_claims(answer: str, language: str = "en") -> list[Claim]:
    """The claims of an answer, each kind looked for in what the kinds before it left."""
    rest = _normal(answer)
    found = [Claim("address", text, text.casefold()) for text in (match[0].rstrip(".,;:!?") for match in ADDRESS.finditer(rest))]
    rest = ADDRESS.sub(" ; ", rest)
    quotations = [match for match in QUOTATION.finditer(rest) if len(match[0].split()) >= MIN_QUOTED_WORDS]
    found += [Claim("quotation", match[0], plain(match[0][1:-1]).strip(" .,;:!?")) for match in quotations]
    for match in quotations:
        rest = rest.replace(match[0], " ; ", 1)
    rest = LIST_MARK.sub("", rest)
    dates = dates_in(rest)
    found += [Claim("date", text, date) for date, text in dates]
    for _, text in dates:
        rest = rest.replace(text, " ; ", 1)
    found += [Claim("number", match[0], readings(match[0])) for match in NUMBER.finditer(rest)]
    spelled = number_words(language)
    found += [Claim("number", word, {spelled[word.casefold()]}) for word in WORD.findall(rest) if word.casefold() in spelled]
    names = names_in(HEADING.sub("", rest), language)
    return found + [Claim("name", " ".join(words).removeprefix("^"), words) for words in names]


def unsupported(answer: str, source: Source) -> tuple[list[Claim], int]:
    """The claims of an answer that its source does not bear out, and how many claims there are in all."""
    claims = find_claims(answer, source.language)
    return [claim for claim in claims if not _is_borne_out(claim, source)], len(claims)


def mentions(answer: str, fact: str, language: str = "en") -> bool:
    """Does an answer name a fact: all its numbers and all its words, in whatever order and form of case or number?"""
    said = Source(answer, language)
    spelled = number_words(language)
    words = [word for word in WORD.findall(_normal(fact)) if word.casefold() not in spelled]
    return all(any(readings_of & said.numbers) for readings_of in _number_claims(fact, language)) and all(
        stem(word) in said.stems for word in words
    )


def numbers_in(text: str, language: str = "en") -> Iterator[str]:
    """Every reading of every number in a text, in figures or in words."""
    spelled = number_words(language)
    for match in NUMBER.finditer(text):
        yield from readings(match[0])
        yield from (part.lstrip("0") or "0" for part in re.split(r"\D", match[0]))
    for word in WORD.findall(text):
        if word.casefold() in spelled:
            yield spelled[word.casefold()]


def readings(figures: str) -> set[str]:
    """What a number may mean: 1,240 is 1240 where commas group, and 1.24 where they divide; 07:25 is 7:25."""
    figures = figures.replace("\u2019", "'").replace("\u00a0", "'").replace("\u202f", "'")
    if ":" in figures:
        head, *tail = figures.split(":")
        return {":".join([head.lstrip("0") or "0", *tail])}
    parts = re.split(r"[.,']", figures)
    meant = set()
    if len(parts) == 1 or all(len(part) == 3 for part in parts[1:]):
        meant.add("".join(parts).lstrip("0") or "0")
    marks = re.sub(r"\d", "", figures)
    if len(marks) == 1 or (marks and marks[-1] not in marks[:-1] and all(len(part) == 3 for part in parts[1:-1])):
        whole, fraction = "".join(parts[:-1]).lstrip("0") or "0", parts[-1].rstrip("0")
        meant.add(f"{whole}.{fraction}" if fraction else whole)
    return meant or {figures}  # a version such as 3.8.1 is itself


def dates_in(text: str) -> list[tuple[Date, str]]:
    """The dates of a text that name a day, each with the words that say it. 5/6/2026 is read as 5 June."""
    found = [(Date(int(match[3]), int(match[2]), int(match[1])), match[0]) for match in ISO_DATE.finditer(text)]
    found += [(Date(int(match[1]), int(match[2]), int(match[3])), match[0]) for match in SHORT_DATE.finditer(text)]
    taken: list[tuple[int, int]] = []
    for pattern, day, month in ((DAY_FIRST, 1, 2), (MONTH_FIRST, 2, 1)):
        for match in pattern.finditer(text):
            if all(match.end() <= start or end <= match.start() for start, end in taken):
                taken.append(match.span())
                found.append((Date(int(match[day]), MONTHS[match[month].casefold()], int(match[3] or 0)), match[0]))
    return found


def names_in(text: str, language: str = "en") -> Iterator[tuple[str, ...]]:
    """Runs of words with a capital that do not owe it to the beginning of a sentence."""
    letters = [letter for letter in text if letter.isalpha()]
    if not letters or sum(letter.isupper() for letter in letters) > MAX_UPPER_SHARE * len(letters):
        return
    for sentence in re.split(r"(?<=[.!?:;])\s+|\n+|[;:()\[\]\u2013\u2014\u00bf\u00a1*]", text):
        run: list[str] = []
        first, end = True, 0
        for match in [*WORD.finditer(sentence), None]:
            word = match[0] if match else ""
            is_name = word[:1].isupper() and word.casefold() not in GREETINGS and not word.startswith(("I'", "I\u2019"))
            if first and word.casefold() in FUNCTION_WORDS:
                is_name = False
            if run and (not is_name or (match and sentence[end : match.start()].strip())):
                yield from _name(run, language)
                run = []
            if is_name and match:
                run.append(("^" if first else "") + word)
            first, end = False, match.end() if match else 0


def stem(word: str) -> str:
    """A word in one case without the ending of a genitive or a plural."""
    return re.sub(r"(?:['\u2019]s|s['\u2019]?)$", "", word.casefold())


def plain(text: str) -> str:
    """In one case, with single spaces and one kind of apostrophe."""
    return " ".join(_normal(text).casefold().replace("\u2019", "'").split())


def _name(run: list[str], language: str) -> Iterator[tuple[str, ...]]:
    """A run as a name; a word that opens a sentence (marked ^) is in doubt: alone it is none, before others it may be dropped."""
    opens = run[0].startswith("^")
    if len(run) - opens >= (1 if language in NAMES_BY_CASE else 2):
        yield tuple(run)


def _is_borne_out(claim: Claim, source: Source) -> bool:
    match claim.value:
        case str() as text:
            return text in source.plain
        case Date() as date:
            is_day = (str(date.day), date.month) in source.days
            return is_day and (not date.year or str(date.year) in source.numbers)
        case set() as meant:
            return bool(meant & source.numbers)
        case words:
            name = tuple(word.removeprefix("^") for word in words)
            return _is_name_in(name, source) or (words[0].startswith("^") and _is_name_in(name[1:], source))


def _is_name_in(name: tuple[str, ...], source: Source) -> bool:
    """All words are there, and no two of them each belong to another name only (Anna Weber of Anna Smith and Jo Weber)."""
    words = [stem(word) for word in name]
    if not all(word in source.stems or all(part in source.stems for part in map(stem, re.split(r"['\u2019-]", word))) for word in words):
        return False
    after, before = source.neighbours
    for left, right in pairwise(words):
        follows, leads = after.get(left, {""}), before.get(right, {""})
        if right not in follows and "" not in follows and "" not in leads:
            return False
    return True


def _number_claims(text: str, language: str) -> list[set[str]]:
    spelled = number_words(language)
    found = [readings(match[0]) for match in NUMBER.finditer(_normal(text))]
    return found + [{spelled[word.casefold()]} for word in WORD.findall(text) if word.casefold() in spelled]


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)
