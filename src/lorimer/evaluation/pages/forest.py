"""The pictures of a report card: every check in a forest plot, every task's levels on a line, items won and lost as bars."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from lorimer.evaluation.gates import Check, GateResult
from lorimer.evaluation.pages.charts import Axis, Shape, axis_of, axis_svg, duel_svg, interval_svg, points_svg
from lorimer.evaluation.pages.tally import TaskTally, check_unit_of, less_is_better, task_of
from lorimer.evaluation.results import SuiteReport, TaskResult, Unit

Rule = Literal["better_than", "not_worse_than", "at_least", "at_most", "never"]
RULE_WORDS: dict[Rule, tuple[str, str]] = {
    "better_than": ("Must be better", "Passes if the whole bar lies on the clear side of 0: better beyond chance."),
    "not_worse_than": (
        "Must not be worse",
        "Passes if the whole bar lies on the clear side of the dashed line, the margin: the data leave room for a smaller loss only.",
    ),
    "at_least": ("Must reach a level", "Passes if the whole bar lies right of the dashed line."),
    "at_most": ("Must stay below a level", "Passes if the whole bar lies left of the dashed line."),
    "never": ("Must not happen", "The dot is the share of failures seen, the bar the shares that so many items cannot rule out."),
}
DIFFERENCES: tuple[Rule, ...] = ("better_than", "not_worse_than")
SHARES = axis_of((0.0, 1.0))
SHARES_AXIS = axis_svg(SHARES, [f"{tick:.0%}" for tick in SHARES.ticks])
LEVEL_UNITS: dict[Unit, str] = {"share": "%", "nats": " nats", "bits": " bits"}
CHANGE_UNITS: dict[Unit, str] = {"share": " points", "nats": " nats", "bits": " bits"}
UNIT_WORDS: dict[Unit, str] = {"share": "points", "nats": "nats per token", "bits": "bits"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One check with its picture, if it has figures to draw."""

    check: Check
    rule: str
    """In words: `not worse than the base by 2.0 points`."""
    found: str
    interval: str
    picture: Markup | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Checks of one kind on one axis."""

    title: str
    how: str
    unit: str
    axis: Markup | None
    rows: tuple[Row, ...]


def draw_panels(report: SuiteReport, gate: GateResult) -> list[Panel]:
    """Every check of a gate once: those with an interval and a limit by kind and unit, the others last."""
    placed: dict[tuple[Rule, Unit], list[tuple[Check, TaskResult]]] = {(rule, unit): [] for rule in RULE_WORDS for unit in UNIT_WORDS}
    others: list[Check] = []
    for check in gate.checks:
        task = task_of(check, report)
        rule = None if task is None else rule_of(task)
        if task is None or rule is None or not _is_drawable(check):
            others.append(check)
        else:
            placed[rule, check_unit_of(task)].append((check, task))
    panels = [_panel(rule, unit, found) for (rule, unit), found in placed.items() if found]
    if others:
        rows = tuple(Row(check=check, rule="", found="", interval="", picture=None) for check in others)
        panels.append(Panel(title="Without a picture", how="Checks that have no interval to draw.", unit="", axis=None, rows=rows))
    return panels


def draw_levels(tallies: Sequence[TaskTally]) -> dict[str, Markup]:
    """By task: base, incumbent and candidate on one line; shares on a common axis from 0 to 100%, everything else on one from 0."""
    pictures = {}
    for tally in tallies:
        if tally.candidate is None or tally.base is None:
            continue
        points: list[tuple[str, Shape, float]] = [("base", "square", tally.base)]
        points += [("incumbent", "diamond", tally.incumbent)] if tally.incumbent is not None else []
        points += [("candidate", "dot", tally.candidate)]
        axis = SHARES if tally.unit == "share" else axis_of((0.0, *(value for _, _, value in points)))
        words = ", ".join(f"{who} {level(value, tally.unit)}" for who, _, value in points)
        pictures[tally.task.name] = points_svg(axis, points, words, has_grid=tally.unit == "share")
    return pictures


def draw_duels(tallies: Sequence[TaskTally]) -> dict[str, Markup]:
    """By task with right and wrong answers: items won and lost against the incumbent, or the base where there is none; to one scale."""
    drawn = {tally.task.name: tally.duels[0] for tally in tallies if tally.unit == "share"}
    most = max((max(duel.num_won, duel.num_lost) for duel in drawn.values()), default=0)
    pictures = {}
    for name, duel in drawn.items():
        label = f"{duel.num_lost} items worse and {duel.num_won} better than the {duel.against}, {duel.num_same} the same"
        pictures[name] = duel_svg(duel.num_won, duel.num_lost, most, label)
    return pictures


def rule_of(task: TaskResult) -> Rule | None:
    """Which kind of rule a task has; None for one that this page does not know."""
    return next((rule for rule in RULE_WORDS if rule in task.rule), None)


def level(value: float | None, unit: Unit) -> str:
    """A score for a reader: `81.4%`, `2.310 nats`."""
    return "not scored" if value is None or not math.isfinite(value) else f"{_figure(value, unit)}{LEVEL_UNITS[unit]}"


def change(value: float | None, unit: Unit) -> str:
    """A difference for a reader: `+2.3 points`."""
    return "not scored" if value is None or not math.isfinite(value) else f"{_figure(value, unit, '+')}{CHANGE_UNITS[unit]}"


def _figure(value: float, unit: Unit, sign: Literal["", "+"] = "") -> str:
    """The number alone, with as many digits as matter, a true minus and no minus before 0."""
    digits = 3 if unit == "nats" else 1
    rounded = round(100 * value if unit == "share" else value, digits) + 0.0  # + 0.0 makes -0.0 into 0.0
    return f"{rounded:{sign}.{digits}f}".replace("-", "−")


def _panel(rule: Rule, unit: Unit, found: Sequence[tuple[Check, TaskResult]]) -> Panel:
    title, how = RULE_WORDS[rule]
    is_difference = rule in DIFFERENCES
    if is_difference and any(less_is_better(task) for _, task in found):
        how += " Less is better here; a difference is counted as improvement, so that right is still better."
    ends = [end for check, _ in found for end in _ends(check)]
    if is_difference:
        axis = axis_of([0.0, *ends])
    else:
        axis = axis_of([0.0, *ends] if rule == "never" else ends, lowest=0.0, highest=1.0 if unit == "share" else math.inf)
    if unit == "share":
        labels = [
            f"{100 * tick:+.4g}" if is_difference and tick else f"{100 * tick:.4g}{'' if is_difference else '%'}" for tick in axis.ticks
        ]
    else:
        labels = [f"{tick:+.4g}" if is_difference and tick else f"{tick:.4g}" for tick in axis.ticks]
    return Panel(
        title=title,
        how=how,
        unit="" if unit == "share" and not is_difference else f"{'difference in ' if is_difference else ''}{UNIT_WORDS[unit]}",
        axis=axis_svg(axis, [label.replace("-", "−") for label in labels]),
        rows=tuple(_row(rule, unit, check, task, axis) for check, task in found),
    )


def _row(rule: Rule, unit: Unit, check: Check, task: TaskResult, axis: Axis) -> Row:
    assert check.interval is not None, f"{check.name} has no interval to draw"
    value, low, high, limit = _ends(check)
    is_difference = rule in DIFFERENCES
    say = change if is_difference else level
    first = _figure(low, unit, "+" if is_difference else "")
    found, interval = say(value, unit), f"{first} to {say(high, unit)}"
    picture = interval_svg(
        axis,
        value=value,
        low=low,
        high=high,
        limit=limit,
        passes=_passing_side(rule, limit, task),
        kind=check.verdict,
        label=f"{check.verdict}: {found}, {check.interval.confidence:.0%} interval {interval}, limit {say(limit, unit)}",
    )
    return Row(check=check, rule=_rule_in_words(rule, task, limit, unit), found=found, interval=interval, picture=picture)


def _passing_side(rule: Rule, limit: float, task: TaskResult) -> Literal["above", "below"]:
    """A gate counts differences so that more is better, the margin below 0; a distance may grow, by a margin above 0."""
    if rule in ("at_most", "never"):
        return "below"
    return "below" if rule == "not_worse_than" and limit > 0 and less_is_better(task) else "above"


def _rule_in_words(rule: Rule, task: TaskResult, limit: float, unit: Unit) -> str:
    if rule == "better_than":
        return f"better than the {task.rule[rule]}"
    if rule == "not_worse_than":
        return f"not worse than the {task.rule[rule]} by {change(abs(limit), unit).lstrip('+')}"
    if rule == "never":
        return f"no failure, and its rate surely at most {level(limit, unit)}"
    return f"{'at least' if rule == 'at_least' else 'at most'} {level(limit, unit)}"


def _is_drawable(check: Check) -> bool:
    if check.value is None or check.interval is None or check.threshold is None:
        return False
    return all(math.isfinite(number) for number in _ends(check))


def _ends(check: Check) -> tuple[float, float, float, float]:
    """Value, low and high end of the interval, and the limit."""
    if check.value is None or check.interval is None or check.threshold is None:
        return (math.nan,) * 4
    return check.value, check.interval.low, check.interval.high, check.threshold
