"""One page for one adapter: the verdict in a sentence, every check in a picture, what was gained and lost, and the answers themselves.

Self-contained, without scripts, light or dark as the reader's screen is, readable without colour. It asks no model and judges nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lorimer.evaluation.gates import GateResult, Verdict
from lorimer.evaluation.pages.forest import SHARES_AXIS, change, draw_duels, draw_levels, draw_panels, level
from lorimer.evaluation.pages.marking import one_line, show_text
from lorimer.evaluation.pages.tally import (
    Side,
    by_family,
    less_is_better,
    outcome,
    require_same,
    sum_duels,
    tally_tasks,
    worst,
)
from lorimer.evaluation.results import FAMILIES, Family, ItemScores, SuiteReport, TaskResult, unit_of
from lorimer.evaluation.scorers.score import Score

Role = Literal["candidate", "incumbent", "base"]
ROLES: tuple[Role, ...] = ("candidate", "incumbent", "base")
MAX_SHOWN = 10  # examples of one family, won or lost; unscored items of one task; the record has them all
LOST_ORDER: tuple[Family, ...] = ("safety", "memory", "fidelity", "domain", "general")
FAMILY_WORDS: dict[Family, tuple[str, str]] = {
    "domain": ("Its own job", "Questions of the kind it was trained for, none of them seen in training."),
    "general": ("General ability", "Does it still know and can it still do what its base could?"),
    "safety": ("Safety", "Does it refuse what it should, help where it should, and keep what is confidential?"),
    "fidelity": ("Fidelity", "Does it stay with what it was given, follow its instructions and keep its voice?"),
    "memory": ("Memorisation", "Can what it was trained on be got out of it again?"),
}
VERDICT_WORDS: dict[Verdict, str] = {"PASS": "passed", "FAIL": "failed", "INCONCLUSIVE": "inconclusive", "ERROR": "error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How often this version of the suite was put to candidates: each attempt wears it out a little."""

    number: int
    reserve: Literal["sealed", "opened", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCost:
    """What it took to train the candidate."""

    seconds: float
    num_tokens: int
    price_per_hour: float | None = None
    """Of the machine, in any currency."""

    @property
    def price(self) -> float | None:
        """For the whole run."""
        return None if self.price_per_hour is None else self.seconds * self.price_per_hour / 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingCost:
    """What it took to answer, measured on one machine for all that are compared."""

    num_answers: int
    num_tokens: int
    """Prompts and answers."""
    seconds: float
    """Time of the machine, from the first question to the last answer."""
    latency_seconds: float | None = None
    """Median time from a question to the end of its answer."""
    latency_p95_seconds: float | None = None
    price_per_hour: float | None = None

    @property
    def price_per_answer(self) -> float | None:
        """None without a price or without answers."""
        if self.price_per_hour is None or not self.num_answers:
            return None
        return self.seconds * self.price_per_hour / 3600 / self.num_answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One item to read, with the side whose answer it is held against."""

    task: TaskResult
    item: ItemScores
    against: Side

    @property
    def other(self) -> Score:
        """That side's answer."""
        score = self.item.base if self.against == "base" else self.item.incumbent
        assert score is not None, f"item {self.item.id}: there is no {self.against}"
        return score


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleGroup:
    """Examples of one family that went the same way: some to show, and how many there are."""

    family: Family
    num_items: int
    shown: tuple[Example, ...]


def render_report_card(
    report: SuiteReport,
    gate: GateResult,
    *,
    training: TrainingCost | None = None,
    serving: Mapping[Role, ServingCost] | None = None,
    attempt: Attempt | None = None,
) -> str:
    """The page as HTML; what was not measured is said to be so.

    Raises:
        DataError: if the gate held another report.
    """
    require_same(report, gate)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(line=one_line, seconds=_seconds, price=_price, day=_day)
    tallies = tally_tasks(report, gate)
    has_incumbent = report.incumbent_name is not None
    families = by_family(tallies)
    page = environment.get_template("report_card.html.j2").render(
        report=report,
        gate=gate,
        headline=headline(report, gate),
        deciding=[check for check in gate.checks if check.verdict == gate.verdict] if gate.verdict != "PASS" else [],
        panels=draw_panels(report, gate),
        families=families,
        verdicts={family: worst([tally.check for tally in own if tally.check is not None]) for family, own in families.items()},
        duels={
            family: [sum_duels(own, side) for side in (("incumbent", "base") if has_incumbent else ("base",))]
            for family, own in families.items()
        },
        levels={family: draw_levels(own) for family, own in families.items()},
        duel_pictures={family: draw_duels(own) for family, own in families.items()},
        shares_axis=SHARES_AXIS,
        names={"candidate": report.candidate_name, "incumbent": report.incumbent_name, "base": report.base_name},
        lost=pick_examples(report.tasks, has_incumbent, -1, LOST_ORDER),
        won=pick_examples(report.tasks, has_incumbent, 1, FAMILIES),
        unscored={tally.task.name: _unscored(tally.task, has_incumbent) for tally in tallies if tally.num_unscored},
        training=training,
        serving={role: serving[role] for role in ROLES if role in serving} if serving else {},
        attempt=attempt,
        all_families=FAMILIES,
        family_words=FAMILY_WORDS,
        verdict_words=VERDICT_WORDS,
        show_text=show_text,
        level=level,
        change=change,
        max_shown=MAX_SHOWN,
    )
    return page.strip() + "\n"


def headline(report: SuiteReport, gate: GateResult) -> str:
    """The verdict in one sentence."""
    num_checks = len(gate.checks)
    deciding = [check.name for check in gate.checks if check.verdict == gate.verdict]
    named = ", ".join(deciding[:4]) + (f" and {len(deciding) - 4} more" if len(deciding) > 4 else "")
    share = f"{len(deciding)} of {num_checks} check{'' if num_checks == 1 else 's'}"
    name = report.candidate_name
    if gate.verdict == "PASS":
        return f"{name} passed every check of {report.suite} version {report.version}: {num_checks} of {num_checks}."
    if gate.verdict == "FAIL":
        return f"{name} did not pass: {share} failed ({named})."
    if gate.verdict == "INCONCLUSIVE":
        return f"{name} has not passed yet: {share} could not be settled with this many items ({named})."
    return f"{name} could not be judged: {share} met a fault in the evidence ({named})." if deciding else f"{name} could not be judged."


def pick_examples(tasks: Sequence[TaskResult], has_incumbent: bool, wanted: int, order: Sequence[Family]) -> list[ExampleGroup]:
    """Items that were won (`wanted` 1) or lost (-1) against the side that the task's rule names, else the incumbent, else the base.

    By family; those with the largest change first. Tasks without answers to read (perplexity, divergence, exposure) are left out.
    """
    groups = []
    for family in order:
        examples = []
        for task in tasks:
            side = side_of(task, has_incumbent)
            if task.family != family or unit_of(task.metric) != "share":
                continue
            for item in task.items:
                is_comparable = item.is_scored and (side == "base" or item.incumbent is not None)
                if is_comparable and outcome(item, side, less_is_better=less_is_better(task)) == wanted:
                    examples.append(Example(task=task, item=item, against=side))
        if examples:
            first = sorted(examples, key=lambda one: -abs((one.item.candidate.value or 0.0) - (one.other.value or 0.0)))
            groups.append(ExampleGroup(family=family, num_items=len(examples), shown=tuple(first[:MAX_SHOWN])))
    return groups


def side_of(task: TaskResult, has_incumbent: bool) -> Side:
    """Whom a task's answers are held against."""
    named = task.rule.get("better_than") or task.rule.get("not_worse_than")
    return "incumbent" if has_incumbent and named != "base" else "base"


def _unscored(task: TaskResult, has_incumbent: bool) -> list[tuple[ItemScores, list[tuple[Role, str]]]]:
    """Every item that does not count, with who could not be scored and why."""
    found: list[tuple[ItemScores, list[tuple[Role, str]]]] = []
    for item in task.items:
        scores: list[tuple[Role, Score | None]] = [("candidate", item.candidate), ("incumbent", item.incumbent), ("base", item.base)]
        reasons: list[tuple[Role, str]] = []
        for role, score in scores:
            if score is None and role == "incumbent" and has_incumbent:
                reasons.append((role, "it was not asked"))
            elif score is not None and not is_number(score.value):
                reasons.append((role, score.explanation or ("no reason was given" if score.value is None else "its score is not a number")))
        if reasons:
            found.append((item, reasons))
    return found


def is_number(value: float | None) -> bool:
    """Whether a score is one that counts: neither missing nor NaN nor infinite."""
    return value is not None and abs(value) < float("inf")


def _seconds(value: float) -> str:
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    if value < 3600:
        return f"{int(value) // 60} min {int(value) % 60} s"
    return f"{int(value) // 3600} h {int(value) % 3600 // 60} min"


def _price(value: float) -> str:
    """Three digits that mean something, never as 1e-05."""
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}" if value >= 0.001 else f"{value:.7f}".rstrip("0").rstrip(".")


def _day(created_at: str) -> str:
    """`22 November 2026, 15:04 UTC`; what is no date stays as it is."""
    try:
        when = datetime.fromisoformat(created_at)
    except ValueError:
        return created_at
    return f"{when.day} {when:%B %Y, %H:%M} {when.tzname() or 'UTC'}"
