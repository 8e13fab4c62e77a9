"""The 25 kinds of instruction of IFEval (Zhou et al. 2023, arXiv:2311.07911, table 1), each a rule that a program decides.

Written from the paper; where its words leave room, a rule counts as the paper's published results do (a keyword inside a longer word
counts, a text in double asterisks is highlighted). Sentences, words in capitals and languages are found by means of our own, described
at `count_sentences`, `CAPITALS` and `language_of`: at the edge of a threshold they may count otherwise than another program.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lorimer.data.language import NUM_CHARS, detect_language, known_languages

RELATIONS = ("at least", "less than")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
MAX_PIECES = 24
"""Pieces of a long answer whose language is read, spread over all of it."""
# a word with what joins its parts: "DON'T" and "AND/OR" are one word each, where the Penn treebank's rules make "DO N'T" two
CAPITALS = re.compile(r"\w+(?:[-./'\u2019]\w+)*")
ABBREVIATED = """
mr mrs ms dr prof rev hon sr jr st gen col capt lt sgt gov sen rep inc ltd co corp dept univ est approx vs etc al fig no vol pp ed
jan feb mar apr jun jul aug sep sept oct nov dec e.g i.e a.m p.m u.s u.k u.n d.c ph.d m.d b.a m.a
"""
ABBREVIATIONS = frozenset(ABBREVIATED.split())
# each mark is looked at once, whatever follows: a text of a million dots takes no longer than another
_SENTENCE_END = re.compile(r"(?<![.!?])(?P<mark>[.!?]++)[\"'\u2019\u201d)\]}*_]*+(?=\s+(?P<next>\S)|\Z)")
_LAST_WORD = re.compile(r"\S*\Z")
LONGEST_WORD = 24
"""Characters before a full stop in which an abbreviation is looked for."""
_WIDE_END = re.compile(r"[\u3002\uff01\uff1f\u0964]+")


class CannotTell(Exception):
    """An answer that a rule cannot judge, and why."""


class Kind(NamedTuple):
    """One kind of instruction."""

    check: Callable[[str, Mapping[str, Any]], str]
    """(answer, arguments) -> why it is not followed, "" if it is"""
    needs: tuple[str, ...] = ()

    def problems(self, arguments: Mapping[str, Any]) -> list[str]:
        """What is wrong with the arguments of an instruction of this kind."""
        return [
            *(f"needs the argument {name!r}" for name in self.needs if name not in arguments),
            *(f"knows no argument {name!r}" for name in arguments if name not in self.needs),
            *(
                f"{name!r} cannot be {value!r}: it is {ARGUMENTS[name][1]}"
                for name, value in arguments.items()
                if name in self.needs and not ARGUMENTS[name][0](value)
            ),
        ]


def count_sentences(text: str) -> int:
    """Sentences: ended by . ! or ? before a space or the end, by the full stops of Chinese, Japanese and Hindi, or by the end.

    A full stop after a known abbreviation, a single capital or a number that begins a line ends none; neither does "..." before a small
    letter, nor a line's end. The paper's program uses a splitter trained on newspapers (Kiss and Strunk 2006): it knows more
    abbreviations, and takes the number of a list's item for a sentence where we do not.
    """
    text = text.strip()
    num_ends, last = 0, 0
    for match in _SENTENCE_END.finditer(text):
        if _ends_sentence(text, match):
            num_ends, last = num_ends + 1, match.end()
    for match in _WIDE_END.finditer(text):
        if not match[0].isspace():
            num_ends, last = num_ends + 1, max(last, match.end())
    return num_ends + bool(re.search(r"\w", text[last:]))


def language_of(text: str) -> str:
    """The language that most of a text is written in, an ISO 639-1 code.

    Read in pieces, each with a vote of its letters, by script or py3langid's model; the paper's program uses langdetect.

    Raises:
        CannotTell: if the text has too few letters.
    """
    text = " ".join(text.split()).lower()  # the model was trained on running text: capitals alone mislead it
    starts = range(0, max(1, len(text)), NUM_CHARS)
    votes: Counter[str] = Counter()
    for start in starts[:: -(-len(starts) // MAX_PIECES)]:
        piece = text[start : start + NUM_CHARS]
        guess = detect_language(piece)
        if guess.language:
            votes[guess.language] += sum(map(str.isalpha, piece))
    if not votes:
        raise CannotTell("too few letters to tell the language")
    return votes.most_common(1)[0][0]


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    mark, after, end = match["mark"], match["next"], match.start()
    if after is None:
        return True
    if mark == ".":
        found = _LAST_WORD.search(text, max(0, end - LONGEST_WORD), end)
        word = found[0].lstrip("\"'([{*_\u2018\u201c") if found else ""
        begins_line = word.isdigit() and not text[text.rfind("\n", 0, end) + 1 : end - len(word)].strip()
        return not (word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I") or begins_line)
    return not (set(mark) == {"."} and after.islower())


def _relation(number: int, relation: str, bound: int, what: str) -> str:
    followed = number >= bound if relation == "at least" else number < bound
    return "" if followed else f"has {number} {what}, not {relation} {bound}"


def _exactly(number: int, wanted: int, what: str) -> str:
    return "" if number == wanted else f"has {number} {what}, not {wanted}"


def _keywords(answer: str, told: Mapping[str, Any]) -> str:
    missing = [word for word in told["keywords"] if word.strip().lower() not in answer.lower()]
    return f"does not have {', '.join(map(repr, missing))}" if missing else ""


def _keyword_frequency(answer: str, told: Mapping[str, Any]) -> str:
    word = told["keyword"].strip()
    return _relation(answer.lower().count(word.lower()), told["relation"], told["frequency"], f"times {word!r}")


def _forbidden_words(answer: str, told: Mapping[str, Any]) -> str:
    words = [word.strip() for word in told["forbidden_words"]]
    found = [word for word in words if re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE)]
    return f"has {', '.join(map(repr, found))}" if found else ""


def _letter_frequency(answer: str, told: Mapping[str, Any]) -> str:
    letter = told["letter"].strip().lower()
    return _relation(answer.lower().count(letter), told["let_relation"], told["let_frequency"], f"letters {letter!r}")


def _response_language(answer: str, told: Mapping[str, Any]) -> str:
    found = language_of(answer)
    return "" if found == told["language"] else f"is written in {found!r}, not {told['language']!r}"


def _number_paragraphs(answer: str, told: Mapping[str, Any]) -> str:
    first, *rest = answer.split("***")
    *middle, last = rest or [""]
    if any(not paragraph.strip() for paragraph in middle):
        return "has an empty paragraph between two dividers"
    number = sum(bool(paragraph.strip()) for paragraph in (first, *middle, last))
    return _exactly(number, told["num_paragraphs"], "paragraphs divided by ***")


def _number_words(answer: str, told: Mapping[str, Any]) -> str:
    return _relation(len(re.findall(r"\w+", answer)), told["relation"], told["num_words"], "words")


def _number_sentences(answer: str, told: Mapping[str, Any]) -> str:
    return _relation(count_sentences(answer), told["relation"], told["num_sentences"], "sentences")


def _nth_paragraph_first_word(answer: str, told: Mapping[str, Any]) -> str:
    paragraphs = answer.split("\n\n")
    number, nth = sum(bool(paragraph.strip()) for paragraph in paragraphs), told["nth_paragraph"]
    if number != told["num_paragraphs"]:
        return _exactly(number, told["num_paragraphs"], "paragraphs divided by an empty line")
    paragraph = paragraphs[nth - 1].strip() if nth <= number else ""
    word = re.split(r"[.,?!'\"]", (paragraph.split() or [""])[0].lstrip("'").lstrip('"'))[0].lower()
    return "" if word and word == told["first_word"].lower() else f"paragraph {nth} begins with {word!r}, not {told['first_word']!r}"


def _number_placeholders(answer: str, told: Mapping[str, Any]) -> str:
    number = sum("[" in part for line in answer.split("\n") for part in line.split("]")[:-1])
    return _relation(number, "at least", told["num_placeholders"], "placeholders in square brackets")


def _postscript(answer: str, told: Mapping[str, Any]) -> str:
    marker = told["postscript_marker"].strip()
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, re.escape(marker))
    return "" if re.search(pattern, answer, re.IGNORECASE) else f"has no postscript {marker}"


def _number_bullets(answer: str, told: Mapping[str, Any]) -> str:
    number = sum(bool(re.match(r"\s*(-|\*[^*])", line)) for line in answer.split("\n"))
    return _exactly(number, told["num_bullets"], "bullet points")


def _constrained_response(answer: str, told: Mapping[str, Any]) -> str:
    return "" if any(option in answer for option in OPTIONS) else f"is none of {', '.join(map(repr, OPTIONS))}"


def _number_highlights(answer: str, told: Mapping[str, Any]) -> str:
    single = [text for text in re.findall(r"\*([^\n*]*)\*", answer) if text.strip()]
    double = [text for text in re.findall(r"\*\*([^\n*]*)\*\*", answer) if text.strip()]
    return _relation(len(single) + len(double), "at least", told["num_highlights"], "highlighted sections")


def _multiple_sections(answer: str, told: Mapping[str, Any]) -> str:
    marker = told["section_spliter"].strip()
    return _relation(len(re.findall(rf"{re.escape(marker)}\s?\d+", answer)), "at least", told["num_sections"], f"sections {marker!r}")


def _json_format(answer: str, told: Mapping[str, Any]) -> str:
    text = re.sub(r"\A```(json|Json|JSON)?|```\Z", "", answer.strip())
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return "is not JSON as a whole"
    return ""


def _title(answer: str, told: Mapping[str, Any]) -> str:
    for line in answer.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end - 2 and line[start:end].strip("<>").strip():
            return ""
    return "has no title in double angular brackets"


def _two_responses(answer: str, told: Mapping[str, Any]) -> str:
    parts = [part.strip() for part in answer.split("******")]
    if not all(parts[1:-1]):
        return "has an empty response"
    responses = [part for part in parts if part]
    if len(responses) != 2:
        return _exactly(len(responses), 2, "responses divided by ******")
    return "" if responses[0] != responses[1] else "has the same response twice"


def _repeat_prompt(answer: str, told: Mapping[str, Any]) -> str:
    begins = answer.strip().lower().startswith(told["prompt_to_repeat"].strip().lower())
    return "" if begins else "does not begin with the request, repeated word for word"


def _end_checker(answer: str, told: Mapping[str, Any]) -> str:
    phrase = told["end_phrase"].strip()
    return "" if answer.strip().strip('"').lower().endswith(phrase.lower()) else f"does not end with {phrase!r}"


def _capital_words(answer: str, told: Mapping[str, Any]) -> str:
    number = sum(map(str.isupper, CAPITALS.findall(answer)))
    return _relation(number, told["capital_relation"], told["capital_frequency"], "words in capitals")


def _english_capital(answer: str, told: Mapping[str, Any]) -> str:
    return _response_language(answer, {"language": "en"}) if answer.isupper() else "is not all in capitals"


def _english_lowercase(answer: str, told: Mapping[str, Any]) -> str:
    return _response_language(answer, {"language": "en"}) if answer.islower() else "is not all in small letters"


def _no_comma(answer: str, told: Mapping[str, Any]) -> str:
    return _exactly(answer.count(","), 0, "commas")


def _quotation(answer: str, told: Mapping[str, Any]) -> str:
    text = answer.strip()
    return "" if len(text) > 1 and text[0] == text[-1] == '"' else "is not wrapped in double quotation marks"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


COUNT = (_is_count, "a whole number of 0 or more")
TEXT = (_is_text, "a text")
TEXTS = (_are_texts, "a list of texts")
RELATION = (RELATIONS.__contains__, f"one of {', '.join(map(repr, RELATIONS))}")
ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "capital_frequency": COUNT,
    "capital_relation": RELATION,
    "end_phrase": TEXT,
    "first_word": TEXT,
    "forbidden_words": TEXTS,
    "frequency": COUNT,
    "keyword": TEXT,
    "keywords": TEXTS,
    "language": (lambda value: value in known_languages(), "an ISO 639-1 code of a language that is told apart here"),
    "let_frequency": COUNT,
    "let_relation": RELATION,
    "letter": (lambda value: _is_text(value) and len(value.strip()) == 1, "one letter"),
    "nth_paragraph": (lambda value: _is_count(value) and value > 0, "a whole number of 1 or more"),
    "num_bullets": COUNT,
    "num_highlights": COUNT,
    "num_paragraphs": COUNT,
    "num_placeholders": COUNT,
    "num_sections": COUNT,
    "num_sentences": COUNT,
    "num_words": COUNT,
    "postscript_marker": TEXT,
    "prompt_to_repeat": TEXT,
    "relation": RELATION,
    "section_spliter": TEXT,
}
KINDS: dict[str, Kind] = {
    "keywords:existence": Kind(_keywords, ("keywords",)),
    "keywords:frequency": Kind(_keyword_frequency, ("keyword", "frequency", "relation")),
    "keywords:forbidden_words": Kind(_forbidden_words, ("forbidden_words",)),
    "keywords:letter_frequency": Kind(_letter_frequency, ("letter", "let_frequency", "let_relation")),
    "language:response_language": Kind(_response_language, ("language",)),
    "length_constraints:number_paragraphs": Kind(_number_paragraphs, ("num_paragraphs",)),
    "length_constraints:number_words": Kind(_number_words, ("num_words", "relation")),
    "length_constraints:number_sentences": Kind(_number_sentences, ("num_sentences", "relation")),
    "length_constraints:nth_paragraph_first_word": Kind(_nth_paragraph_first_word, ("num_paragraphs", "nth_paragraph", "first_word")),
    "detectable_content:number_placeholders": Kind(_number_placeholders, ("num_placeholders",)),
    "detectable_content:postscript": Kind(_postscript, ("postscript_marker",)),
    "detectable_format:number_bullet_lists": Kind(_number_bullets, ("num_bullets",)),
    "detectable_format:constrained_response": Kind(_constrained_response),
    "detectable_format:number_highlighted_sections": Kind(_number_highlights, ("num_highlights",)),
    "detectable_format:multiple_sections": Kind(_multiple_sections, ("section_spliter", "num_sections")),
    "detectable_format:json_format": Kind(_json_format),
    "detectable_format:title": Kind(_title),
    "combination:two_responses": Kind(_two_responses),
    "combination:repeat_prompt": Kind(_repeat_prompt, ("prompt_to_repeat",)),
    "startend:end_checker": Kind(_end_checker, ("end_phrase",)),
    "change_case:capital_word_frequency": Kind(_capital_words, ("capital_frequency", "capital_relation")),
    "change_case:english_capital": Kind(_english_capital),
    "change_case:english_lowercase": Kind(_english_lowercase),
    "punctuation:no_comma": Kind(_no_comma),
    "startend:quotation": Kind(_quotation),
}
