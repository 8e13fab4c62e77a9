"""Train, validation and test by a hash of the prompt. It knows nothing of files.

A row's split depends on its own prompt and the seed alone: rows that ask the same fall into the same split, and a row keeps its split
when others are added or removed, or when the system message changes. The shares are therefore met on average, not exactly.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from lorimer.data.example import Example
from lorimer.data.rules import NUM_EXAMPLES_SHOWN, Finding, count_rows, folded_prompt
from lorimer.errors import ConfigError

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
MIN_TO_SPLIT = 10


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


class WithoutLeaks(NamedTuple):
    """The examples whose prompt is not in the test split, and what was found."""

    examples: tuple[Example, ...]
    finding: Finding


def split(examples: Sequence[Example], *, validation: float = 0.05, test: float = 0.1, seed: int = 0) -> Splits:
    """Split by hash; fewer than ten examples all go to train, and train is never empty while there are any.

    Raises:
        ConfigError: if the shares are negative or leave nothing for train.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise ConfigError(f"validation {validation!r} and test {test!r} must be shares whose sum is below 1")
    places = [place(example, seed) for example in examples]
    if len(examples) < MIN_TO_SPLIT:
        validation = test = 0.0
    # validation comes first, so that its rows stay the same when a test file is given and `test` becomes 0
    held_back = min(validation + test, max(places, default=0.0))  # the highest place is always in train
    bounds = {"validation": (0.0, min(validation, held_back)), "test": (min(validation, held_back), held_back), "train": (held_back, 1.0)}
    located = list(zip(examples, places, strict=True))
    return Splits(**{name: tuple(example for example, at in located if low <= at < high) for name, (low, high) in bounds.items()})


def place(example: Example, seed: int) -> float:
    """Where in [0, 1) a row stands: uniform over prompts, equal for equal prompts."""
    key = f"{seed}\0{folded_prompt(example, with_system=False)}"
    return (int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 11) / 2**53


def drop_leaks(examples: Sequence[Example], test: Sequence[Example]) -> WithoutLeaks:
    """Drop the rows whose prompt also stands in the test rows: a model would be judged by what it has learned by heart."""
    known = {folded_prompt(example, with_system=False) for example in test}
    leaks = [folded_prompt(example, with_system=False) in known for example in examples]
    kept = tuple(example for example, leak in zip(examples, leaks, strict=True) if not leak)
    removed = [example.source for example, leak in zip(examples, leaks, strict=True) if leak]
    message = f"{count_rows(len(removed))} asked what a row of the test file asks"
    return WithoutLeaks(kept, Finding(rule="leak", num_removed=len(removed), message=message, examples=tuple(removed[:NUM_EXAMPLES_SHOWN])))
