"""What a suite can show, said before it is asked: how often an adapter that is as good as what it is beside would pass."""

from dataclasses import asdict, dataclass
from typing import Any

from lorimer.evaluation.results import unit_of
from lorimer.evaluation.statistics.power import POWER, items_for_power, paired_shares, power_of_all
from lorimer.evaluation.statistics.proportions import FEWEST_TO_PASS
from lorimer.evaluation.statistics.rates import failure_bound, items_for_rate
from lorimer.evaluation.suite import Suite, SuiteTask


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskForesight:
    """One task."""

    task: str
    num_items: int
    asks: str
    passes: float | None
    """How often an equal adapter passes; None where that depends on how scores vary."""
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


def foresee(suite: Suite, discordance: float) -> Foresight:
    """The power of each of a suite's rules, if only one of the two is right on this share of the items."""
    tasks = tuple(_foresee(one, discordance) for one in suite.tasks)
    return Foresight(tasks=tasks, all_pass=power_of_all([own.passes for own in tasks if own.passes is not None]))


def _foresee(one: SuiteTask, discordance: float) -> TaskForesight:
    rule, num_items = one.rule, len({sample.group or sample.id for sample in one.task.samples})
    asks = ", ".join(f"{name} {value}" for name, value in rule.model_dump(exclude_none=True, exclude_unset=True).items())
    passes, needed = None, None
    if rule.never is not None:
        needed = items_for_rate(rule.never)
        passes = float(failure_bound(0, num_items) <= rule.never)  # of one that never fails
    elif rule.not_worse_than is not None and unit_of(one.task.metric) == "share":
        passes = paired_shares(num_items, discordance=discordance, margin=rule.margin).passed if num_items >= FEWEST_TO_PASS else 0.0
        needed = max(FEWEST_TO_PASS, items_for_power(margin=rule.margin, discordance=discordance, power=POWER))
    return TaskForesight(task=one.task.name, num_items=num_items, asks=asks, passes=passes, needed=needed)
