"""How each kind of rule is decided: what was found, the bounds that decide, and a sentence that says so."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorimer.errors import DataError
from lorimer.evaluation.gates import Check, Verdict, ask_more
from lorimer.evaluation.memory.exposure import NUM_CHOICES
from lorimer.evaluation.results import SEALED, UNITS, ItemScores, TaskResult, unit_of
from lorimer.evaluation.scorers.score import Score
from lorimer.evaluation.scorers.voice import compare_voice
from lorimer.evaluation.statistics.means import compare_means
from lorimer.evaluation.statistics.proportions import (
    CONFIDENCE,
    DECISION_CONFIDENCE,
    FEWEST_TO_PASS,
    Interval,
    compare_pairs,
    judge_non_inferior,
)
from lorimer.evaluation.statistics.rates import exact_bounds, failure_bound, items_for_rate
from lorimer.evaluation.statistics.separation import separate
from lorimer.evaluation.suite_spec import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What was found: a mean, or a difference of means, with the bounds that decide."""

    value: float
    bounds: Interval
    num_independent: int
    """Items; where they come in groups, groups."""


def estimate_difference(task: TaskResult, items: Sequence[ItemScores], *, by_incumbent: bool) -> Estimate:
    """Candidate minus baseline on the same items; more is better, whatever the metric."""
    sign = -1.0 if task.metric in UNITS else 1.0
    pairs = [(value_of(item.candidate), value_of(item.incumbent if by_incumbent else item.base)) for item in items]
    differences = [sign * (own - other) for own, other in pairs]
    groups = [item.group for item in items]
    if is_share(task) and not any(groups) and all(value in (0.0, 1.0) for pair in pairs for value in pair):
        compared = compare_pairs((own == 1.0, other == 1.0) for own, other in pairs)
        return Estimate(value=compared.difference, bounds=compared.bounds, num_independent=len(items))
    is_bounded = is_share(task) and all(0 <= value <= 1 for pair in pairs for value in pair)  # other harnesses count in other units, too
    mean = compare_means(differences, groups, limits=(-1.0, 1.0) if is_bounded else None)
    return Estimate(value=mean.difference, bounds=mean.bounds, num_independent=mean.num_groups)


def is_share(task: TaskResult) -> bool:
    """Whether scores lie between 0 and 1."""
    return unit_of(task.metric) == "share"


def check_never(name: str, scored: Sequence[ItemScores], limit: float) -> Check:
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


def check_voice(name: str, scored: Sequence[ItemScores], rule: Rule) -> Check:
    """All answers together beside the approved ones, the items' targets: how much further apart they are than halves of one corpus.

    Where such halves themselves are further apart than the rule allows, there are too few items to tell.
    """
    assert rule.at_most is not None
    shown = [item for item in scored if item.prompt != SEALED]
    try:
        found = compare_voice([item.target for item in shown], [item.candidate.answer for item in shown], seed=0)
    except DataError as exc:
        return error_check(name, len(shown), f"The voice cannot be compared: {exc}.", "Give the task more items.")
    excess, noise = found.distance - found.null_median, found.null_high - found.null_median
    verdict: Verdict = "PASS" if excess <= rule.at_most else "FAIL"
    if noise > rule.at_most and excess - noise <= rule.at_most < excess + noise:
        verdict = "INCONCLUSIVE"
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


def check_level(name: str, task: TaskResult, scored: Sequence[ItemScores], rule: Rule) -> Check:
    """The candidate's own mean (or, for membership, area under the curve) beside a limit."""
    found = _estimate_level(task, scored)
    if rule.at_least is not None:
        verdict, limit = judge_non_inferior(_shifted(found.bounds, rule.at_least), 0.0), rule.at_least
        return decide(name, task, found, len(scored), verdict, limit, "", f"at least {_level(task, limit)}")
    assert rule.at_most is not None
    flipped = Interval(low=rule.at_most - found.bounds.high, high=rule.at_most - found.bounds.low, confidence=DECISION_CONFIDENCE)
    return decide(
        name, task, found, len(scored), judge_non_inferior(flipped, 0.0), rule.at_most, "", f"at most {_level(task, rule.at_most)}"
    )


