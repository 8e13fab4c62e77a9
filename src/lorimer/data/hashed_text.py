"""A text classifier that needs nothing but numpy: hashed words and pairs of words, and a multinomial logistic regression over them.

It exists to ask "would a model that has not seen this row give it this label?", so it is trained in folds and never kept. Features are
hashed to a fixed number of columns (Weinberger et al. 2009), weighted by 1 + log(count) and normalised to length one; weights are learned
with Adagrad (Duchi et al. 2011), row batches in a seeded order.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

WORD = re.compile(r"[^\W_]+|[^\w\s]")
NO_SPACES = re.compile(r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
NUM_COLUMNS = 1 << 17
NUM_CHARS = 2_000
"""How much of a text is read."""


class Rows(NamedTuple):
    """A sparse matrix, row by row: `columns[starts[i]:starts[i + 1]]` and their `values` are row i."""

    starts: Ints
    columns: Ints
    values: Floats

    @property
    def num_rows(self) -> int:
        """How many there are."""
        return len(self.starts) - 1


def hash_texts(texts: Sequence[str]) -> Rows:
    """Words and pairs of words of each text, hashed; characters and their pairs in scripts without spaces."""
    starts, columns, values = [0], list[int](), list[float]()
    for text in texts:
        counts = Counter(_features(text))
        weights = {column: 1.0 + float(np.log(count)) for column, count in counts.items()} if counts else {}
        norm = sum(weight * weight for weight in weights.values()) ** 0.5 or 1.0
        columns += weights
        values += (weight / norm for weight in weights.values())
        starts.append(len(columns))
    return Rows(np.array(starts, np.int64), np.array(columns, np.int64), np.array(values, np.float32))


def out_of_fold(rows: Rows, labels: Ints, num_labels: int, *, num_folds: int = 5, seed: int = 0) -> Floats:
    """The probability of each label for each row, by a model that was trained without that row's fold."""
    rng = np.random.default_rng(seed)
    folds = rng.permutation(rows.num_rows) % num_folds
    rows = _renumber(rows)
    probabilities = np.empty((rows.num_rows, num_labels), np.float32)
    for fold in range(num_folds):
        weights, bias = fit(rows, labels, np.flatnonzero(folds != fold), num_labels, seed=seed + fold)
        for batch in np.array_split(held_out := np.flatnonzero(folds == fold), max(1, len(held_out) // 1024)):
            probabilities[batch] = _softmax(_scores(take(rows, batch), weights, bias))
    return probabilities


def fit(
    rows: Rows, labels: Ints, members: Ints, num_labels: int, *, seed: int = 0, epochs: int = 6, rate: float = 0.5, batch_size: int = 256
) -> tuple[Floats, Floats]:
    """Weights and biases of a logistic regression over some of the rows."""
    rng = np.random.default_rng(seed)
    num_columns = int(rows.columns.max()) + 1 if len(rows.columns) else 1
    weights, squares = np.zeros((num_columns, num_labels), np.float32), np.full((num_columns, num_labels), 1e-3, np.float32)
    bias, bias_squares = np.zeros(num_labels, np.float32), np.full(num_labels, 1e-3, np.float32)
    for _ in range(epochs):
        for batch in _batches(rng.permutation(members), batch_size):
            taken = take(rows, batch)
            errors = _softmax(_scores(taken, weights, bias))
            errors[np.arange(len(batch)), labels[batch]] -= 1.0
            columns, gradient = _gradient(taken, errors)
            squares[columns] += gradient * gradient
            weights[columns] -= rate * gradient / np.sqrt(squares[columns])
            total = errors.sum(0)
            bias_squares += total * total
            bias -= rate * total / np.sqrt(bias_squares)
    return weights, bias


def take(rows: Rows, members: Ints) -> Rows:
    """Some of the rows, in the order given."""
    lengths = rows.starts[members + 1] - rows.starts[members]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    places = np.repeat(rows.starts[members] - starts[:-1], lengths) + np.arange(starts[-1])
    return Rows(starts, rows.columns[places], rows.values[places])


def _features(text: str) -> Iterator[int]:
    text = text[:NUM_CHARS].casefold()
    words = list(text) if NO_SPACES.search(text) else WORD.findall(text)
    before = ""
    for word in words:
        yield zlib.crc32(word.encode(errors="surrogatepass")) % NUM_COLUMNS
        if before:
            yield zlib.crc32(f"{before} {word}".encode(errors="surrogatepass")) % NUM_COLUMNS
        before = word


def _renumber(rows: Rows) -> Rows:
    """The same rows over the columns that occur at least twice: one that stands in a single row says nothing of another."""
    counts = np.bincount(rows.columns, minlength=1)
    kept = counts[rows.columns] > 1
    numbers = np.cumsum(counts > 1) - 1
    inside = np.concatenate([[0], np.cumsum(kept)])
    return Rows(inside[rows.starts], numbers[rows.columns[kept]], rows.values[kept])


def _batches(order: Ints, size: int) -> Iterator[Ints]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _scores(rows: Rows, weights: Floats, bias: Floats) -> Floats:
    summed = np.zeros((rows.num_rows, len(bias)), np.float32)  # (rows, labels)
    if len(rows.columns):
        terms = weights[rows.columns] * rows.values[:, None]  # (entries, labels)
        filled = np.flatnonzero(rows.starts[1:] > rows.starts[:-1])
        summed[filled] = np.add.reduceat(terms, rows.starts[:-1][filled], axis=0)
    return summed + bias


def _gradient(rows: Rows, errors: Floats) -> tuple[Ints, Floats]:
    """The columns that occur, and the gradient of each: entries sorted by column, then summed."""
    order = np.argsort(rows.columns, kind="stable")
    columns, firsts = np.unique(rows.columns[order], return_index=True)
    if not len(columns):
        return columns, np.zeros((0, errors.shape[1]), np.float32)
    of_row = np.repeat(np.arange(rows.num_rows), np.diff(rows.starts))
    terms = errors[of_row[order]] * rows.values[order, None]
    return columns, np.add.reduceat(terms, firsts, axis=0)


def _softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares
