"""May this adapter go on? Three honest verdicts and one for evidence that cannot be judged, which never passes.

Superiority is read from the paired interval: better beyond chance, not merely above. "All checks must pass" needs no correction for
their number: it is an intersection-union test (Berger 1982, Technometrics 24:295-300).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from lorimer.config import GateRecipe, Metric
from lorimer.errors import GateFailedError, InconclusiveError
from lorimer.evaluation.report import EvalReport, compare_items
from lorimer.evaluation.statistics.proportions import FEWEST_TO_PASS, Interval, items_to_clear, items_to_differ, proportion
from lorimer.storage import digest_of

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "ERROR"]
WORST_FIRST: tuple[Verdict, ...] = ("ERROR", "FAIL", "INCONCLUSIVE", "PASS")
MAX_UNSCORED_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question of a gate and its answer."""

    name: str
    verdict: Verdict
    value: float | None
    interval: Interval | None
    threshold: float | None
    num_items: int
    reason: str
    """One sentence: what was found."""
    remedy: str = ""
    """What would settle it, or put it right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedSuite:
    """A suite that a gate asked."""

    id: str
    """`safety@v3`"""
    digest: str
    report_digest: str
    attempt: int
    """How many adapters this version of the suite has judged, this one too: each teaches something about it."""
    opens_reserve: bool
    """Whether the sealed items were asked too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """What a gate said of one adapter."""

    verdict: Verdict
    checks: tuple[Check, ...]
    report_digest: str
    candidate_digest: str
    base_digest: str
    created_at: str
    """UTC, ISO 8601."""
    suites: tuple[JudgedSuite, ...] = ()
    incumbent_digest: str | None = None
    """The champion it was held against, where suites ask for one."""
    recipe_digest: str = ""
    """SHA-256 of the recipe whose gate this is: a result of another recipe's gate promotes nothing."""

    @property
    def is_final(self) -> bool:
        """Whether nothing is sealed any more: a promotion asks for such a result."""
        return all(suite.opens_reserve for suite in self.suites)

    @property
    def digest(self) -> str:
        """SHA-256 of the whole result."""
        return digest_of(self.to_json())

    @property
    def sentence(self) -> str:
        """The checks that decided, in words."""
        deciding = [check for check in self.checks if check.verdict == self.verdict]
        named = ((f"{check.name}: " if "/" in check.name else "", check) for check in deciding)  # tasks of suites have names like paths
        return " ".join(f"{name}{check.reason} {check.remedy}".strip() for name, check in named)

    def to_json(self) -> dict[str, Any]:
        """The JSON value that is kept."""
        return asdict(self)


