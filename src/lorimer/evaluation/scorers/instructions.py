"""Does an answer do what it was told, where a program can tell? The verifiable instructions of IFEval.

Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models", arXiv:2311.07911: 25 kinds of instruction (its table 1),
each decided by counting or searching. `instruction_kinds` has them; here they are read from a sample and put together.
"""

from typing import Any

from lorimer.evaluation.scorers.instruction_kinds import KINDS, CannotTell, Kind
from lorimer.evaluation.scorers.score import Score, scored
from lorimer.evaluation.task import Sample

FAMILIES_PREFIX = "en:"
"""Some copies of the data begin each kind with the language of the set."""


def instructions(answer: str, sample: Sample) -> Score:
    """Right if every instruction is followed: the paper's strict accuracy by prompt.

    `spec["instruction_id_list"]` names the kinds, `spec["kwargs"]` has their arguments, one object for each, as in the paper's data.
    The target is not read. An instruction that nobody here knows, or whose arguments are wrong, leaves the sample unscored.
    """
    return _score(answer, sample, [answer])


def instructions_loose(answer: str, sample: Sample) -> Score:
    """Right if every instruction is followed by the answer or by one of its seven plainer forms: the paper's loose accuracy.

    Without the first line, the last line or both ("Sure, here it is:"), and each of these without the asterisks of Markdown.
    """
    lines = answer.split("\n")
    cut = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return _score(answer, sample, [*cut, *(form.replace("*", "") for form in cut)])


def _score(answer: str, sample: Sample, forms: list[str]) -> Score:
    told, problems = _read(sample.spec)
    if problems:
        return Score(value=None, answer=answer, explanation="; ".join(problems))
    broken, untold = [], []
    for name, kind, arguments in told:
        try:
            problem = _problem(kind, arguments, forms)
        except CannotTell as error:
            untold.append(f"{name}: {error}")
            continue
        if problem:
            broken.append(f"{name}: {problem}")
    if untold and not broken:
        return Score(value=None, answer=answer, explanation="; ".join(untold))
    return scored(not broken, answer, "; ".join(broken))


def _problem(kind: Kind, arguments: dict[str, Any], forms: list[str]) -> str:
    """Why no form of the answer follows the instruction, told of the answer itself; "" if one does.

    Raises:
        CannotTell: if the answer itself cannot be judged and no other form of it follows.
    """
    first, *others = forms
    for form in others:
        try:
            if form.strip() and not kind.check(form, arguments):
                return ""
        except CannotTell:
            continue
    return kind.check(first, arguments) if first.strip() else "the answer is empty"


def _read(spec: dict[str, Any]) -> tuple[list[tuple[str, Kind, dict[str, Any]]], list[str]]:
    """The instructions of a sample, and all that is wrong with how they are given."""
    names, arguments = spec.get("instruction_id_list"), spec.get("kwargs")
    if not isinstance(names, list) or not names or not isinstance(arguments, list) or len(names) != len(arguments):
        return [], ['needs spec {"instruction_id_list": [kinds], "kwargs": [an object for each]}']
    told, problems = [], []
    for name, given in zip(names, arguments, strict=True):
        kind = KINDS.get(str(name).removeprefix(FAMILIES_PREFIX))
        if kind is None:
            problems.append(f"{name!r} is no kind of instruction known here; known are {', '.join(KINDS)}")
        elif not isinstance(given, dict):
            problems.append(f"{name}: its arguments are an object, not {given!r}")
        else:
            own = {argument: value for argument, value in given.items() if value is not None}  # tables fill with null what a kind has not
            problems += [f"{name}: {problem}" for problem in kind.problems(own)]
            told.append((str(name).removeprefix(FAMILIES_PREFIX), kind, own))
    return told, problems