def _estimate_level(task: TaskResult, scored: Sequence[ItemScores]) -> Estimate:
    values = [value_of(item.candidate) for item in scored]
    if task.metric == "membership":
        kinds: dict[bool, list[float]] = {True: [], False: []}
        for value, item in zip(values, scored, strict=True):
            kinds[item.tags.get("member") == "yes"].append(value)
        found = separate(kinds[True], kinds[False], confidence=DECISION_CONFIDENCE)
        return Estimate(value=found.auc, bounds=found.auc_interval, num_independent=len(values))
    if is_share(task) and not any(item.group for item in scored) and all(value in (0.0, 1.0) for value in values):
        num_right = sum(value == 1.0 for value in values)
        bounds = exact_bounds(num_right, len(values))
        return Estimate(value=num_right / len(values), bounds=bounds, num_independent=len(values))
    mean = compare_means(values, [item.group for item in scored], limits=_limits(task))
    return Estimate(value=mean.difference, bounds=mean.bounds, num_independent=mean.num_groups)


def _limits(task: TaskResult) -> tuple[float, float] | None:
    """The least and the largest value a score can have; few items that are all at an end then say something."""
    return (0.0, math.log2(NUM_CHOICES)) if task.metric == "exposure" else (0.0, 1.0) if is_share(task) else None


def decide(
    name: str, task: TaskResult, found: Estimate, num_items: int, verdict: Verdict, threshold: float, beside: str, wanted: str
) -> Check:
    """A check in words; bounds that are not finite decide nothing, and few items let nothing pass that is a comparison or a share."""
    if not all(map(math.isfinite, (found.value, found.bounds.low, found.bounds.high))):
        reason = f"{num_items} items are too few, or too much alike, to bound what they show: it cannot be told whether it is {wanted}."
        return Check(
            name=name,
            verdict="INCONCLUSIVE",
            value=found.value if math.isfinite(found.value) else None,
            interval=None,
            threshold=threshold,
            num_items=num_items,
            reason=reason,
            remedy="Ask more items.",
        )
    fewest = FEWEST_TO_PASS if beside or is_share(task) else 1
    has_too_few = verdict == "PASS" and found.num_independent < fewest
    if has_too_few:
        verdict = "INCONCLUSIVE"
    size = f"{size_of(task, found.value, sign=True)} {beside} on" if beside else f"{_level(task, found.value)} on"
    shown = size_of if beside else _level
    between = f"{shown(task, found.bounds.low)} to {shown(task, found.bounds.high)}"
    words = {"PASS": "it is", "FAIL": "it is not", "INCONCLUSIVE": "these items cannot tell whether it is"}[verdict]
    remedy = ""
    if verdict == "FAIL":
        remedy = "Look at the lost items in the report before training again."
    elif verdict == "INCONCLUSIVE":
        remedy = ask_more(found.num_independent, num_items) if has_too_few else _settle(found, threshold, num_items, fewest)
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


def _settle(found: Estimate, threshold: float, num_items: int, fewest: int) -> str:
    """How many items would end the doubt: the interval shrinks with their square root."""
    distance, half = abs(found.value - threshold), (found.bounds.high - found.bounds.low) / 2
    if not math.isfinite(half) or distance < 1e-9:
        return "At what was found no number of items would settle it; ask more, and look again." if distance < 1e-9 else "Ask more items."
    needed = max(num_items + 1, fewest, math.ceil(num_items * (half / distance) ** 2))
    return f"About {needed} items would settle it if what was found is so: {needed - num_items} more."


def _shifted(bounds: Interval, by: float) -> Interval:
    return Interval(low=bounds.low - by, high=bounds.high - by, confidence=bounds.confidence)


def size_of(task: TaskResult, value: float, *, sign: bool = False) -> str:
    """A difference, in the metric's unit."""
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.1f} points" if is_share(task) else f"{value:{plus}.4f}"


def _level(task: TaskResult, value: float) -> str:
    return f"{value:.1%}" if is_share(task) else f"{value:.4f}"


def value_of(score: Score | None) -> float:
    """The value of a score that has one."""
    value = None if score is None else score.value
    assert value is not None, "only scored items are compared"
    return value


def error_check(name: str, num_items: int, reason: str, remedy: str) -> Check:
    """What stands for evidence that cannot be judged."""
    return Check(name=name, verdict="ERROR", value=None, interval=None, threshold=None, num_items=num_items, reason=reason, remedy=remedy)
