"""Does an answer match a regular expression? With a bound on time: a pattern that backtracks without end does not stop an evaluation."""

import re
from typing import Any

import regex  # type: ignore[import-untyped]

from lorimer.evaluation.scorers.score import Score, scored
from lorimer.evaluation.task import Sample

TIMEOUT_SECONDS = 1.0
FLAGS = {"i": regex.IGNORECASE, "m": regex.MULTILINE, "s": regex.DOTALL, "x": regex.VERBOSE}
MATCHES = ("search", "fullmatch")


def matches_regex(answer: str, sample: Sample) -> Score:
    """Right if `spec["pattern"]` is found in the answer, or with `spec["match"]: "fullmatch"` matches all of it, spaces around it apart.

    `spec["flags"]` are letters of "imsx", as Python's. The target is not read. The module `regex` reads patterns as Python's `re` does
    and can be stopped: where a match is not decided within a second, the answer is unscored, as it would differ between machines.
    """
    spec = sample.spec
    problems = _problems(spec)
    if problems:
        return Score(value=None, answer=answer, explanation="; ".join(problems))
    flags = 0
    for letter in spec.get("flags", ""):
        flags |= FLAGS[letter]
    how = spec.get("match", "search")
    try:
        found = getattr(regex.compile(spec["pattern"], flags), how)(answer.strip(), timeout=TIMEOUT_SECONDS)
    except TimeoutError:
        explanation = f"the pattern took more than {TIMEOUT_SECONDS} s on this answer: write it without nested repeats"
        return Score(value=None, answer=answer, explanation=explanation)
    except (regex.error, re.error, RecursionError, MemoryError, OverflowError) as error:
        return Score(value=None, answer=answer, explanation=f"the pattern {spec['pattern']!r} cannot be read: {error}")
    return scored(found is not None, answer, f"does not match {spec['pattern']!r}")


def _problems(spec: dict[str, Any]) -> list[str]:
    problems = []
    if not isinstance(spec.get("pattern"), str) or not spec["pattern"]:
        problems.append('needs spec {"pattern": a regular expression}')
    flags = spec.get("flags", "")
    if not isinstance(flags, str) or set(flags) - set(FLAGS):
        problems.append(f"spec flags are letters of {''.join(FLAGS)!r}, not {flags!r}")
    if spec.get("match", "search") not in MATCHES:
        problems.append(f"spec match is one of {', '.join(MATCHES)}, not {spec['match']!r}")
    return problems
