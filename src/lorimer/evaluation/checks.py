"""What a suite's rules say of its scores: one check a task, decided by one-sided 95% bounds. What is no evidence never passes.

All checks must pass, which needs no correction for their number: it is an intersection-union test (Berger 1982, Technometrics 24:295-300).
"""

import math
from collections.abc import Sequence

from lorimer.evaluation.decisions import (
    check_level,
    check_never,
    check_voice,
    decide,
    error_check,
    estimate_difference,
    is_share,
    size_of,
    value_of,
)
from lorimer.evaluation.gates import MAX_UNSCORED_SHARE, Check, GateResult, JudgedSuite, worst_of
from lorimer.evaluation.results import ItemScores, SuiteReport, TaskResult
from lorimer.evaluation.statistics.means import compare_means
from lorimer.evaluation.statistics.proportions import (
    Interval,
    judge_non_inferior,
    judge_superior,
)
from lorimer.evaluation.suite_spec import Rule

MAX_SILENT_SHARE = 0.1
SEALED_CONFIDENCE = 0.99
MIN_SEALED = 20


def check_suite(report: SuiteReport) -> list[Check]:
    """Hold every task of a report against its rule."""
    if report.candidate_digest in ("", report.base_digest, report.incumbent_digest) or not report.base_digest:
        return [error_check(f"{report.suite}", 0, "Candidate and what it is beside are the same, or have no digest.", "Evaluate another.")]
    if not report.tasks:
        return [error_check(report.suite, 0, "The suite asked nothing.", "Give it tasks.")]
    return [check_task(task, has_incumbent=report.incumbent_digest is not None) for task in report.tasks]


def gate_of(report: SuiteReport, checks: Sequence[Check], suites: Sequence[JudgedSuite] = ()) -> GateResult:
    """What the checks of a report say together: all of them must pass. It decides no promotion."""
    return GateResult(
        verdict=worst_of(check.verdict for check in checks),
        checks=tuple(checks),
        report_digest=report.digest,
        candidate_digest=report.candidate_digest,
        base_digest=report.base_digest,
        created_at=report.created_at,
        suites=tuple(suites),
        incumbent_digest=report.incumbent_digest,
    )


def check_task(task: TaskResult, *, has_incumbent: bool) -> Check:
    """Hold one task against its rule; evidence with a fault is an ERROR, whatever it would have shown."""
    name, scored = f"{task.family}/{task.name}", [item for item in task.items if item.is_scored]
    if fault := _find_fault(task, scored):
        return error_check(name, len(scored), *fault)
    rule = Rule.model_validate(task.rule)
    if task.metric == "voice":
        return check_voice(name, scored, rule)
    if rule.never is not None:
        return check_never(name, scored, rule.never)
    if rule.at_least is not None or rule.at_most is not None:
        return check_level(name, task, scored, rule)
    against = rule.better_than or rule.not_worse_than
    by_incumbent = against == "incumbent" and has_incumbent
    found = estimate_difference(task, scored, by_incumbent=by_incumbent)
    beside = "the incumbent" if by_incumbent else "the base"
    if rule.better_than:
        return decide(name, task, found, len(scored), judge_superior(found.bounds), 0.0, f"against {beside}", "better")
    verdict = judge_non_inferior(found.bounds, rule.margin)
    return decide(name, task, found, len(scored), verdict, -rule.margin, f"against {beside}", f"within {size_of(task, rule.margin)}")


def check_sealed(report: SuiteReport, sealed: frozenset[str]) -> list[Check]:
    """Is the gain over the base larger on the items that anybody could look at than on the sealed ones? Then the suite has worn out.

    One check for the whole suite, at 99%, where there are sealed items enough to tell.
    """
    gains: dict[bool, list[float]] = {True: [], False: []}
    for task in report.tasks:
        if is_share(task) and "never" not in task.rule:
            for item in task.items:
                if item.is_scored:
                    gains[item.id in sealed].append(value_of(item.candidate) - value_of(item.base))
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
