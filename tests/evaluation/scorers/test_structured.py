"""JSON answers against schemas and field by field."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.evaluation.scorers import structured
from lorimer.evaluation.scorers.structured import json_fields, json_schema
from lorimer.evaluation.task import Sample

TICKET = {
    "type": "object",
    "properties": {"queue": {"enum": ["billing", "sales"]}, "code": {"type": "string", "pattern": "^[A-Z]{2}$"}, "tags": {"type": "array"}},
    "required": ["queue"],
    "additionalProperties": False,
}


def against(schema: Any, target: str = "") -> Sample:
    return Sample(id="1", prompt=(), target=target, spec={"schema": schema})


@pytest.mark.parametrize(
    ("answer", "value", "explanation"),
    [
        ('{"queue": "sales", "code": "AB"}', 1, ""),
        ('{"queue": "support"}', 0, "$.queue: 'support' is not one of ['billing', 'sales']"),
        ('{"code": "AB"}', 0, "$: 'queue' is a required property"),
        ('{"queue": "sales", "code": "ab"}', 0, "$.code: 'ab' does not match '^[A-Z]{2}$'"),
        ('Sure: {"queue": "sales"}', 0, "is not one JSON value and nothing else"),
        ('{"queue": "sales", "queue": "sales"}', 0, "is not one JSON value and nothing else"),
        ("[" * 100_000, 0, "is not one JSON value and nothing else"),
        ("", 0, "is not one JSON value and nothing else"),
    ],
)
def test_json_schema_judges_the_whole_answer(answer: str, value: float, explanation: str) -> None:
    found = json_schema(answer, against(TICKET))
    assert (found.value, found.explanation) == (value, explanation)


def test_json_schema_names_the_first_violations_and_counts_the_rest() -> None:
    found = json_schema('[1, "a", 2, "b", "c", "d"]', against({"items": {"type": "integer"}, "minItems": 7}))
    assert found.explanation.startswith("$: [1, 'a', 2, 'b', 'c', 'd'] is too short; $[1]: 'a' is not of type 'integer'")
    assert found.explanation.endswith("; and 2 more")


@pytest.mark.parametrize(
    ("schema", "explanation"),
    [
        (None, "needs spec"),
        ({"type": "nonsense"}, "the schema is not valid"),
        ({"$ref": "https://example.org/schema.json"}, "refers to what is not in it"),
        ({"pattern": "("}, "the schema is not valid"),
    ],
)
def test_schema_that_cannot_judge_leaves_the_answer_unscored(schema: Any, explanation: str) -> None:
    found = json_schema('"text"', against(schema))
    assert found.value is None
    assert explanation in found.explanation


def test_pattern_of_a_schema_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured, "PATTERN_SECONDS", 0.05)
    found = json_schema(f'"{"a" * 60}!"', against({"pattern": r"^(a|a|aa|b?a)+$(?=x)|^(\w+\s?)*\d$"}))
    assert found.value is None
    assert "took more than" in found.explanation


@pytest.mark.parametrize(
    ("answer", "value", "explanation"),
    [
        ('{"queue": "billing", "priority": 2, "urgent": true}', 1, ""),
        ('{"queue": "billing", "priority": 2.0, "urgent": true, "more": 1}', 1, ""),
        ('{"queue": "sales", "priority": 2}', 1 / 3, "'queue' differs; 'urgent' is missing"),
        ("billing", 0, "is not one JSON object and nothing else"),
    ],
)
def test_json_fields_is_the_share_of_right_fields(answer: str, value: float, explanation: str) -> None:
    found = json_fields(answer, Sample(id="1", prompt=(), target='{"queue": "billing", "priority": 2, "urgent": true}'))
    assert (found.value, found.explanation) == (pytest.approx(value), explanation)


@pytest.mark.parametrize("target", ["{}", "[]", "text", ""])
def test_target_without_fields_leaves_the_answer_unscored(target: str) -> None:
    assert json_fields("{}", Sample(id="1", prompt=(), target=target)).value is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)


@settings(deadline=None)
@given(st.text())
def test_json_scorers_survive_any_answer(answer: str) -> None:
    assert json_schema(answer, against(TICKET)).value in (0, 1)
    assert json_fields(answer, Sample(id="1", prompt=(), target='{"a": 1}')).value in (0, 1)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.text(), JSON, min_size=1, max_size=4))
def test_target_as_the_answer_has_all_fields(value: dict[str, Any]) -> None:
    text = json.dumps(value)
    assert json_fields(text, Sample(id="1", prompt=(), target=text)).value == 1
    assert json_schema(text, against(True)).value == 1
