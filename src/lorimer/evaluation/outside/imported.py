"""What another harness found, in one shape: items with scores by metric, and the pairing of two runs item by item.

Every item of either run is in the result. What only one of them has, or could not score, is unscored there: never left out, never zero.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorimer.errors import DataError
from lorimer.evaluation.results import Family, ItemScores, TaskResult
from lorimer.evaluation.scorers.score import Score
from lorimer.evaluation.task import Kind
from lorimer.storage import digest_of

NOT_WORSE: Mapping[str, Any] = {"not_worse_than": "base", "margin": 0.02}
MAX_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedItem:
    """One question of another harness."""

    key: str
    """Equal in two runs where they asked the same."""
    prompt: str
    """Empty where it is not known."""
    target: str
    answer: str
    scores: Mapping[str, float | None]
    """By metric; None for unscored."""
    group: str = ""
    """Items that are not independent have one in common."""
    explanation: str = ""
    """Why it is unscored, or wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedTask:
    """One task of another harness's run."""

    source: str
    """Whose: `lm-eval`, `garak` or `inspect`."""
    name: str
    kind: Kind
    conditions: Mapping[str, str]
    """What has to be equal in two runs that are compared: the task's own digest or version, shots, chat template."""
    items: tuple[ImportedItem, ...]
    about: Mapping[str, str] = field(default_factory=dict)
    """What may differ: the model, versions of the harness."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """All that some item has a score of, in the order they came."""
        return tuple(dict.fromkeys(metric for item in self.items for metric in item.scores))


def pair_imports(
    candidate: Sequence[ImportedTask],
    baseline: Sequence[ImportedTask],
    *,
    family: Family = "general",
    rule: Mapping[str, Any] = NOT_WORSE,
) -> tuple[TaskResult, ...]:
    """Two runs as results, one for each task and metric: the baseline stands where a suite of ours has the base.

    Raises:
        DataError: if a task is in one of the runs only, was asked differently, or holds an item twice; all of it is named.
    """
    own, other = _by_name(candidate), _by_name(baseline)
    problems = [f"task {name!r} is in one run only" for name in sorted(own.keys() ^ other.keys())]
    for name in own.keys() & other.keys():
        problems += _find_differences(own[name], other[name])
    for which, tasks in (("candidate's", candidate), ("baseline's", baseline)):
        problems += [problem for task in tasks for problem in _find_repeated(which, task)]
    if not candidate:
        problems.append("there are no tasks")
    if problems:
        raise DataError(f"these runs cannot be paired: {'; '.join(sorted(problems))}: run both with the same tasks and settings")
    return tuple(
        TaskResult(
            name=f"{task.name}:{metric}",
            family=family,
            kind=task.kind,
            metric=f"{task.source}.{metric}",
            rule=dict(rule),
            task_digest=digest_of({"source": task.source, "task": task.name, "metric": metric, **task.conditions}),
            items=tuple(_pair(task, other[task.name], metric)),
        )
        for task in candidate
        for metric in dict.fromkeys((*task.metrics, *other[task.name].metrics))
    )


def number_of(value: Any) -> float | None:
    """A score as harnesses write it; None where it is no finite number."""
    if not isinstance(value, bool | int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _by_name(tasks: Sequence[ImportedTask]) -> dict[str, ImportedTask]:
    twice = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if twice:
        raise DataError(f"a run has two results of task {twice[0]!r}: read the folder of one run")
    return {task.name: task for task in tasks}


def _find_differences(own: ImportedTask, other: ImportedTask) -> list[str]:
    names = sorted({*own.conditions, *other.conditions})
    unlike = [name for name in names if own.conditions.get(name) != other.conditions.get(name)]
    prompts = {item.key: item.prompt for item in other.items}
    reworded = [item.key for item in own.items if item.prompt and prompts.get(item.key) and prompts[item.key] != item.prompt]
    return [
        *(f"task {own.name!r} was asked with {name} {own.conditions.get(name)!r} and {other.conditions.get(name)!r}" for name in unlike),
        *([f"task {own.name!r} asks {len(reworded)} items in other words ({', '.join(reworded[:MAX_SHOWN])})"] if reworded else []),
    ]


def _find_repeated(which: str, task: ImportedTask) -> list[str]:
    twice = [key for key, count in Counter(item.key for item in task.items).items() if count > 1]
    shown = ", ".join(twice[:MAX_SHOWN])
    return [f"the {which} task {task.name!r} has {len(twice)} items more than once ({shown})"] if twice else []


def _pair(task: ImportedTask, other: ImportedTask, metric: str) -> list[ItemScores]:
    own, base = {item.key: item for item in task.items}, {item.key: item for item in other.items}
    paired = []
    for key in dict.fromkeys((*own, *base)):
        item = own.get(key) or base[key]
        paired.append(
            ItemScores(
                id=key,
                group=item.group,
                tags={"source": task.source, "task": task.name},
                prompt=item.prompt,
                target=item.target,
                candidate=_score(own.get(key), metric, "the candidate was not asked this"),
                base=_score(base.get(key), metric, "the baseline was not asked this"),
                incumbent=None,
            )
        )
    return paired


def _score(item: ImportedItem | None, metric: str, absent: str) -> Score:
    if item is None:
        return Score(value=None, answer="", explanation=absent)
    value = item.scores.get(metric)
    return Score(value=value, answer=item.answer, explanation=item.explanation or ("" if value is not None else "it was not scored"))
