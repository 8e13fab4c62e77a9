"""Patterns, and patterns that would never end."""

from typing import Any

import pytest

from lorimer.evaluation.scorers import pattern
from lorimer.evaluation.scorers.pattern import matches_regex
from lorimer.evaluation.task import Sample


def asking(**spec: Any) -> Sample:
    return Sample(id="1", prompt=(), target="", spec=spec)


@pytest.mark.parametrize(
    ("answer", "spec", "value"),
    [
        ("Order AB-1234 is late", {"pattern": r"\b[A-Z]{2}-\d{4}\b"}, 1),
        ("Order AB-123 is late", {"pattern": r"\b[A-Z]{2}-\d{4}\b"}, 0),
        (" AB-1234\n", {"pattern": r"[A-Z]{2}-\d{4}", "match": "fullmatch"}, 1),
        ("Order AB-1234", {"pattern": r"[A-Z]{2}-\d{4}", "match": "fullmatch"}, 0),
        ("YES", {"pattern": "^yes$", "flags": "i"}, 1),
        ("one\ntwo", {"pattern": "one.two", "flags": "s"}, 1),
        ("one\ntwo", {"pattern": "^two", "flags": "m"}, 1),
        ("", {"pattern": "^$"}, 1),
        ("a", {"pattern": "(", "match": "search"}, None),
        ("a", {}, None),
        ("a", {"pattern": ""}, None),
    ],
)
def test_regex_is_right_where_it_matches(answer: str, spec: dict[str, Any], value: float | None) -> None:
    assert matches_regex(answer, asking(**spec)).value == value


def test_pattern_without_end_is_stopped_and_unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern, "TIMEOUT_SECONDS", 0.05)
    found = matches_regex("a" * 60 + "!", asking(pattern=r"^(a|a|aa|b?a)+$(?=x)|^(\w+\s?)*\d$"))
    assert found.value is None
    assert "took more than" in found.explanation


def test_all_that_is_wrong_with_a_spec_is_said_at_once() -> None:
    found = matches_regex("a", asking(pattern=3, flags="q", match="all"))
    assert found.value is None
    assert [word in found.explanation for word in ("pattern", "flags", "match")] == [True] * 3
