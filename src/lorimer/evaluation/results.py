"""What a suite found: candidate, base and incumbent on the same items, with every answer. It asks no model and judges nothing."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from lorimer.errors import DataError
from lorimer.evaluation.scorers.score import Score
from lorimer.evaluation.task import Kind
from lorimer.storage import digest_of

Family = Literal["domain", "general", "safety", "fidelity", "memory"]
SEALED = "(sealed)"
"""Stands for the words of items that only a promotion asks."""
Unit = Literal["share", "nats", "bits"]
UNITS: dict[str, Unit] = {"perplexity": "nats", "divergence": "nats", "membership": "nats", "exposure": "bits"}
"""What items are counted in, by metric, where that is no share of right answers; of all of these less is better."""
FAMILIES: tuple[Family, ...] = get_args(Family)
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemScores:
    """One item: what was asked, what was wanted, and what each of the two or three answered."""

    id: str
    group: str
    """Items that are not independent have one in common; empty for an item of its own."""
    tags: dict[str, str]
    prompt: str
    target: str
    candidate: Score
    base: Score
    incumbent: Score | None
    """None where there is no incumbent; an incumbent without an answer is a Score without a value."""

    @property
    def is_scored(self) -> bool:
        """Whether every answer there is could be judged (NaN is no judgement): only such items count in a comparison."""
        scores = [score for score in (self.candidate, self.base, self.incumbent) if score is not None]
        return all(score.value is not None and math.isfinite(score.value) for score in scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """One task of the suite; every figure about it follows from `items`."""

    name: str
    family: Family
    kind: Kind
    metric: str
    rule: dict[str, Any]
    """As the suite has it: `{"not_worse_than": "base", "margin": 0.02}`."""
    task_digest: str
    items: tuple[ItemScores, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteReport:
    """A candidate beside its base and the incumbent on one version of one suite."""

    suite: str
    version: int
    suite_digest: str
    candidate_name: str
    candidate_digest: str
    base_name: str
    base_digest: str
    incumbent_name: str | None
    incumbent_digest: str | None
    tasks: tuple[TaskResult, ...]
    num_tokens: int
    """Generated or scored now, of all of them together."""
    seconds: float
    created_at: str
    """UTC, ISO 8601."""

    @property
    def digest(self) -> str:
        """SHA-256 of the whole report."""
        return digest_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The JSON value that is kept; what is not a number (NaN, infinity) becomes null: missing, which no gate passes."""
        value: dict[str, Any] = _storable(asdict(self))
        return value


def unit_of(metric: str) -> Unit:
    """What an item's score is counted in."""
    return UNITS.get(metric, "share")


def suite_report_from_json(value: Any) -> SuiteReport:
    """Read back what `SuiteReport.to_json` wrote.

    Raises:
        DataError: if the value is not such a report; it names the first part that is not.
    """
    where = "the report"
    try:
        tasks = []
        for place, task in enumerate(value["tasks"], 1):
            items = []
            for number, item in enumerate(task["items"], 1):
                where = f"item {number} of task {place}"
                items.append(_item(item))
            where = f"task {place}"
            tasks.append(TaskResult(**{**task, "items": tuple(items)}))
            _require(tasks[-1].family in FAMILIES, f"its family is {tasks[-1].family!r}, not one of {', '.join(FAMILIES)}")
            _require(tasks[-1].kind in KINDS, f"its kind is {tasks[-1].kind!r}, not one of {', '.join(KINDS)}")
            _require(isinstance(tasks[-1].rule, dict), "its rule is not an object")
            _require_text(tasks[-1], "name", "metric", "task_digest")
        where = "the report"
        report = SuiteReport(**{**value, "tasks": tuple(tasks)})
        _require_text(report, "suite", "suite_digest", "candidate_name", "candidate_digest", "base_name", "base_digest", "created_at")
        _require(isinstance(report.version, int) and isinstance(report.num_tokens, int), "`version` and `num_tokens` are whole numbers")
        _require(report.incumbent_name is None or isinstance(report.incumbent_name, str), "`incumbent_name` is text or null")
        _require(report.incumbent_digest is None or isinstance(report.incumbent_digest, str), "`incumbent_digest` is text or null")
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise DataError(
            f"this is not a suite report of this version of Lorimer ({where}: {exc}): evaluate the adapter on the suite again"
        ) from exc
    return report


def _item(value: dict[str, Any]) -> ItemScores:
    incumbent = value["incumbent"]
    item = ItemScores(
        **{
            **value,
            "candidate": _score(value["candidate"]),
            "base": _score(value["base"]),
            "incumbent": None if incumbent is None else _score(incumbent),
        }
    )
    _require_text(item, "id", "group", "prompt", "target")
    tags = item.tags
    _require(isinstance(tags, dict) and all(isinstance(tag, str) for tag in tags.values()), "its tags are not an object of texts")
    return item


def _score(value: dict[str, Any]) -> Score:
    score = Score(**value)
    _require_text(score, "answer", "explanation")
    is_number = isinstance(score.value, int | float) and not isinstance(score.value, bool) and math.isfinite(score.value)
    _require(score.value is None or is_number, f"a score is {score.value!r}, not a number or null")
    return score


def _require_text(record: Any, *names: str) -> None:
    for name in names:
        _require(isinstance(getattr(record, name), str), f"`{name}` is {getattr(record, name)!r:.40}, not text")


def _require(is_so: bool, sentence: str) -> None:
    if not is_so:
        raise ValueError(sentence)


def _storable(value: Any) -> Any:
    """The same value as JSON and UTF-8 can say it: null for NaN and infinity, `\\ud800` spelled out for half a character."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_storable(key): _storable(part) for key, part in value.items()}
    return [_storable(part) for part in value] if isinstance(value, list | tuple) else value
