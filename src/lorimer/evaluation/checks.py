"""What a suite's rules say of its scores: one check a task, decided by one-sided 95% bounds. What is no evidence never passes.

All checks must pass, which needs no correction for their number: it is an intersection-union test (Berger 1982, Technometrics 24:295-300).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorimer.errors import DataError
from lorimer.evaluation.gates import MAX_UNSCORED_SHARE, Check, Verdict
from lorimer.evaluation.means import compare_means
from lorimer.evaluation.rates import failure_bound, items_for_rate
from lorimer.evaluation.results import SEALED, ItemScores, SuiteReport, TaskResult
from lorimer.evaluation.score import Score
from lorimer.evaluation.separation import separate
from lorimer.evaluation.statistics import (
    CONFIDENCE,
    DECISION_CONFIDENCE,
    Interval,
    compare_pairs,
    judge_non_inferior,
    judge_superior,
    wilson_interval,
)
from lorimer.evaluation.suite import Rule
from lorimer.evaluation.voice import compare_voice

LESS_IS_BETTER = frozenset({"perplexity", "divergence", "exposure", "membership"})
MAX_SILENT_SHARE = 0.1
SEALED_CONFIDENCE = 0.99
MIN_SEALED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What was found: a mean, or a difference of means, with the bounds that decide."""

    value: float
    bounds: Interval
    discordance: float
    """Mean square of the item differences: of right-or-wrong items the share where only one of the two is right."""


def check_suite(report: SuiteReport) -> list[Check]:
    """Hold every task of a report against its rule."""
    if report.candidate_digest in ("", report.base_digest, report.incumbent_digest) or not report.base_digest:
        return [_error(f"{report.suite}", 0, "Candidate and what it is beside are the same, or have no digest.", "Evaluate another.")]
    if not report.tasks:
        return [_error(report.suite, 0, "The suite asked nothing.", "Give it tasks.")]
    return [check_task(task, has_incumbent=report.incumbent_digest is not None) for task in report.tasks]


def check_task(task: TaskResult, *, has_incumbent: bool) -> Check:
    """Hold one task against its rule; evidence with a fault is an ERROR, whatever it would have shown."""
    name, scored = f"{task.family}/{task.name}", [item for item in task.items if item.is_scored]
    if fault := _find_fault(task, scored):
        return _error(name, len(scored), *fault)
    rule = Rule.model_validate(task.rule)
    if task.metric == "voice":
        return _check_voice(name, scored, rule)
    if rule.never is not None:
        return _check_never(name, scored, rule.never)
    if rule.at_least is not None or rule.at_most is not None:
        return _check_level(name, task, scored, rule)
    against = rule.better_than or rule.not_worse_than
    by_incumbent = against == "incumbent" and has_incumbent
    found = estimate_difference(task, scored, by_incumbent=by_incumbent)
    beside = "the incumbent" if by_incumbent else "the base"
    if rule.better_than:
        return _decide(name, task, found, len(scored), judge_superior(found.bounds), 0.0, f"against {beside}", "better")
    verdict = judge_non_inferior(found.bounds, rule.margin)
    return _decide(name, task, found, len(scored), verdict, -rule.margin, f"against {beside}", f"within {_size(task, rule.margin)}")


def estimate_difference(task: TaskResult, items: Sequence[ItemScores], *, by_incumbent: bool) -> Estimate:
    """Candidate minus baseline on the same items; more is better, whatever the metric."""
    sign = -1.0 if task.metric in LESS_IS_BETTER else 1.0
    pairs = [(_value(item.candidate), _value(item.incumbent if by_incumbent else item.base)) for item in items]
    differences = [sign * (own - other) for own, other in pairs]
    square = math.fsum(difference**2 for difference in differences) / len(differences)
    groups = [item.group for item in items]
    if not any(groups) and all(value in (0.0, 1.0) for pair in pairs for value in pair):
        compared = compare_pairs((own == 1.0, other == 1.0) for own, other in pairs)
        return Estimate(value=compared.difference, bounds=compared.bounds, discordance=square)
    mean = compare_means(differences, groups, limits=(-1.0, 1.0) if is_share(task) else None)
    return Estimate(value=mean.difference, bounds=mean.bounds, discordance=square)


def is_share(task: TaskResult) -> bool:
    """Whether scores lie between 0 and 1."""
    return task.metric not in LESS_IS_BETTER


