"""What a scorer says about one answer, and what a scorer is."""

from collections.abc import Callable
from dataclasses import dataclass

from lorimer.evaluation.task import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a scorer says about one answer."""

    value: float | None
    """1 for right, 0 for wrong, between them for partly right, None for unscored."""
    answer: str
    explanation: str = ""
    """Why it is not right, for a person."""


Scorer = Callable[[str, Sample], Score]
"""(answer, sample) -> Score"""


def scored(is_right: bool, answer: str, explanation: str) -> Score:
    """Right, or wrong for a reason."""
    return Score(value=float(is_right), answer=answer, explanation="" if is_right else explanation)
