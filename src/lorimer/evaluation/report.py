"""What an evaluation found: an adapter beside its base on the same items. It asks no model and judges no gate."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from lorimer.data.example import Message
from lorimer.errors import DataError
from lorimer.evaluation.scorers.catalogue import field_accuracy, score
from lorimer.evaluation.statistics.proportions import Interval, PairedComparison, Proportion, compare_pairs, proportion_of
from lorimer.evaluation.task import Sample, Task
from lorimer.storage import digest_of

MAX_SLICES = 40  # values of one tag; with more it is an id, not a group


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemResult:
    """One item: what was asked, what was wanted, what the base and the adapter said."""

    id: str
    prompt: str
    target: str
    base_answer: str
    adapter_answer: str
    base_value: float | None
    adapter_value: float | None
    base_explanation: str = ""
    adapter_explanation: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def is_scored(self) -> bool:
        """Whether both answers could be judged; only such items count."""
        return self.base_value is not None and self.adapter_value is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Both scores on some of the items, or on one field of the answers."""

    name: str
    base: Proportion
    adapter: Proportion


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """An adapter beside its base on one task; every score follows from `items`."""

    adapter_name: str
    adapter_digest: str
    base_name: str
    base_digest: str
    dataset_name: str
    dataset_digest: str
    split: str
    task_digest: str
    metric: str
    num_items: int
    num_unscored: int
    """Items where one of the answers could not be judged; they are kept, but counted nowhere else."""
    adapter_score: Proportion
    base_score: Proportion
    comparison: PairedComparison
    tags: dict[str, tuple[Slice, ...]]
    """By tag (`language`), one slice for each of its values."""
    fields: tuple[Slice, ...]
    """For JSON answers: how often each field is right."""
    items: tuple[ItemResult, ...]
    seconds: float
    tokens_per_second: float | None
    created_at: str
    """UTC, ISO 8601."""

    @property
    def digest(self) -> str:
        """SHA-256 of the whole report."""
        return digest_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The JSON value that is kept; what is not a number (NaN) becomes null: missing, which no gate passes."""
        value: dict[str, Any] = _without_nan(asdict(self))
        return value


def build_report(
    task: Task,
    *,
    base_answers: Sequence[str | None],
    adapter_answers: Sequence[str | None],
    base_name: str,
    base_digest: str,
    adapter_name: str,
    adapter_digest: str,
    seconds: float,
    tokens_per_second: float | None = None,
) -> EvalReport:
    """Score both sets of answers (in the order of the task's samples; None where there is none) and compare them item by item."""
    items = tuple(
        _judge(task, sample, base, adapter) for sample, base, adapter in zip(task.samples, base_answers, adapter_answers, strict=True)
    )
    scored = [item for item in items if item.is_scored]
    return EvalReport(
        adapter_name=adapter_name,
        adapter_digest=adapter_digest,
        base_name=base_name,
        base_digest=base_digest,
        dataset_name=task.name,
        dataset_digest=task.dataset_digest,
        split=task.split,
        task_digest=task.digest,
        metric=task.metric,
        num_items=len(items),
        num_unscored=len(items) - len(scored),
        adapter_score=proportion_of(item.adapter_value == 1 for item in scored),
        base_score=proportion_of(item.base_value == 1 for item in scored),
        comparison=compare_items(items),
        tags=_slices_by_tag(scored),
        fields=_slices_by_field(scored) if task.metric == "exact_json" else (),
        items=items,
        seconds=seconds,
        tokens_per_second=tokens_per_second,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def compare_items(items: Sequence[ItemResult]) -> PairedComparison:
    """Adapter against base on the items where both are scored."""
    return compare_pairs((item.adapter_value == 1, item.base_value == 1) for item in items if item.is_scored)


def report_from_json(value: dict[str, Any]) -> EvalReport:
    """Read back what `EvalReport.to_json` wrote.

    Raises:
        DataError: if the value is not such a report.
    """
    try:
        return EvalReport(
            **{
                **value,
                "adapter_score": _proportion(value["adapter_score"]),
                "base_score": _proportion(value["base_score"]),
                "comparison": PairedComparison(**{**value["comparison"], "interval": Interval(**value["comparison"]["interval"])}),
                "tags": {tag: tuple(_slice(part) for part in slices) for tag, slices in value["tags"].items()},
                "fields": tuple(_slice(part) for part in value["fields"]),
                "items": tuple(ItemResult(**item) for item in value["items"]),
            }
        )
    except (AttributeError, KeyError, TypeError) as exc:
        raise DataError(f"this is not an evaluation report of this version of Lorimer ({exc}): evaluate the adapter again") from exc


def prompt_text(messages: Sequence[Message]) -> str:
    """A conversation as a person reads it; a lone question without its role."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


def _judge(task: Task, sample: Sample, base_answer: str | None, adapter_answer: str | None) -> ItemResult:
    base = score(task.metric, base_answer, sample)
    adapter = score(task.metric, adapter_answer, sample)
    for name, value in (("base", base.value), ("adapter", adapter.value)):
        assert value in (None, 0.0, 1.0), f"item {sample.id}: {name} scored {value}; paired proportions need right or wrong"
    return ItemResult(
        id=sample.id,
        prompt=prompt_text(sample.prompt),
        target=sample.target,
        base_answer=base.answer,
        adapter_answer=adapter.answer,
        base_value=base.value,
        adapter_value=adapter.value,
        base_explanation=base.explanation,
        adapter_explanation=adapter.explanation,
        tags=sample.tags,
    )


def _slices_by_tag(items: Sequence[ItemResult]) -> dict[str, tuple[Slice, ...]]:
    """One group of slices for each tag that sorts the items into a few kinds."""
    values: dict[str, set[str]] = {}
    for item in items:
        for tag, value in item.tags.items():
            values.setdefault(tag, set()).add(value)
    return {
        tag: tuple(_slice_of(value, [item for item in items if item.tags.get(tag) == value]) for value in sorted(found))
        for tag, found in sorted(values.items())
        if len(found) <= min(MAX_SLICES, max(1, len(items) // 2))
    }


def _slice_of(name: str, items: Sequence[ItemResult]) -> Slice:
    base = proportion_of(item.base_value == 1 for item in items)
    return Slice(name=name, base=base, adapter=proportion_of(item.adapter_value == 1 for item in items))


def _slices_by_field(items: Sequence[ItemResult]) -> tuple[Slice, ...]:
    targets = [item.target for item in items]
    base = field_accuracy([item.base_answer for item in items], targets)
    adapter = field_accuracy([item.adapter_answer for item in items], targets)
    return tuple(Slice(name=name, base=base[name], adapter=adapter[name]) for name in base)


def _proportion(value: dict[str, Any]) -> Proportion:
    return Proportion(**{**value, "interval": Interval(**value["interval"])})


def _slice(value: dict[str, Any]) -> Slice:
    return Slice(name=value["name"], base=_proportion(value["base"]), adapter=_proportion(value["adapter"]))


def _without_nan(value: Any) -> Any:
    """The same value with None for what JSON cannot say (NaN, infinity)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    return [_without_nan(part) for part in value] if isinstance(value, list | tuple) else value
