"""Answers that are numbers, found in running text; and GSM8K's two ways to read one, as lm-evaluation-harness does.

A number is written the English way ("1,234.5"), or with `spec["decimal"]: ","` the German way ("1.234,5"). Numbers are compared as exact
fractions, so that 0.1 is 1/10 and no rounding decides.
"""

import re
import unicodedata
from fractions import Fraction
from typing import Any, NamedTuple

from lorimer.evaluation.scorers.score import Score, scored
from lorimer.evaluation.task import Sample

MAX_EXPONENT = 400
"""Larger powers of ten are not read: no answer needs them, and writing one out would fill the memory."""
MAX_DIGITS = 400
CURRENCY = "$€£¥₹₩"
_WHOLE = r"\d{1,3}(?:[,'\u00a0\u202f\u2009]\d{3})+(?!\d)|\d+"
NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w.)\]])[-+\u2212\u2013])?         # a minus after a word or a number is a dash: "3-5" ends with 5
    (?:[{CURRENCY}]\s?)?
    (?:
      (?:(?P<wholes>\d+)[ ](?=\d+[/\u2044]\d))?      # "1 1/2"
      (?P<top>\d+)\s?[/\u2044]\s?(?P<bottom>\d+)(?!\d|[.,]\d)
    | (?P<number>(?:{_WHOLE})(?:\.\d+)?|\.\d+)
      (?:[eE](?P<e>[-+]?\d+)|\s?[×x*]\s?10(?:\^|\*\*)\{{?(?P<power>[-+\u2212]?\d+)\}}?)?
    )
    (?P<percent>\s?(?:\\?%|percent\b|per\ cent\b))?
    """,
    re.VERBOSE,
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_LATEX_GROUP = re.compile(r"(?<=\d)\{,\}(?=\d{3})")

# the patterns and stops are those of lm-evaluation-harness's task gsm8k, version 3.0
GSM8K_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
GSM8K_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
GSM8K_STOPS = ("Question:", "</s>", "<|im_end|>")


class Number(NamedTuple):
    """A number as written, "50%" as 50 and a percentage."""

    value: Fraction
    is_percentage: bool


def numeric(answer: str, sample: Sample) -> Score:
    r"""Right if the answer's number is the target's, within `spec["tolerance"]`.

    The number is the first after the last "####", else the one in the last "\boxed{}", else the last of the text. Thousands
    separators, currency signs, fractions ("3/4", "1 1/2", "½") and powers of ten are read; units are not. "50%" equals 50 and also 0.5,
    where only one of the two is written as a percentage. The tolerance is a number (absolute), or {"absolute": a, "relative": r}, of
    which the wider counts; without one the numbers must be equal.
    """
    spec = sample.spec
    problems = _problems(spec)
    decimal = spec.get("decimal", ".")
    wanted = None if problems else last_number(sample.target, decimal)
    if not problems and wanted is None:
        problems.append(f"the target {sample.target[:80]!r} holds no number")
    if problems or wanted is None:
        return Score(value=None, answer=answer, explanation="; ".join(problems))
    found = last_number(answer, decimal)
    if found is None:
        return scored(False, answer, "holds no number")
    absolute, relative = _tolerance(spec)
    right = any(abs(a - b) <= max(absolute, relative * abs(b)) for a, b in _readings(found, wanted))
    return scored(right, answer, f"its number is {_show(found)}, not {_show(wanted)}")


def gsm8k_strict(answer: str, sample: Sample) -> Score:
    """Right as lm-evaluation-harness's filter `strict-match` has it: the number after the first "#### " is the target's."""
    matches = GSM8K_STRICT.findall(_until_stop(answer))
    return _gsm8k(matches[0] if matches else "[invalid]", answer, sample)


def gsm8k_flexible(answer: str, sample: Sample) -> Score:
    """Right as lm-evaluation-harness's filter `flexible-extract` has it: the last thing like a number is the target's, as text."""
    matches = GSM8K_FLEXIBLE.findall(_until_stop(answer))
    return _gsm8k(matches[-1][0] or matches[-1][1] if matches else "[invalid]", answer, sample)


def last_number(text: str, decimal: str = ".") -> Number | None:
    """The number that a text arrives at; None where it holds none."""
    text = _LATEX_GROUP.sub(",", _LATEX_FRACTION.sub(r" \1/\2", text))
    text = "".join(_plain(sign) for sign in text)
    if decimal == ",":
        text = text.translate(str.maketrans(",.", ".,"))
    _, mark, after = text.rpartition("####")
    if mark and (numbers := _numbers(after)):
        return numbers[0]
    boxed = [number for content in _BOXED.findall(text) for number in _numbers(content)]
    numbers = boxed or _numbers(text)
    return numbers[-1] if numbers else None


def _plain(sign: str) -> str:
    """A digit of any script as ASCII, a sign such as "½" as " 1/2"; anything else as it is, so that "m²" adds no number."""
    if sign.isascii():
        return sign
    if unicodedata.category(sign) == "Nd":
        return str(unicodedata.digit(sign))
    spelled = unicodedata.normalize("NFKC", sign)
    return f" {spelled}" if "\u2044" in spelled and spelled[-1].isdigit() else sign


def _numbers(text: str) -> list[Number]:
    found = (_number(match) for match in NUMBER.finditer(text))
    return [number for number in found if number is not None]


def _number(match: re.Match[str]) -> Number | None:
    exponent = (match["e"] or match["power"] or "0").replace("\u2212", "-")
    if len(match[0]) > MAX_DIGITS or abs(int(exponent)) > MAX_EXPONENT:
        return None
    if match["top"]:
        if int(match["bottom"]) == 0:
            return None
        value = Fraction(int(match["top"]), int(match["bottom"])) + int(match["wholes"] or 0)
    else:
        value = Fraction(re.sub(r"[^\d.]", "", match["number"])) * Fraction(10) ** int(exponent)
    negative = (match["sign"] or "+").strip() != "+"
    return Number(-value if negative else value, match["percent"] is not None)


def _readings(found: Number, wanted: Number) -> list[tuple[Fraction, Fraction]]:
    """What can be compared with what: a percentage beside a plain number can mean it or its hundredth."""
    if found.is_percentage == wanted.is_percentage:
        return [(found.value, wanted.value)]
    hundredth = Fraction(1, 100)
    as_shares = (found.value * hundredth, wanted.value) if found.is_percentage else (found.value, wanted.value * hundredth)
    return [(found.value, wanted.value), as_shares]


def _problems(spec: dict[str, Any]) -> list[str]:
    problems = []
    tolerance = spec.get("tolerance", 0)
    parts = tolerance if isinstance(tolerance, dict) else {"absolute": tolerance}
    if set(parts) - {"absolute", "relative"} or not all(_is_bound(value) for value in parts.values()):
        problems.append(f'spec tolerance is a number of 0 or more, or {{"absolute": a, "relative": r}}, not {tolerance!r}')
    if spec.get("decimal", ".") not in (".", ","):
        problems.append(f"spec decimal is '.' or ',', not {spec['decimal']!r}")
    return problems


def _is_bound(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _tolerance(spec: dict[str, Any]) -> tuple[Fraction, Fraction]:
    tolerance = spec.get("tolerance", 0)
    parts = tolerance if isinstance(tolerance, dict) else {"absolute": tolerance}
    return Fraction(str(parts.get("absolute", 0))), Fraction(str(parts.get("relative", 0)))


def _show(number: Number) -> str:
    value = number.value
    plain = str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"
    return plain[:40] + ("%" if number.is_percentage else "")


def _until_stop(answer: str) -> str:
    """What lm-evaluation-harness would have seen: it stops the model at these texts."""
    for stop in GSM8K_STOPS:
        answer = answer.partition(stop)[0]
    return answer


def _compared(text: str) -> str:
    """Without what the task's `regexes_to_ignore` name: commas, dollars, all before the last "#### ", a full stop at the end."""
    return re.sub(r"\.$", "", text.replace(",", "").replace("$", "").rpartition("#### ")[2])


def _gsm8k(extracted: str, answer: str, sample: Sample) -> Score:
    found, wanted = _compared(extracted.strip()), _compared(sample.target)
    if not wanted:
        return Score(value=None, answer=answer, explanation="the target holds no answer")
    return scored(found.lower() == wanted.lower(), answer, f"{found!r} was read from it, not {wanted[:80]!r}")
