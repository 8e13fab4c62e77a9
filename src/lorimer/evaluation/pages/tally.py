"""Gains and losses of a candidate, task by task: means over the scored items, and how many items were won and lost. It draws nothing."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lorimer.errors import DataError
from lorimer.evaluation.gates import Check, GateResult, Verdict, worst_of
from lorimer.evaluation.results import FAMILIES, Family, ItemScores, SuiteReport, TaskResult, Unit, unit_of
from lorimer.evaluation.scorers.score import Score

Side = Literal["base", "incumbent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """The candidate against one of the others, item by item."""

    against: Side
    num_won: int
    num_lost: int
    num_same: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTally:
    """What became of one task; every figure is over the items that all sides have a score for."""

    task: TaskResult
    check: Check | None
    """What the gate said of it, if it asked."""
    num_scored: int
    num_unscored: int
    candidate: float | None
    """Mean score; None where no item was scored."""
    base: float | None
    incumbent: float | None
    duels: tuple[Duel, ...]
    """Against the incumbent first, if there is one, then against the base."""

    @property
    def unit(self) -> Unit:
        """What its figures are counted in."""
        return unit_of(self.task.metric)

    @property
    def less_is_better(self) -> bool:
        """Whether a higher score is a loss."""
        return less_is_better(self.task)

    @property
    def difference(self) -> float | None:
        """Candidate's mean minus that of the incumbent, or of the base where there is none."""
        other = self.base if self.incumbent is None else self.incumbent
        return None if self.candidate is None or other is None else self.candidate - other


def tally_tasks(report: SuiteReport, gate: GateResult) -> list[TaskTally]:
    """Every task in the suite's order."""
    by_task = {task.name: check for check in gate.checks if (task := task_of(check, report)) is not None}
    return [_tally(task, by_task.get(task.name), report.incumbent_name is not None) for task in report.tasks]


def sum_duels(tallies: Iterable[TaskTally], against: Side) -> Duel:
    """All items of several tasks together; tasks without right and wrong answers (perplexity, exposure) are left out."""
    duels = [duel for tally in tallies if tally.unit == "share" for duel in tally.duels if duel.against == against]
    return Duel(
        against=against,
        num_won=sum(duel.num_won for duel in duels),
        num_lost=sum(duel.num_lost for duel in duels),
        num_same=sum(duel.num_same for duel in duels),
    )


def by_family(tallies: Sequence[TaskTally]) -> dict[Family, list[TaskTally]]:
    """The families that have tasks, in their order."""
    found = {family: [tally for tally in tallies if tally.task.family == family] for family in FAMILIES}
    return {family: own for family, own in found.items() if own}


def task_of(check: Check, report: SuiteReport) -> TaskResult | None:
    """The task a check is about: the one it is named for (`refusal`, or with something before or after: `safety/refusal`); None if none."""
    names = (check.name, check.name.partition("/")[2], *re.split("[/:]", check.name))  # a task of another harness has a colon in its name
    return next((task for name in names for task in report.tasks if task.name == name), None)


def check_unit_of(task: TaskResult) -> Unit:
    """What a task's check is counted in: as its items are, but membership, held to a level, is an area between 0 and 1."""
    return "share" if task.metric == "membership" and task.rule.keys() & {"at_least", "at_most"} else unit_of(task.metric)


def less_is_better(task: TaskResult) -> bool:
    """Whether a higher score of this task is a loss: distances, exposure, and whatever must stay below a limit."""
    return unit_of(task.metric) != "share" or "at_most" in task.rule


def outcome(item: ItemScores, side: Side, *, less_is_better: bool = False) -> int:
    """1 if the candidate won this scored item against the other side, -1 if it lost it, 0 if neither."""
    other = item.base if side == "base" else item.incumbent
    assert item.candidate.value is not None, f"item {item.id}: the candidate's answer is not scored"
    assert other is not None, f"item {item.id}: there is no {side}"
    assert other.value is not None, f"item {item.id}: the answer of the {side} is not scored"
    found = (item.candidate.value > other.value) - (item.candidate.value < other.value)
    return -found if less_is_better else found


def require_same(report: SuiteReport, gate: GateResult) -> None:
    """Refuse to show a verdict beside evidence that it is not about.

    Raises:
        DataError: if the gate held another report.
    """
    if gate.report_digest != report.digest:
        raise DataError(
            f"this gate result is about report {gate.report_digest[:12]}, not about {report.digest[:12]} "
            f"({report.candidate_name} on {report.suite} version {report.version}): run the gate on this report"
        )


def worst(checks: Iterable[Check]) -> Verdict | None:
    """The worst of several verdicts; None of none."""
    verdicts = [check.verdict for check in checks]
    return worst_of(verdicts) if verdicts else None


def _tally(task: TaskResult, check: Check | None, has_incumbent: bool) -> TaskTally:
    items = [item for item in task.items if item.is_scored and (item.incumbent is not None or not has_incumbent)]
    sides: tuple[Side, ...] = ("incumbent", "base") if has_incumbent else ("base",)
    duels = []
    for side in sides:
        outcomes = [outcome(item, side, less_is_better=less_is_better(task)) for item in items]
        duels.append(Duel(against=side, num_won=outcomes.count(1), num_lost=outcomes.count(-1), num_same=outcomes.count(0)))
    return TaskTally(
        task=task,
        check=check,
        num_scored=len(items),
        num_unscored=len(task.items) - len(items),
        candidate=_mean(item.candidate for item in items),
        base=_mean(item.base for item in items),
        incumbent=_mean(item.incumbent for item in items if item.incumbent is not None) if has_incumbent else None,
        duels=tuple(duels),
    )


def _mean(scores: Iterable[Score]) -> float | None:
    values = [score.value for score in scores if score.value is not None]
    return math.fsum(values) / len(values) if values else None
