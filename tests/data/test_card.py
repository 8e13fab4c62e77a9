"""The card counts what it should, and its page shows strangers' text as text."""

import json
import re
from xml.etree import ElementTree

import pytest

from lorimer.data.card import build_card, describe_answers, describe_lengths, render_card
from lorimer.data.example import Example, Message
from lorimer.data.reading import RowProblem
from lorimer.data.rules import Finding
from lorimer.data.split import Splits
from lorimer.storage import canonical_json


def ask(prompt: str, answer: str, language: str | None = None, rejected: str | None = None) -> Example:
    messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    return Example(messages=messages, rejected=rejected, source="f:1", tags={"language": language} if language else {})


def card_of(train: tuple[Example, ...], **parts: object) -> dict[str, object]:
    given = {"curation": {}, "sources": [], "findings": [], "problems": [], **parts}
    return build_card("support", Splits(train=train, validation=(), test=()), **given)  # type: ignore[arg-type]


def test_card_counts_languages_and_lengths() -> None:
    card = card_of((ask("four", "yes", "de"), ask("sixsix", "no", "de"), ask("x", "no", "en"), ask("y", "no")))
    assert (card["languages"], card["num_without_language"]) == ({"de": 2, "en": 1}, 1)
    assert card["lengths"]["prompt"]["max"] == 6  # type: ignore[index]
    assert card["lengths"]["answer"]["median"] == 2  # type: ignore[index]


def test_card_shows_the_rejected_answers_of_pairs() -> None:
    card = card_of((ask("Q", "better", rejected="worse <b>"), ask("R", "only")))
    assert [card["lengths"][part]["max"] for part in ("prompt", "answer", "rejected")] == [1, 6, 9]  # type: ignore[index]
    assert [turn["role"] for turn in card["samples"][0]["turns"]] == ["user", "assistant", "rejected"]  # type: ignore[index]
    page = render_card(card, "0" * 64)
    assert '<div class="turn rejected"><span class="soft">rejected</span><pre>worse &lt;b&gt;</pre></div>' in page
    assert "rejected" not in card_of((ask("R", "only"),))["lengths"]  # type: ignore[operator]


def test_card_is_the_same_after_a_round_trip_through_json() -> None:
    finding = Finding(rule="leak", num_removed=1, message="m", examples=("f:1",))
    card = card_of((ask("Q", "A"),), findings=[finding], problems=[RowProblem(source="f:2", reason="r")])
    assert json.loads(canonical_json(card)) == card


@pytest.mark.parametrize("lengths", [[0], [1, 1], list(range(1_000)), [5] * 99 + [20_000], [3_000] * 10])
def test_histogram_counts_every_row_once(lengths: list[int]) -> None:
    described = describe_lengths(lengths)
    assert sum(each["count"] for each in described["bins"]) == len(lengths)
    assert len(described["bins"]) <= 16
    assert (described["min"], described["max"]) == (min(lengths), max(lengths))


def test_repeated_answers_are_counted() -> None:
    assert describe_answers(["a", "b", "b"] * 5) == [
        {"label": "answer", "num_distinct": 2, "num_values": 15, "top": [{"value": "b", "count": 10}, {"value": "a", "count": 5}]}
    ]


def test_answers_that_do_not_repeat_are_not_charted() -> None:
    assert describe_answers([f"answer {number}" for number in range(20)]) == []
    assert describe_answers([]) == []


def test_json_answers_are_counted_by_key() -> None:
    answers = [json.dumps({"queue": "billing" if number % 2 else "sales", "urgent": True, "id": number}) for number in range(20)]
    described = {each["label"]: each["num_distinct"] for each in describe_answers(answers)}
    assert described == {"queue": 2, "urgent": 1}


def test_rare_keys_are_not_charted() -> None:
    assert describe_answers([json.dumps({f"key {number}": 1}) for number in range(50)]) == []


@pytest.mark.parametrize("answer", ['{"a": "\\ud800"}', '{"a": NaN}', "{", "{}", '{"a": ' + "[" * 5_000])
def test_strange_answers_fit_into_the_card(answer: str) -> None:
    card = card_of((ask("Q", answer),))
    render_card(json.loads(canonical_json(card)), "0" * 64)


def test_page_shows_markup_in_rows_as_text() -> None:
    evil = "<script>alert(1)</script>\"'&"
    finding = Finding(rule="leak", num_removed=1, message=evil, examples=(evil,))
    problems = [RowProblem(source=evil, reason=evil)]
    page = render_card(card_of((ask(evil, evil, evil),), findings=[finding], problems=problems, curation={"system": evil}), "0" * 64)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8


def test_page_needs_nothing_else_and_its_charts_are_well_formed() -> None:
    page = render_card(card_of(tuple(ask("x" * number, "ab"[number % 2], "en") for number in range(1, 200))), "0" * 64)
    assert not re.findall(r"(?:src|href)=|url\(|@import", page)
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 5  # splits, languages, answers, two lengths
    for chart in charts:
        ElementTree.fromstring(chart)


def test_many_problems_are_counted_beyond_those_listed() -> None:
    problems = [RowProblem(source=f"f:{line}", reason="broken") for line in range(150)]
    card = card_of((ask("Q", "A"),), problems=problems)
    assert (card["num_problems"], len(card["problems"])) == (150, 100)  # type: ignore[arg-type]
    assert "and 50 more" in render_card(card, "0" * 64)


def test_long_rows_are_shortened_on_the_card() -> None:
    assert len(canonical_json(card_of((ask("x" * 20_000, "y" * 20_000),)))) < 5_000