def check(report: EvalReport, gate: GateRecipe) -> GateResult:
    """Hold a report against a gate; evidence with a fault is an ERROR, whatever it would have shown."""
    checks = _find_faults(report, gate)
    if not checks:
        checks = [
            *([_check_at_least(report, gate.at_least)] if gate.at_least is not None else []),
            *([_check_beats_base(report)] if gate.beats_base else []),
        ]
    return GateResult(
        verdict=worst_of(one.verdict for one in checks),
        checks=tuple(checks),
        report_digest=report.digest,
        candidate_digest=report.adapter_digest,
        base_digest=report.base_digest,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def require_pass(result: GateResult) -> None:
    """Go on only past a passed gate.

    Raises:
        GateFailedError: if the gate said FAIL or ERROR.
        InconclusiveError: if it said INCONCLUSIVE.
    """
    if result.verdict == "INCONCLUSIVE":
        raise InconclusiveError(f"the gate is inconclusive: {result.sentence}")
    if result.verdict != "PASS":
        raise GateFailedError(f"the gate {'failed' if result.verdict == 'FAIL' else 'could not be evaluated'}: {result.sentence}")


def gate_from_json(value: dict[str, Any]) -> GateResult:
    """Read back what `GateResult.to_json` wrote."""
    checks = tuple(Check(**{**one, "interval": one["interval"] and Interval(**one["interval"])}) for one in value["checks"])
    suites = tuple(JudgedSuite(**one) for one in value.get("suites", ()))
    return GateResult(**{**value, "checks": checks, "suites": suites})


def with_suites(
    result: GateResult, judged: Sequence[tuple[JudgedSuite, Sequence[Check]]], *, incumbent_digest: str | None = None
) -> GateResult:
    """A gate's result with what suites found beside it: all checks must pass."""
    checks = (*result.checks, *(check for _, own in judged for check in own))
    return replace(
        result,
        verdict=worst_of(check.verdict for check in checks),
        checks=checks,
        suites=tuple(suite for suite, _ in judged),
        incumbent_digest=incumbent_digest,
    )


def worst_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The one that decides; without any there is no evidence."""
    found = set(verdicts)
    return next((verdict for verdict in WORST_FIRST if verdict in found), "ERROR")


def _find_faults(report: EvalReport, gate: GateRecipe) -> list[Check]:
    """Every reason why this report must not decide anything."""
    scores = (report.adapter_score, report.base_score)
    num_scored = report.num_items - report.num_unscored
    faults = {
        "checks": (gate.at_least is None and not gate.beats_base, "The gate asks for nothing.", "Give it `at_least` or `beats_base`."),
        "digests": (
            not report.adapter_digest or not report.base_digest or report.adapter_digest == report.base_digest,
            "Candidate and base are the same, or one of them has no digest: there is nothing to compare.",
            "Evaluate the adapter beside the base it was trained on.",
        ),
        "metric": (
            report.metric not in get_args(Metric) or any(score.value is None for score in scores) or not _is_finite(report),
            "A score is missing or not a number.",
            "Evaluate the adapter again.",
        ),
        "items": (
            not _follows_from_items(report),
            "The report's totals do not follow from its items: it was changed or is damaged.",
            "Evaluate the adapter again.",
        ),
        "unscored": (
            report.num_unscored > MAX_UNSCORED_SHARE * report.num_items,
            f"{report.num_unscored} of {report.num_items} items could not be scored, more than {MAX_UNSCORED_SHARE:.0%}.",
            "See the report for why, and put those items or their targets right.",
        ),
        "min_items": (
            num_scored < gate.min_items,
            f"Only {num_scored} items were scored; the gate asks for {gate.min_items} or more.",
            f"Add {gate.min_items - num_scored} or more items to the test split, or lower `min_items`.",
        ),
    }
    return [
        Check(name=name, verdict="ERROR", value=None, interval=None, threshold=None, num_items=num_scored, reason=reason, remedy=remedy)
        for name, (is_at_fault, reason, remedy) in faults.items()
        if is_at_fault
    ]


def _check_at_least(report: EvalReport, threshold: float) -> Check:
    score, interval = report.adapter_score, report.adapter_score.interval
    assert score.value is not None, "_find_faults lets no empty score through"
    verdict: Verdict = "PASS" if interval.low >= threshold else "FAIL" if interval.high < threshold else "INCONCLUSIVE"
    found = f"{score.value:.1%} of {score.num_items} items are right (95% interval {interval.low:.1%} to {interval.high:.1%})"
    remedy = ""
    if verdict == "PASS" and score.num_items < FEWEST_TO_PASS:
        verdict, reason, remedy = "INCONCLUSIVE", f"{found}: too few to pass by.", ask_more(score.num_items, score.num_items)
    elif verdict == "PASS":
        reason = f"{found}: at least the {threshold:.1%} asked for."
    elif verdict == "FAIL":
        reason, remedy = f"{found}: less than the {threshold:.1%} asked for.", "Train on more or cleaner examples, or ask for less."
    else:
        reason = f"{found}: the {threshold:.1%} asked for lies within the interval."
        remedy = _settle(items_to_clear(score.value, threshold), score.num_items)
    return Check(
        name="at_least",
        verdict=verdict,
        value=score.value,
        interval=interval,
        threshold=threshold,
        num_items=score.num_items,
        reason=reason,
        remedy=remedy,
    )


def _check_beats_base(report: EvalReport) -> Check:
    pair, interval = report.comparison, report.comparison.interval
    verdict: Verdict = "PASS" if interval.low > 0 else "FAIL" if interval.high <= 0 else "INCONCLUSIVE"
    points = f"{100 * pair.difference:+.1f} points against the base on the same {pair.num_items} items"
    found = f"{points} (95% interval {100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
    remedy = ""
    if verdict == "PASS" and pair.num_items < FEWEST_TO_PASS:
        verdict, reason, remedy = "INCONCLUSIVE", f"{found}: too few to pass by.", ask_more(pair.num_items, pair.num_items)
    elif verdict == "PASS":
        reason = f"{found}: better beyond chance."
    elif verdict == "FAIL":
        reason, remedy = f"{found}: worse than the base.", "Look at the lost items in the report before training again."
    else:
        reason = f"{found}: no difference beyond chance."
        remedy = _settle(items_to_differ(pair.num_only_candidate, pair.num_only_baseline, pair.num_items), pair.num_items)
    return Check(
        name="beats_base",
        verdict=verdict,
        value=pair.difference,
        interval=interval,
        threshold=0.0,
        num_items=pair.num_items,
        reason=reason,
        remedy=remedy,
    )


def ask_more(num_independent: int, num_items: int) -> str:
    """What to do where there are too few items, or groups of them, for anything to pass."""
    what = "items" if num_independent == num_items else "groups of items"
    return f"Nothing passes by fewer than {FEWEST_TO_PASS} {what}: {FEWEST_TO_PASS - num_independent} more are needed."


def _settle(num_needed: int | None, num_items: int) -> str:
    """How many items would end the doubt."""
    if num_needed is None:
        return "At the observed rate no number of items would settle it."
    num_needed = max(num_needed, num_items + 1, FEWEST_TO_PASS)
    return f"About {num_needed} items would settle it at the observed rate: {num_needed - num_items} more."


def _follows_from_items(report: EvalReport) -> bool:
    """Whether the report's totals are those of its items, each of which is right, wrong or unscored, and there once."""
    values = [value for item in report.items for value in (item.base_value, item.adapter_value)]
    pair = report.comparison
    num_scored = sum(item.is_scored for item in report.items)
    return (
        all(value in (None, 0.0, 1.0) for value in values)
        and len({item.id for item in report.items}) == len(report.items) == report.num_items
        and report.num_items - report.num_unscored == num_scored
        and compare_items(report.items) == pair
        and report.adapter_score == proportion(pair.num_both + pair.num_only_candidate, num_scored)
        and report.base_score == proportion(pair.num_both + pair.num_only_baseline, num_scored)
    )


def _is_finite(report: EvalReport) -> bool:
    intervals = (report.adapter_score.interval, report.base_score.interval, report.comparison.interval)
    numbers = [report.comparison.difference, *(end for interval in intervals for end in (interval.low, interval.high))]
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
