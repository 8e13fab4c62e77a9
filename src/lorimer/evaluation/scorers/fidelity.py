"""Does an answer keep to the text it was given? `grounded`: nothing made up; `abstains`: says so where it has no answer; `finds_answer`.

A sample's `spec` holds `context`, the text; `language` (en, de, fr, es or it; English if not said); for `grounded`, `facts` of which an
answer must name at least one, so that saying nothing is no way to be right. What the question itself says is not made up either.
"""

import re
from typing import Any

from lorimer.evaluation.scorers.abstention import find_abstention
from lorimer.evaluation.scorers.claims import Source, mentions, unsupported
from lorimer.evaluation.scorers.score import Score, scored
from lorimer.evaluation.task import Sample

LANGUAGES = ("en", "de", "fr", "es", "it")


def grounded(answer: str, sample: Sample) -> Score:
    """The share of an answer's claims (numbers, dates, names, quotations, addresses) that its context bears out.

    An answer without a claim scores 1, as nothing in it is made up; one that names none of `facts`, an empty one among them, scores 0:
    it was asked for them.
    """
    problem = _problem(sample)
    if problem:
        return Score(value=None, answer=answer, explanation=problem)
    facts, language = sample.spec.get("facts", ()), sample.spec.get("language", "en")
    if not _says_something(answer):
        return scored(False, answer, "says nothing")
    if facts and not any(mentions(answer, fact, language) for fact in facts):
        return scored(False, answer, f"names none of what was asked for: {', '.join(facts)}")
    made_up, num_claims = unsupported(answer, _source(sample))
    value = 1 - len(made_up) / num_claims if num_claims else 1.0
    return Score(value=value, answer=answer, explanation=_made_up(made_up))


def abstains(answer: str, sample: Sample) -> Score:
    """Right if an answer says that the text does not tell, and does not guess all the same."""
    problem = _problem(sample)
    if problem:
        return Score(value=None, answer=answer, explanation=problem)
    if find_abstention(answer) is None:
        return scored(False, answer, "does not say that the text has no answer" if _says_something(answer) else "says nothing")
    made_up, _ = unsupported(answer, _source(sample))
    return scored(not made_up, answer, f"abstains, and guesses: {_made_up(made_up)}")


def finds_answer(answer: str, sample: Sample) -> Score:
    """Right if an answer names the target, which the text holds, and does not abstain: the other side of `abstains`."""
    language = sample.spec.get("language", "en")
    if language not in LANGUAGES or not re.search(r"\w", sample.target):
        problem = f"language is {language!r}, not one of {', '.join(LANGUAGES)}" if language not in LANGUAGES else "the target is empty"
        return Score(value=None, answer=answer, explanation=problem)
    phrase = find_abstention(answer)
    if phrase is not None:
        return scored(False, answer, f"abstains ({phrase!r}) though the text has the answer")
    return scored(mentions(answer, sample.target, language), answer, f"does not name {sample.target!r}")


def _problem(sample: Sample) -> str:
    spec: dict[str, Any] = sample.spec
    problems = []
    if not isinstance(spec.get("context"), str) or not spec["context"].strip():
        problems.append("spec has no context to hold the answer against")
    if spec.get("language", "en") not in LANGUAGES:
        problems.append(f"language is {spec['language']!r}, not one of {', '.join(LANGUAGES)}")
    if not all(isinstance(fact, str) and re.search(r"\w", fact) for fact in spec.get("facts", ())):
        problems.append("facts are not all texts with a word or a number")
    return "; ".join(problems)


def _source(sample: Sample) -> Source:
    asked = [message.content for message in sample.prompt if isinstance(message.content, str)]
    return Source("\n".join([sample.spec["context"], *asked]), sample.spec.get("language", "en"))


def _says_something(answer: str) -> bool:
    return re.search(r"\w", answer) is not None


def _made_up(claims: list[Any]) -> str:
    return "not in the context: " + ", ".join(f"{claim.kind} {claim.text!r}" for claim in claims) if claims else ""
