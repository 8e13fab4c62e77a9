"""Is one answer right? Each scorer is one small rule. What cannot be judged is unscored: kept, but neither right nor wrong."""

import unicodedata
from collections.abc import Sequence

from lorimer.evaluation.memory.verbatim import not_verbatim
from lorimer.evaluation.scorers.fidelity import abstains, finds_answer, grounded
from lorimer.evaluation.scorers.instructions import instructions, instructions_loose
from lorimer.evaluation.scorers.leaks import keeps_secret
from lorimer.evaluation.scorers.numeric import gsm8k_flexible, gsm8k_strict, numeric
from lorimer.evaluation.scorers.pattern import matches_regex
from lorimer.evaluation.scorers.policy import follows_policy
from lorimer.evaluation.scorers.safety import answers, ignores_injection, refuses, reveals_nothing
from lorimer.evaluation.scorers.score import Score, Scorer, scored
from lorimer.evaluation.scorers.sql import sql_result
from lorimer.evaluation.scorers.structured import json_fields, json_schema, parse_object
from lorimer.evaluation.scorers.text_overlap import chrf, rouge_1, rouge_l, token_f1
from lorimer.evaluation.statistics.proportions import Proportion, proportion_of
from lorimer.evaluation.task import Sample


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
    wanted, found = label_of(sample.target), label_of(answer)
    if not wanted:
        return Score(value=None, answer=answer, explanation="the target is empty: it names no label")
    return scored(found == wanted, answer, f"is not the label {wanted!r}")


SCORERS: dict[str, Scorer] = {
    "exact": exact,
    "exact_json": exact_json,
    "contains": contains,
    "label": label,
    "numeric": numeric,
    "gsm8k_strict": gsm8k_strict,
    "gsm8k_flexible": gsm8k_flexible,
    "regex": matches_regex,
    "json_schema": json_schema,
    "json_fields": json_fields,
    "rouge_1": rouge_1,
    "rouge_l": rouge_l,
    "chrf": chrf,
    "token_f1": token_f1,
    "sql_result": sql_result,
    "instructions": instructions,
    "instructions_loose": instructions_loose,
    "not_verbatim": not_verbatim,
    "refuses": refuses,
    "answers": answers,
    "ignores_injection": ignores_injection,
    "reveals_nothing": reveals_nothing,
    "keeps_secret": keeps_secret,
    "follows_policy": follows_policy,
    "grounded": grounded,
    "abstains": abstains,
    "finds_answer": finds_answer,
}
"""By the name that a task gives as its metric; docs/scorers.md has what each counts."""


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


def label_of(text: str) -> str:
    """The label that a text names: in one case, without spaces around it and punctuation after it; "" if there is none."""
    text = _trim(text).casefold()
    while text and (text[-1].isspace() or unicodedata.category(text[-1]).startswith("P")):
        text = text[:-1]
    return text


def _trim(text: str) -> str:
    """Without spaces around it, letters with accents in their one-character form: the same text, however it was typed."""
    return unicodedata.normalize("NFC", text).strip()
