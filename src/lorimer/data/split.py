"""Train, validation and test by a hash of the prompt. It knows nothing of files.

A row's split depends on its own prompt (or group) and the seed alone: rows that ask the same fall into the same split, and a row keeps its
split when others are added or removed, or when the system message changes. The shares are therefore met on average, not exactly; with
`stratify` they are met for every answer, and rows near a border may move.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from lorimer.data.example import Example
from lorimer.data.features import place_of
from lorimer.data.rules import folded_prompt
from lorimer.errors import ConfigError

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
MIN_TO_SPLIT = 10
TRAIN, VALIDATION, TEST = range(3)
Places = npt.NDArray[np.float64]
Assigned = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Examples to learn from, to watch a run with, and to judge the result by."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]

    def items(self) -> Iterator[tuple[SplitName, tuple[Example, ...]]]:
        """The splits by name, in order."""
        for name in SPLITS:
            yield name, getattr(self, name)


def split(examples: Sequence[Example], *, validation: float = 0.05, test: float = 0.1, seed: int = 0) -> Splits:
    """Split by hash; fewer than ten examples all go to train, and train is never empty while there are any.

    Raises:
        ConfigError: if the shares are negative or leave nothing for train.
    """
    assigned = assign(np.array([place(example, seed) for example in examples], np.float64), validation=validation, test=test)
    located = list(zip(examples, assigned.tolist(), strict=True))
    return Splits(**{name: tuple(example for example, at in located if at == number) for number, name in enumerate(SPLITS)})


def assign(places: Places, *, validation: float, test: float, answers: npt.NDArray[np.uint64] | None = None) -> Assigned:
    """Which split each row falls into by its place; with `answers`, so that each answer's rows are shared out alike.

    Raises:
        ConfigError: if the shares are negative or leave nothing for train.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise ConfigError(f"validation {validation!r} and test {test!r} must be shares whose sum is below 1")
    if len(places) < MIN_TO_SPLIT:
        return np.zeros(len(places), np.int8)
    # validation comes first, so that its rows stay the same when a test file is given and `test` becomes 0
    if answers is None:
        held_back = min(validation + test, float(places.max()))  # the highest place is always in train
        return _below(places, min(validation, held_back), held_back)
    assigned = np.zeros(len(places), np.int8)
    order = np.argsort(answers, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(answers[order])) + 1):
        ranked = np.sort(places[rows])
        borders = [ranked[round(share * len(rows))] for share in (validation, validation + test)]
        assigned[rows] = _below(places[rows], float(borders[0]), float(borders[1]))
    return assigned


def place(example: Example, seed: int) -> float:
    """Where in [0, 1) a row stands: uniform over prompts, equal for equal prompts."""
    return place_of(f"{seed}\0{folded_prompt(example, with_system=False)}")


def _below(places: Places, validation: float, held_back: float) -> Assigned:
    assigned: Assigned = np.where(places < validation, VALIDATION, np.where(places < held_back, TEST, TRAIN)).astype(np.int8)
    return assigned
