"""Rules over all rows at once: what repeats, what contradicts, what stands on both sides of a split. From features, not texts.

Each takes the staged rows and who is still kept, and says who is to go, for which twin, and what the card should tell.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lorimer.config import DuplicateRules
from lorimer.data.near import NearPairs, candidates, candidates_across, clusters, later_twins, verify
from lorimer.data.rules import NUM_EXAMPLES_SHOWN, Finding, count_rows
from lorimer.data.shingles import Sketches
from lorimer.data.split import SPLITS, TRAIN, Assigned
from lorimer.data.staging import Rows, Staged

Flags = npt.NDArray[np.bool_]


class Taken(NamedTuple):
    """Rows a rule takes out, why, and its finding."""

    rows: Rows
    reasons: list[str]
    finding: Finding


def drop_exact_duplicates(staged: Staged, kept: Flags, *, drops: bool = True) -> Taken:
    """Keep the first of rows with the same prompt and the same answers, up to case (in the prompt), white space and composition."""
    rows = np.flatnonzero(kept)
    whole = staged.features.whole[rows]
    order = np.lexsort((rows, whole[:, 1], whole[:, 0]))
    repeats = np.zeros(len(rows), np.bool_)
    repeats[1:] = (whole[order][1:] == whole[order][:-1]).all(axis=1)
    first = order[np.maximum.accumulate(np.where(repeats, 0, np.arange(len(rows))))] if len(rows) else order
    by_row = np.argsort(order[repeats], kind="stable")
    later, earlier = rows[order[repeats][by_row]], rows[first[repeats][by_row]]
    message = f"{count_rows(len(later))} repeated an earlier row"
    if not drops and len(later):
        return _report("drop_exact_duplicates", staged, later, f"{message}, all kept")
    shown = staged.sources(earlier)
    return _take("drop_exact_duplicates", staged, later, [f"repeats {source}" for source in shown], message)


def find_conflicts(staged: Staged, kept: Flags, *, drops: bool) -> Taken:
    """Prompts with more than one answer; which one is right is for a person to say."""
    features = staged.features
    rows = np.flatnonzero(kept & (features.lengths[:, 1] >= 0))
    order = rows[np.lexsort((features.answer[rows], features.prompt[rows]))]
    prompt, answer = features.prompt[order], features.answer[order]
    group = np.cumsum(np.append(True, prompt[1:] != prompt[:-1])) - 1 if len(order) else order
    differs = (prompt[1:] == prompt[:-1]) & (answer[1:] != answer[:-1])
    conflicting = np.unique(group[1:][differs])
    flagged = order[np.isin(group, conflicting)]
    flagged = flagged[np.argsort(_first_of_group(flagged, features.prompt[flagged]), kind="stable")]
    if not len(flagged):
        return _report("flag_conflicts", staged, flagged, "no prompt had more than one answer")
    plural = "s" if len(conflicting) > 1 else ""
    said = f"{len(conflicting):,} prompt{plural} had more than one answer ({count_rows(len(flagged))})"
    if drops:
        return _take("flag_conflicts", staged, flagged, ["other rows answer the same otherwise"] * len(flagged), f"{said}, all left out")
    return _report("flag_conflicts", staged, flagged, f"{said}, all kept: decide which is right")


@dataclass(frozen=True, slots=True, kw_only=True)
class NearRows:
    """The near pairs among the rows that are kept."""

    near: NearPairs
    group: Rows
    """For each row the first of those that hang together with it; itself where it stands alone."""


def find_near_rows(staged: Staged, kept: Flags, how: DuplicateRules) -> NearRows:
    """All pairs of kept rows whose prompts are near."""
    rows = np.flatnonzero(kept & staged.features.is_long)
    features = staged.features
    found = candidates(Sketches(features.keys[rows], features.low[rows]), how.threshold)
    near = verify(rows[found], staged.asked_texts, how)
    return NearRows(near=near, group=clusters(near, len(staged)))


def judge_near_rows(staged: Staged, found: NearRows, how: DuplicateRules) -> Taken:
    """Say which rows nearly repeat an earlier one; leave out, where asked to, those that also give the same answer."""
    features, rule = staged.features, "near_duplicates"
    pairs, jaccard = found.near
    same = features.answer[pairs[:, 0]] == features.answer[pairs[:, 1]]
    is_later = np.unique(pairs[:, 1])
    num_groups = len(np.unique(found.group[pairs[:, 0]])) if len(pairs) else 0
    message = f"{count_rows(len(is_later))} asked nearly what an earlier row asks (from {how.threshold:.0%} of shingles on)"
    if num_groups:
        message += (
            f", in {num_groups:,} group{'s' if num_groups > 1 else ''}; {int(same.sum()):,} of {len(pairs):,} pairs had the same answer"
        )
    if how.near == "report":
        return _report(rule, staged, is_later, message)
    twin = later_twins(NearPairs(pairs[same], jaccard[same]), len(staged))
    rows = np.flatnonzero(twin >= 0)
    return _take(rule, staged, rows, [f"near {source}" for source in staged.sources(twin[rows])], message)


def drop_leaks(staged: Staged, kept: Flags, assigned: Assigned, *, has_test_file: bool) -> Taken:
    """Leave out of train what a held-back row asks word for word, and of validation what a test row asks."""
    asked = staged.features.asked
    leaks = np.zeros(len(staged), np.bool_)
    for split in range(len(SPLITS) - 1):  # train against validation and test, validation against test
        own, beyond = kept & (assigned == split), kept & (assigned > split)
        leaks |= own & np.isin(asked, asked[beyond])
    rows = np.flatnonzero(leaks)
    what = "a row of the test file" if has_test_file else "a row that is held back"
    return _take("leak", staged, rows, [f"asks what {what} asks"] * len(rows), f"{count_rows(len(rows))} asked what {what} asks")


def find_twins(staged: Staged, kept: Flags, assigned: Assigned, how: DuplicateRules) -> Taken:
    """Rows of train that are near to one that is held back: a model would be judged by what it has nearly learned by heart."""
    features, rule = staged.features, "near_leak"
    rows = np.flatnonzero(kept & features.is_long)
    is_held = assigned[rows] != TRAIN
    near = np.zeros((0, 2), np.int64)
    if is_held.any() and not is_held.all():
        found = candidates_across(Sketches(features.keys[rows], features.low[rows]), how.threshold, is_held)
        near = verify(rows[found], staged.asked_texts, how).pairs
    in_train = np.where(assigned[near[:, :1]] == TRAIN, near, near[:, ::-1])
    twins, first = np.unique(in_train[:, 0], return_index=True)
    message = f"{count_rows(len(twins))} of train asked nearly what a row that is held back asks"
    if how.across_splits == "report":
        return _report(rule, staged, twins, message if not len(twins) else f"{message}, all kept: the score will be too good")
    return _take(rule, staged, twins, [f"near {source}" for source in staged.sources(in_train[first, 1])], message)


def _first_of_group(rows: Rows, group: npt.NDArray[np.uint64]) -> Rows:
    """For each row the least number in its group."""
    _, index = np.unique(group, return_inverse=True)
    least = np.full(len(group), np.iinfo(np.int64).max, np.int64)
    np.minimum.at(least, index, rows)
    return least[index]


def _take(rule: str, staged: Staged, rows: Rows, reasons: list[str], message: str) -> Taken:
    shown = tuple(staged.sources(rows[:NUM_EXAMPLES_SHOWN]))
    several = tuple(reasons[:NUM_EXAMPLES_SHOWN]) if len(set(reasons)) > 1 else ()
    return Taken(rows, reasons, Finding(rule=rule, num_removed=len(rows), message=message, examples=shown, reasons=several))


def _report(rule: str, staged: Staged, rows: Rows, message: str) -> Taken:
    shown = tuple(staged.sources(rows[:NUM_EXAMPLES_SHOWN]))
    return Taken(np.zeros(0, np.int64), [], Finding(rule=rule, num_flagged=len(rows), message=message, examples=shown))