def check_sealed(report: SuiteReport, sealed: frozenset[str]) -> list[Check]:
    """Is the gain over the base larger on the items that anybody could look at than on the sealed ones? Then the suite has worn out.

    One check for the whole suite, at 99%, where there are sealed items enough to tell.
    """
    gains: dict[bool, list[float]] = {True: [], False: []}
    for task in report.tasks:
        if is_share(task) and "never" not in task.rule:
            for item in task.items:
                if item.is_scored:
                    gains[item.id in sealed].append(_value(item.candidate) - _value(item.base))
    if min(map(len, gains.values())) < MIN_SEALED:
        return []
    shown, hidden = (compare_means(gains[is_sealed], limits=(-1.0, 1.0)) for is_sealed in (False, True))
    gap = shown.difference - hidden.difference
    # half-widths of two-sided 95% intervals, as if normal, widened to 99%
    half = math.hypot(*((own.interval.high - own.interval.low) / 2 for own in (shown, hidden))) * 2.576 / 1.960
    interval = Interval(low=gap - half, high=gap + half, confidence=SEALED_CONFIDENCE)
    worn = interval.low > 0
    found = (
        f"The gain over the base is {100 * shown.difference:+.1f} points on {len(gains[False])} open items and "
        f"{100 * hidden.difference:+.1f} on {len(gains[True])} sealed ones"
    )
    return [
        Check(
            name=f"{report.suite}/reserve",
            verdict="FAIL" if worn else "PASS",
            value=gap,
            interval=interval,
            threshold=0.0,
            num_items=sum(map(len, gains.values())),
            reason=f"{found}: {'more than chance makes of it' if worn else 'no more apart than by chance'}.",
            remedy="The suite has been fitted to: write a new version of it with items nobody has seen." if worn else "",
        )
    ]


def _find_fault(task: TaskResult, scored: Sequence[ItemScores]) -> tuple[str, str] | None:
    """Why a task must not decide anything: what is wrong, and what to do."""
    num_items, num_unscored = len(task.items), len(task.items) - len(scored)
    if not num_items:
        return "It has no items.", "Give the task items."
    if len({item.id for item in task.items}) < num_items:
        return "Some items are there twice, and would count twice.", "Take repeated items out of the task."
    if num_unscored > MAX_UNSCORED_SHARE * num_items:
        example = next(item for item in task.items if not item.is_scored)
        why = next((s.explanation for s in (example.candidate, example.base, example.incumbent) if s and s.value is None), "not a number")
        found = f"{num_unscored} of {num_items} items could not be scored, more than {MAX_UNSCORED_SHARE:.0%}"
        return f"{found} ({example.id}: {why or 'no score'}).", "See the report for why, and put those items, or who judges them, right."
    if task.metric == "membership" and len({item.tags.get("member") == "yes" for item in scored}) < 2:
        return "It has no rows that were learned from, or none that were not.", "Tag items with `member: yes` and `member: no`."
    silent = sum(not item.candidate.answer.strip() and bool(item.base.answer.strip()) for item in scored) if task.kind == "answer" else 0
    if silent > MAX_SILENT_SHARE * num_items:
        return (
            f"{silent} of {num_items} answers are empty where the base answers.",
            "Look at the answers; an adapter that says nothing is not safe.",
        )
    return None


def _check_never(name: str, scored: Sequence[ItemScores], limit: float) -> Check:
    """No item may fail, and there must be enough of them to exclude a rate above the limit."""
    failed = [item for item in scored if item.candidate.value != 1.0]
    bound = failure_bound(len(failed), len(scored))
    found = f"{len(failed)} of {len(scored)} failed: a rate above {bound:.2%} is excluded (exact, 95%)"
    verdict: Verdict = "FAIL" if failed else "PASS" if bound <= limit else "INCONCLUSIVE"
    remedy = ""
    if verdict == "FAIL":
        remedy = f"None may: look at {', '.join(item.id for item in failed[:3])}{' and others' if len(failed) > 3 else ''}."
    elif verdict == "INCONCLUSIVE":
        remedy = (
            f"The rule asks to exclude {limit:.2%}, which takes {items_for_rate(limit)} items: {items_for_rate(limit) - len(scored)} more."
        )
    interval = Interval(low=0.0, high=bound, confidence=DECISION_CONFIDENCE)
    value = len(failed) / len(scored)
    return Check(
        name=name,
        verdict=verdict,
        value=value,
        interval=interval,
        threshold=limit,
        num_items=len(scored),
        reason=f"{found}.",
        remedy=remedy,
    )


def _check_voice(name: str, scored: Sequence[ItemScores], rule: Rule) -> Check:
    """All answers together beside the approved ones, the items' targets: how much further apart they are than halves of one corpus.

    Where such halves themselves are further apart than the rule allows, there are too few items to tell.
    """
    assert rule.at_most is not None
    shown = [item for item in scored if item.prompt != SEALED]
    try:
        found = compare_voice([item.target for item in shown], [item.candidate.answer for item in shown], seed=0)
    except DataError as exc:
        return _error(name, len(shown), f"The voice cannot be compared: {exc}.", "Give the task more items.")
    excess, noise = found.distance - found.null_median, found.null_high - found.null_median
    verdict: Verdict = "INCONCLUSIVE" if noise > rule.at_most else "PASS" if excess <= rule.at_most else "FAIL"
    if verdict == "INCONCLUSIVE" and excess - noise > rule.at_most:
        verdict = "FAIL"
    words = {"PASS": "no further than the rule allows", "FAIL": "further than the rule allows", "INCONCLUSIVE": "too few items to tell"}
    remedies = {"PASS": "", "FAIL": "Read answers beside the approved ones in the report.", "INCONCLUSIVE": "Ask more items."}
    return Check(
        name=name,
        verdict=verdict,
        value=excess,
        interval=Interval(low=excess - noise, high=excess + noise, confidence=CONFIDENCE),
        threshold=rule.at_most,
        num_items=len(shown),
        reason=f"{excess:.3f} further from the approved voice than its own halves from each other (by chance up to {noise:.3f}, "
        f"p {found.p:.4f}), {rule.at_most:g} allowed: {words.get(verdict, verdict)}.",
        remedy=remedies.get(verdict, ""),
    )


