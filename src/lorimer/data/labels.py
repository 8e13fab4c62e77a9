"""What is wrong with labels, over all rows at once: uneven, different for near-equal prompts, likely mistaken. It reports; people decide.

Answers are labels where they are few and each stands many times.
"""

import numpy as np
import numpy.typing as npt

from lorimer.data.balance import find_conflicts, measure_balance
from lorimer.data.features import asked_text
from lorimer.data.label_noise import find_label_noise
from lorimer.data.rules import NUM_EXAMPLES_SHOWN, Finding, count_rows
from lorimer.data.staging import Rows, Staged
from lorimer.data.whole import NearRows

MAX_LABEL_LEN = 200
MAX_JUDGED = 20_000
"""Rows in which wrong labels are looked for; of more, so many that are spread evenly."""
MIN_TO_JUDGE = 50
MAX_UNASKED = 3_000
"""Rows among which wrong labels are looked for unasked: about two seconds."""


def are_labels(answers: npt.NDArray[np.uint64]) -> bool:
    """Whether answers are labels: at least two, and each many times."""
    num = len(np.unique(answers))
    return 2 <= num <= max(2, len(answers) // 4)


def judge_labels(staged: Staged, kept: npt.NDArray[np.bool_], near: NearRows | None, *, seed: int, searches: bool) -> list[Finding]:
    """What is found about the labels of conversations; nothing where answers are none."""
    features = staged.features
    rows = np.flatnonzero(kept & (features.lengths[:, 1] >= 0))
    if not len(rows) or not are_labels(features.answer[rows]) or features.lengths[rows, 1].max() > MAX_LABEL_LEN:
        return []
    labels = _labels_of(staged, rows)
    findings = [_balance(labels)]
    if near is not None:
        findings.append(_near_conflicts(staged, rows, labels, near))
    if len(rows) > MAX_UNASKED and not searches:
        message = f"not looked for unasked among more than {MAX_UNASKED:,} rows: put `labels: search` into a rules file"
        findings.append(Finding(rule="label_noise", message=message))
    elif len(rows) >= MIN_TO_JUDGE:
        findings.append(_noise(staged, rows, labels, seed))
    return findings


def _labels_of(staged: Staged, rows: Rows) -> list[str]:
    """The label of each row; one row of each is read."""
    _, first, which = np.unique(staged.features.answer[rows], return_index=True, return_inverse=True)
    names = [example.answer for example in staged.examples(rows[first])]
    return [names[number] for number in which.tolist()]


def _balance(labels: list[str]) -> Finding:
    found = measure_balance(labels)
    (most, num_most), (least, num_least) = next(iter(found.counts.items())), list(found.counts.items())[-1]
    message = (
        f"{len(found.counts):,} labels, evenness {found.evenness:.2f} of 1: {most!r} has {count_rows(num_most)}, {least!r} {num_least:,}"
        if len(found.counts) <= 2 or num_most > num_least
        else f"{len(found.counts):,} labels of {count_rows(num_most)} each"
    )
    return Finding(rule="imbalance", message=message)


def _near_conflicts(staged: Staged, rows: Rows, labels: list[str], near: NearRows) -> Finding:
    found = find_conflicts(near.group[rows], labels)
    message = "no near-equal prompts had different labels"
    if len(found.indices):
        message = (
            f"{count_rows(len(found.indices))} in {found.num_clusters:,} groups of near-equal prompts had different labels; "
            f"{len(found.minority):,} are in their group's minority, where a mistake is likeliest"
        )
    shown = found.minority if len(found.minority) else found.indices
    examples = tuple(staged.sources(rows[shown[:NUM_EXAMPLES_SHOWN]]))
    return Finding(rule="near_conflicts", num_flagged=len(found.indices), message=message, examples=examples)


def _noise(staged: Staged, rows: Rows, labels: list[str], seed: int) -> Finding:
    step = -(-len(rows) // MAX_JUDGED)
    judged, given = rows[::step], labels[::step]
    texts = [asked_text(example) for example in staged.examples(judged)]
    report = find_label_noise(texts, given, seed=seed)
    message = f"{count_rows(len(report.suspects))} of {report.num_judged:,} judged had a label that others of their kind do not have"
    if report.num_unjudged:
        message += f"; {report.num_unjudged:,} had a label too rare to judge"
    if step > 1:
        message += f" (looked at one row in {step})"
    shown = report.suspects[:NUM_EXAMPLES_SHOWN]
    return Finding(
        rule="label_noise",
        num_flagged=len(report.suspects),
        message=message,
        examples=tuple(staged.sources(judged[shown])),
        reasons=tuple(f"{given[row]} -> {better}" for row, better in zip(shown.tolist(), report.suggested, strict=False)),
    )
