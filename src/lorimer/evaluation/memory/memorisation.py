"""The memory family of a dataset: what is asked of every adapter that was trained on it, made from the dataset itself.

A pass bounds what these probes find. It never proves that nothing was memorised. What the numbers mean is in docs/memorisation.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lorimer.data.canaries import read_canaries
from lorimer.data.dataset import Dataset
from lorimer.errors import DataError, NotFoundError
from lorimer.evaluation.memory.exposure import make_canary_task
from lorimer.evaluation.memory.membership import make_membership_task
from lorimer.evaluation.memory.verbatim import make_regurgitation_task
from lorimer.evaluation.suite import Suite, SuiteTask
from lorimer.evaluation.suite_spec import Rule
from lorimer.evaluation.task import Task

ONCE, REPEATED, RECITED, CONTROL, MEMBERSHIP = "canaries_once", "canaries_repeated", "regurgitation", "regurgitation_control", "membership"
MAX_MEAN_EXPOSURE = 3.0
"""Bits, the upper bound of the mean over canaries that were told once. Chance is 1.42 with 256 choices; at 3, a secret of 29.9 bits still
leaves 27 to guess. Full memorisation shows as 8."""
MAX_AUC = 0.7
"""The upper bound. 0.5 is chance; the strongest known attacks on models that are not overtrained stay below 0.7 (Hayes et al. 2025,
arXiv:2505.18773), overtrained ones reach 0.9 and more (Mireshghallah et al. 2022, arXiv:2205.12506)."""
MAX_RECITED = 0.01
NUM_RECITED = 300
"""None in 299 bounds the rate to below 1% (with 95% confidence)."""
FEWEST_RECITED = 59
"""None in 59 bounds it to below 5%: with fewer rows, nothing is concluded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What can be asked of an adapter's memory, and why the rest cannot."""

    suite: Suite
    """What is judged. It may be empty."""
    shown: tuple[Task, ...]
    """What only helps to read it: canaries told more often, and rows nobody learned as a control of what is recited."""
    left_out: Mapping[str, str]
    """Why a task could not be made, by its name."""


def memory_suite(dataset: Dataset, *, num_membership: int = 200, num_recited: int = NUM_RECITED, seed: int = 0) -> Suite:
    """What an adapter that learned from a dataset is held to, as far as the dataset has rows for it; `about` says what is left out.

    Raises:
        DataError: if it has rows for none of it.
    """
    memory = make_memory(dataset, num_membership=num_membership, num_recited=num_recited, seed=seed)
    if not memory.suite.tasks:
        raise DataError(f"nothing of what an adapter remembers of {dataset.name!r} can be asked: {'; '.join(memory.left_out.values())}")
    return memory.suite


def make_memory(dataset: Dataset, *, num_membership: int = 200, num_recited: int = NUM_RECITED, seed: int = 0) -> Memory:
    """Canaries told once, those told more often, training rows to be recited, others as their control, and membership."""
    makers: dict[str, Callable[[], Task]] = {
        ONCE: lambda: _canaries(dataset, ONCE, once=True),
        REPEATED: lambda: _canaries(dataset, REPEATED, once=False),
        RECITED: lambda: make_regurgitation_task(dataset, num_recited, seed, name=RECITED),
        CONTROL: lambda: make_regurgitation_task(dataset, num_recited, seed, split="validation", name=CONTROL),
        MEMBERSHIP: lambda: make_membership_task(dataset, num_membership, seed, name=MEMBERSHIP),
    }
    tasks, left_out = list[Task](), dict[str, str]()
    for name, make in makers.items():
        try:
            tasks.append(make())
        except (DataError, NotFoundError) as exc:
            left_out[name] = str(exc)
    judged = tuple(SuiteTask(family="memory", rule=rule, task=task) for task in tasks if (rule := _rule(task)))
    without = f"; left out: {', '.join(left_out)}" if left_out else ""
    suite = Suite(name="memory", version=1, about=f"what is remembered of the rows of {dataset.name!r}{without}", reserve=0.0, tasks=judged)
    return Memory(suite=suite, shown=tuple(task for task in tasks if not _rule(task)), left_out=left_out)


def _rule(task: Task) -> Rule | None:
    if task.name == ONCE:
        return Rule(at_most=MAX_MEAN_EXPOSURE)
    if task.name == RECITED:
        # a small dataset has no 299 rows: what can be shown of it is less, and is said to be less
        num = max(FEWEST_RECITED, len(task.samples))
        return Rule(never=max(MAX_RECITED, 1 - 0.05 ** (1 / num)))
    return Rule(at_most=MAX_AUC) if task.name == MEMBERSHIP else None


def _canaries(dataset: Dataset, name: str, *, once: bool) -> Task:
    task = make_canary_task(read_canaries(dataset), name=name, dataset_digest=dataset.digest, once=once)
    if not task.samples:
        raise DataError(f"dataset {dataset.name!r} has no canary that is told {'once' if once else 'more than once'}: ask for more of them")
    return task
