"""Reports: every number follows from the items, and survives its JSON form."""

import json
from dataclasses import replace

import pytest

from lorimer.config import Metric
from lorimer.data.example import Message
from lorimer.errors import DataError
from lorimer.evaluation.report import EvalReport, build_report, prompt_text, report_from_json
from lorimer.evaluation.task import Sample, Task


def report(
    base: list[str | None],
    adapter: list[str | None],
    targets: list[str],
    metric: Metric = "exact",
    tags: list[dict[str, str]] | None = None,
) -> EvalReport:
    samples = tuple(
        Sample(id=f"item{n}", prompt=(Message(role="user", content=f"question {n}"),), target=target, tags=tags[n] if tags else {})
        for n, target in enumerate(targets)
    )
    return build_report(
        Task(name="helpdesk", metric=metric, samples=samples, dataset_digest="d" * 64),
        base_answers=base,
        adapter_answers=adapter,
        base_name="gemma3-270m",
        base_digest="b" * 64,
        adapter_name="helpdesk",
        adapter_digest="a" * 64,
        seconds=2.0,
        tokens_per_second=40.0,
    )


def test_report_compares_on_the_same_items() -> None:
    found = report(base=["x", "1", "x", "3"], adapter=["0", "1", "y", "x"], targets=["0", "1", "2", "3"])
    assert (found.adapter_score.num_correct, found.base_score.num_correct, found.num_items) == (2, 2, 4)
    pair = found.comparison
    assert (pair.num_both, pair.num_only_candidate, pair.num_only_baseline, pair.num_neither) == (1, 1, 1, 1)
    assert found.items[0].adapter_value == 1
    assert found.items[0].base_explanation == "differs from the wanted text"


def test_report_keeps_unscored_items_and_counts_them_nowhere_else() -> None:
    found = report(base=["0", None, "x"], adapter=["0", "1", None], targets=["0", "1", "2"])
    assert (found.num_items, found.num_unscored, len(found.items)) == (3, 2, 3)
    assert (found.adapter_score.num_items, found.base_score.num_items, found.comparison.num_items) == (1, 1, 1)


def test_report_breaks_scores_down_by_tag() -> None:
    tags = [{"language": "de", "id": str(n)} for n in range(3)] + [{"language": "en", "id": "9"}]
    found = report(base=["x"] * 4, adapter=["0", "1", "x", "3"], targets=["0", "1", "2", "3"], tags=tags)
    (german, english) = found.tags["language"]
    assert (german.name, german.adapter.num_correct, german.adapter.num_items, german.base.num_correct) == ("de", 2, 3, 0)
    assert (english.name, english.adapter.num_correct, english.adapter.num_items) == ("en", 1, 1)
    assert "id" not in found.tags  # a value for every item sorts nothing


def test_report_breaks_json_answers_down_by_field() -> None:
    targets = ['{"queue": "a", "language": "en"}', '{"queue": "b", "language": "de"}']
    found = report(base=["", ""], adapter=[targets[0], '{"queue": "c", "language": "de"}'], targets=targets, metric="exact_json")
    shares = {part.name: (part.base.num_correct, part.adapter.num_correct, part.adapter.num_items) for part in found.fields}
    assert shares == {"queue": (0, 1, 2), "language": (0, 2, 2)}


def test_report_needs_an_answer_for_every_sample() -> None:
    with pytest.raises(ValueError, match="zip"):
        report(base=["0"], adapter=["0", "1"], targets=["0", "1"])


def test_report_survives_json_with_its_digest() -> None:
    found = report(base=["x", None], adapter=["0", "1"], targets=["0", "1"], tags=[{"language": "en"}] * 2)
    again = report_from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    assert again.digest == found.digest
    assert replace(found, adapter_digest="c" * 64).digest != found.digest


@pytest.mark.parametrize("value", [{}, {"adapter_score": None}, {"adapter_name": "x", "surprise": 1}])
def test_report_refuses_json_of_another_shape(value: dict[str, object]) -> None:
    with pytest.raises(DataError, match="not an evaluation report"):
        report_from_json(value)


def test_prompt_text_names_roles_only_where_there_are_several() -> None:
    question = Message(role="user", content="Where is my card?")
    assert prompt_text([question]) == "Where is my card?"
    assert prompt_text([Message(role="system", content="Be brief."), question]) == "system: Be brief.\n\nuser: Where is my card?"
