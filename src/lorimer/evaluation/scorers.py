"""Is one answer right? Each scorer is one small rule. What cannot be judged is unscored: kept, but neither right nor wrong."""

import json
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

from lorimer.evaluation.score import Score, Scorer, scored
from lorimer.evaluation.statistics import Proportion, proportion_of
from lorimer.evaluation.task import Sample
from lorimer.storage import canonical_json


def exact(answer: str, sample: Sample) -> Score:
    """Right if the texts are equal once trimmed."""
    right = _trim(answer) == _trim(sample.target)
    return scored(right, answer, "differs from the wanted text")


def exact_json(answer: str, sample: Sample) -> Score:
    """Right if the whole answer is one JSON object with exactly the target's fields and values."""
    wanted, found = parse_object(sample.target), parse_object(answer)
    if wanted is None:
        return Score(value=None, answer=answer, explanation="the target is not a JSON object")
    if found is None:
        return scored(False, answer, "is not one JSON object and nothing else")
    problems = [
        *(f"{name!r} differs" for name in wanted if name in found and found[name] != wanted[name]),
        *(f"{name!r} is missing" for name in wanted if name not in found),
        *(f"{name!r} is not wanted" for name in found if name not in wanted),
    ]
    return scored(not problems, answer, "; ".join(problems))


def contains(answer: str, sample: Sample) -> Score:
    """Right if the target appears somewhere in the answer, whatever its case."""
    wanted = _trim(sample.target).casefold()
    if not wanted:
        return Score(value=None, answer=answer, explanation="the target is empty: any answer contains it")
    return scored(wanted in _trim(answer).casefold(), answer, "does not contain the wanted text")


def label(answer: str, sample: Sample) -> Score:
    """Right if the answer is the target's label: case, spaces around it and punctuation after it do not count."""
    wanted, found = _label(sample.target), _label(answer)
    if not wanted:
        return Score(value=None, answer=answer, explanation="the target is empty: it names no label")
    return scored(found == wanted, answer, f"is not the label {wanted!r}")


SCORERS: dict[str, Scorer] = {"exact": exact, "exact_json": exact_json, "contains": contains, "label": label}


def score(metric: str, answer: str | None, sample: Sample) -> Score:
    """Score one answer; no answer at all (the engine gave none) is unscored, while an empty one is an answer."""
    if answer is None:
        return Score(value=None, answer="", explanation="no answer was given")
    return SCORERS[metric](answer, sample)


def field_accuracy(answers: Sequence[str | None], targets: Sequence[str]) -> dict[str, Proportion]:
    """For JSON answers: of the targets that have a field, how many answers have it right; in the order the fields first appear.

    Pairs without an answer or with a target that is no JSON object are left out, as `exact_json` leaves them unscored.
    """
    right: dict[str, list[bool]] = {}
    for answer, target in zip(answers, targets, strict=True):
        wanted = parse_object(target)
        if answer is None or wanted is None:
            continue
        found = parse_object(answer) or {}
        for name, value in wanted.items():
            right.setdefault(name, []).append(found.get(name) == value)
    return {name: proportion_of(values) for name, values in right.items()}


def parse_object(text: str) -> dict[str, bytes] | None:
    """A JSON object's fields, each value in its one spelling (so 1.0 equals 1 but not true); None if the text is anything else."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_number, parse_constant=_refuse)
        return {name: canonical_json(part) for name, part in value.items()} if isinstance(value, dict) else None
    except (ValueError, RecursionError):  # a model may answer "[[[[[..." without end
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that names a field twice: which of the two values is meant, nobody knows (RFC 8259, section 4)."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is named twice")
    return fields


def _number(text: str) -> float | int:
    """JSON knows one kind of number: 1.0 is 1."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number too large")
    return int(value) if value.is_integer() else value


def _refuse(text: str) -> float:
    """NaN and Infinity are no JSON, though Python would read them."""
    raise ValueError(f"{text} is not JSON")


def _trim(text: str) -> str:
    """Without spaces around it, letters with accents in their one-character form: the same text, however it was typed."""
    return unicodedata.normalize("NFC", text).strip()


def _label(text: str) -> str:
    text = _trim(text).casefold()
    while text and (text[-1].isspace() or unicodedata.category(text[-1]).startswith("P")):
        text = text[:-1]
    return text
