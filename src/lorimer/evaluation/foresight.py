"""What a suite can show, said before it is asked: how often an adapter that is as good as what it is beside would pass."""

import math
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from lorimer.evaluation.results import unit_of
from lorimer.evaluation.statistics.power import POWER, items_for_power, mean_power, paired_shares, power_of_all
from lorimer.evaluation.statistics.proportions import FEWEST_TO_PASS
from lorimer.evaluation.statistics.rates import failure_bound, items_for_rate
from lorimer.evaluation.suite import Suite, SuiteTask


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskForesight:
    """One task."""

    task: str
    num_items: int
    """Those of one group count once; what a promotion asks."""
    num_open: int
    """Those that are not sealed; what `lorimer evaluate` asks."""
    asks: str
    passes: float | None
    """How often an equal adapter passes on all items; None where that depends on how scores vary."""
    passes_open: float | None
    """The same on the open items."""
    shows: float | None
    """The smallest margin that an equal adapter passes 80% of the time on all items; None as above, or where the rule has none."""
    shows_open: float | None
    """The same on the open items."""
    needed: int | None
    """Items with which it would pass 80% of the time; None as above."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """All of a suite."""

    tasks: tuple[TaskForesight, ...]
    all_pass: float
    """Were the tasks independent, of those whose power is known."""
    all_pass_open: float
    """The same on the open items."""


def foresee(suite: Suite, discordance: float) -> Foresight:
    """The power of each of a suite's rules, if only one of the two is right on this share of the items."""
    pairs = zip(suite.tasks, suite.open_part().tasks, strict=True)
    tasks = tuple(_foresee(whole, num_counted(whole), num_counted(opened), discordance) for whole, opened in pairs)
    known = [(own.passes, own.passes_open) for own in tasks if own.passes is not None and own.passes_open is not None]
    return Foresight(
        tasks=tasks, all_pass=power_of_all([whole for whole, _ in known]), all_pass_open=power_of_all([opened for _, opened in known])
    )


def num_counted(one: SuiteTask) -> int:
    """A task's items, those of one group counted once."""
    return len({sample.group or sample.id for sample in one.task.samples})


def _foresee(one: SuiteTask, num_items: int, num_open: int, discordance: float) -> TaskForesight:
    rule = one.rule
    asks = ", ".join(f"{name} {value}" for name, value in rule.model_dump(exclude_none=True, exclude_unset=True).items())
    passes, shows, needed = list[float | None]([None, None]), list[float | None]([None, None]), None
    if rule.never is not None:
        needed = items_for_rate(rule.never)
        passes = [float(failure_bound(0, num) <= rule.never) for num in (num_items, num_open)]  # of one that never fails
    elif rule.not_worse_than is not None and unit_of(one.task.metric) == "share":
        is_grouped = any(sample.group for sample in one.task.samples)
        passes = [_chance(num, discordance, rule.margin, is_grouped) for num in (num_items, num_open)]
        shows = [_margin(num, discordance, is_grouped) for num in (num_items, num_open)]
        needed = _needed(discordance, rule.margin, is_grouped)
    return TaskForesight(
        task=one.task.name,
        num_items=num_items,
        num_open=num_open,
        asks=asks,
        passes=passes[0],
        passes_open=passes[1],
        shows=shows[0],
        shows_open=shows[1],
        needed=needed,
    )


def _chance(num: int, discordance: float, margin: float, is_grouped: bool) -> float:
    """How often an equal adapter passes; groups as if each were one item, but with the bounds of means that the gate takes for them."""
    if num < FEWEST_TO_PASS:
        return 0.0
    if is_grouped:
        return mean_power(num, margin=margin, deviation=math.sqrt(discordance), limits=(-1.0, 1.0))
    return paired_shares(num, discordance=discordance, margin=margin).passed


def _needed(discordance: float, margin: float, is_grouped: bool) -> int:
    """Items, or groups, with which an equal adapter passes 80% of the time."""
    if is_grouped:
        return next(num for num in count(FEWEST_TO_PASS) if _chance(num, discordance, margin, is_grouped) >= POWER)
    return max(FEWEST_TO_PASS, items_for_power(margin=margin, discordance=discordance, power=POWER))


def _margin(num: int, discordance: float, is_grouped: bool) -> float | None:
    """The smallest margin, in whole points, that an equal adapter passes 80% of the time."""
    points = (point / 100 for point in range(1, 100))
    return next((margin for margin in points if _chance(num, discordance, margin, is_grouped) >= POWER), None)