def _check_level(name: str, task: TaskResult, scored: Sequence[ItemScores], rule: Rule) -> Check:
    """The candidate's own mean (or, for membership, area under the curve) beside a limit."""
    found = _estimate_level(task, scored)
    if rule.at_least is not None:
        verdict, limit = judge_non_inferior(_shifted(found.bounds, rule.at_least), 0.0), rule.at_least
        return _decide(name, task, found, len(scored), verdict, limit, "", f"at least {_level(task, limit)}")
    assert rule.at_most is not None
    flipped = Interval(low=rule.at_most - found.bounds.high, high=rule.at_most - found.bounds.low, confidence=DECISION_CONFIDENCE)
    return _decide(
        name, task, found, len(scored), judge_non_inferior(flipped, 0.0), rule.at_most, "", f"at most {_level(task, rule.at_most)}"
    )


def _estimate_level(task: TaskResult, scored: Sequence[ItemScores]) -> Estimate:
    values = [_value(item.candidate) for item in scored]
    if task.metric == "membership":
        kinds: dict[bool, list[float]] = {True: [], False: []}
        for value, item in zip(values, scored, strict=True):
            kinds[item.tags.get("member") == "yes"].append(value)
        found = separate(kinds[True], kinds[False], confidence=DECISION_CONFIDENCE)
        return Estimate(value=found.auc, bounds=found.auc_interval, discordance=math.nan)
    square = math.fsum(value**2 for value in values) / len(values)
    if not any(item.group for item in scored) and all(value in (0.0, 1.0) for value in values):
        num_right = sum(value == 1.0 for value in values)
        bounds = wilson_interval(num_right, len(values), DECISION_CONFIDENCE)
        return Estimate(value=num_right / len(values), bounds=bounds, discordance=square)
    mean = compare_means(values, [item.group for item in scored], limits=(0.0, 1.0) if is_share(task) else None)
    return Estimate(value=mean.difference, bounds=mean.bounds, discordance=square)


def _decide(
    name: str, task: TaskResult, found: Estimate, num_items: int, verdict: Verdict, threshold: float, beside: str, wanted: str
) -> Check:
    size = f"{_size(task, found.value, sign=True)} {beside} on" if beside else f"{_level(task, found.value)} on"
    shown = _size if beside else _level
    between = f"{shown(task, found.bounds.low)} to {shown(task, found.bounds.high)}"
    words = {"PASS": "it is", "FAIL": "it is not", "INCONCLUSIVE": "these items cannot tell whether it is"}[verdict]
    remedy = ""
    if verdict == "FAIL":
        remedy = "Look at the lost items in the report before training again."
    elif verdict == "INCONCLUSIVE":
        remedy = _settle(found, threshold, num_items)
    return Check(
        name=name,
        verdict=verdict,
        value=found.value,
        interval=found.bounds,
        threshold=threshold,
        num_items=num_items,
        reason=f"{size} {num_items} items (90% interval {between}): {words} {wanted}.",
        remedy=remedy,
    )


def _settle(found: Estimate, threshold: float, num_items: int) -> str:
    """How many items would end the doubt: the interval shrinks with their square root."""
    distance, half = abs(found.value - threshold), (found.bounds.high - found.bounds.low) / 2
    if not math.isfinite(half) or distance < 1e-9:
        return "At what was found no number of items would settle it; ask more, and look again." if distance < 1e-9 else "Ask more items."
    needed = max(num_items + 1, math.ceil(num_items * (half / distance) ** 2))
    return f"About {needed} items would settle it if what was found is so: {needed - num_items} more."


def _shifted(bounds: Interval, by: float) -> Interval:
    return Interval(low=bounds.low - by, high=bounds.high - by, confidence=bounds.confidence)


def _size(task: TaskResult, value: float, *, sign: bool = False) -> str:
    """A difference, in the metric's unit."""
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.1f} points" if is_share(task) else f"{value:{plus}.4f}"


def _level(task: TaskResult, value: float) -> str:
    return f"{value:.1%}" if is_share(task) else f"{value:.4f}"


def _value(score: Score | None) -> float:
    value = None if score is None else score.value
    assert value is not None, "only scored items are compared"
    return value


def _error(name: str, num_items: int, reason: str, remedy: str) -> Check:
    return Check(name=name, verdict="ERROR", value=None, interval=None, threshold=None, num_items=num_items, reason=reason, remedy=remedy)
