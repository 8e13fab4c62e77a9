"""Whether what is learned from holds what others are judged by: train rows beside the test rows of other datasets, or of any texts.

What is found depends on what else is here today, so it is said when asked, and is no part of a dataset.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lorimer.config import Shingling
from lorimer.data.dataset import DatasetFolder, dataset_names, open_dataset
from lorimer.data.features import asked_text
from lorimer.data.near import candidates_across, verify
from lorimer.data.rules import NUM_EXAMPLES_SHOWN, count_rows, fold
from lorimer.data.shingles import Sketches, shingle, sketch

TEXTS_AT_A_TIME = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Contamination:
    """Train rows that ask what one suite of texts asks, or nearly."""

    suite: str
    num_texts: int
    num_exact: int
    """Rows that ask the same, up to case and white space."""
    num_near: int
    """Beside these, rows that ask nearly the same."""
    examples: tuple[str, ...]
    """Sources of the first few of all these rows."""

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def describe(self) -> str:
        """One sentence."""
        return (
            f"{count_rows(self.num_exact)} of train asked what {self.suite} is judged by, and {self.num_near:,} more nearly so "
            f"({', '.join(self.examples)})"
        )


def check_contamination(
    dataset: DatasetFolder, how: Shingling | None = None, *, suites: Mapping[str, Iterable[str]] | None = None
) -> list[Contamination]:
    """Compare a dataset's train rows with the test split of every other dataset that is here, and with what suites ask."""
    others = {f"dataset {name!r}": (asked_text(row) for row in other.rows("test")) for name, other in _others(dataset)}
    asked = {**others, **(suites or {})}
    return find_contamination(dataset, asked, how) if asked else []


def find_contamination(dataset: DatasetFolder, suites: Mapping[str, Iterable[str]], how: Shingling | None = None) -> list[Contamination]:
    """Compare a dataset's train rows with texts by which something is judged; only suites with at least one such row are named."""
    how = how or Shingling()
    texts, sources = list[str](), list[str]()
    for row in dataset.rows("train"):
        texts.append(asked_text(row))
        sources.append(row.source)
    own = _sketch(texts, how)
    found = []
    for suite, judged_by in suites.items():
        asked = [fold(text) for text in judged_by]
        known = set(asked)
        exact = {number for number, text in enumerate(texts) if text in known}
        near = _near_rows(texts, own, asked, how) - exact
        if exact or near:
            shown = tuple(sources[number] for number in sorted(exact | near)[:NUM_EXAMPLES_SHOWN])
            found.append(Contamination(suite=suite, num_texts=len(asked), num_exact=len(exact), num_near=len(near), examples=shown))
    return found


def _near_rows(texts: list[str], own: Sketches, asked: list[str], how: Shingling) -> set[int]:
    if not asked or not texts:
        return set()
    theirs = _sketch(asked, how)
    both = Sketches(np.concatenate([own.keys, theirs.keys]), np.concatenate([own.low, theirs.low]))
    every = [*texts, *asked]
    is_long = np.array([len(text) >= how.min_chars for text in every], np.bool_)
    rows = np.flatnonzero(is_long)
    is_held = rows >= len(texts)
    pairs = candidates_across(Sketches(both.keys[rows], both.low[rows]), how.threshold, is_held)
    near = verify(rows[pairs], lambda wanted: [every[number] for number in wanted.tolist()], how)
    return set(near.pairs[:, 0].tolist())


def _sketch(texts: list[str], how: Shingling) -> Sketches:
    parts = [sketch(shingle(texts[at : at + TEXTS_AT_A_TIME], how)) for at in range(0, max(len(texts), 1), TEXTS_AT_A_TIME)]
    return Sketches(np.concatenate([part.keys for part in parts]), np.concatenate([part.low for part in parts]))


def _others(dataset: DatasetFolder) -> Iterator[tuple[str, DatasetFolder]]:
    """Every other dataset by name; a name that points to this very one is not another."""
    for name in dataset_names():
        if name != dataset.name:
            other = open_dataset(name)
            if other.digest != dataset.digest:
                yield name, other
