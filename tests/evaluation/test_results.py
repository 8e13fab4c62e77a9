"""What a suite found: kept as JSON, read back the same, and refused if it is anything else."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.errors import DataError
from lorimer.evaluation.results import ItemScores, SuiteReport, TaskResult, suite_report_from_json
from lorimer.evaluation.scorers.score import Score


def item(candidate: float | None = 1.0, base: float | None = 0.0, incumbent: Score | None = None, answer: str = "cards") -> ItemScores:
    return ItemScores(
        id="i1",
        group="",
        tags={"language": "en"},
        prompt="Where is my card?",
        target="cards",
        candidate=Score(value=candidate, answer=answer),
        base=Score(value=base, answer="loans", explanation="is not the label 'cards'"),
        incumbent=incumbent,
    )


def report(*items: ItemScores, **changes: Any) -> SuiteReport:
    task = TaskResult(
        name="intent",
        family="domain",
        kind="answer",
        metric="label",
        rule={"better_than": "base"},
        task_digest="t" * 64,
        items=items,
    )
    own: dict[str, Any] = {
        "suite": "helpdesk",
        "version": 1,
        "suite_digest": "s" * 64,
        "candidate_name": "helpdesk:2",
        "candidate_digest": "c" * 64,
        "base_name": "gemma3-270m",
        "base_digest": "b" * 64,
        "incumbent_name": None,
        "incumbent_digest": None,
        "tasks": (task,),
        "num_tokens": 1200,
        "seconds": 3.5,
        "created_at": "2026-11-22T15:00:00+00:00",
    }
    return SuiteReport(**{**own, **changes})


UNSCORED = Score(value=None, answer="", explanation="no answer was given")
RIGHT = Score(value=1.0, answer="cards")


@pytest.mark.parametrize(
    ("candidate", "base", "incumbent", "is_scored"),
    [
        (1.0, 0.0, None, True),
        (0.0, 0.0, RIGHT, True),
        (None, 1.0, None, False),
        (1.0, None, None, False),
        (1.0, 1.0, UNSCORED, False),
        (math.nan, 1.0, None, False),
        (1.0, math.inf, None, False),
    ],
)
def test_an_item_counts_only_if_every_answer_there_is_was_judged(
    candidate: float | None, base: float | None, incumbent: Score | None, is_scored: bool
) -> None:
    assert item(candidate, base, incumbent).is_scored is is_scored


@pytest.mark.parametrize("made", [report(), report(item(), item(None, 0.5, RIGHT)), report(item(), incumbent_name="helpdesk:1")])
def test_a_report_is_read_back_the_same(made: SuiteReport) -> None:
    again = suite_report_from_json(json.loads(json.dumps(made.to_json(), allow_nan=False)))
    assert again == made
    assert again.digest == made.digest


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_missing(value: float) -> None:
    made = report(item(value), seconds=value)
    assert made.to_json()["tasks"][0]["items"][0]["candidate"]["value"] is None
    assert made.to_json()["seconds"] is None
    again = suite_report_from_json(made.to_json())
    assert not again.tasks[0].items[0].is_scored
    assert again.digest == made.digest


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"candidate_digest": "d" * 64},
        {"incumbent_name": "helpdesk:1"},
        {"seconds": 3.6},
        {"tasks": report(item(0.0)).tasks},
    ],
)
def test_a_digest_follows_everything(change: dict[str, Any]) -> None:
    assert report(item(), **change).digest != report(item()).digest


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_categories=())))  # half characters (surrogates) too: some engines decode bytes badly
def test_any_answer_can_be_kept(answer: str) -> None:
    made = report(item(answer=answer))
    again = suite_report_from_json(json.loads(json.dumps(made.to_json())))
    assert again.digest == made.digest
    if answer.isprintable():
        assert again.tasks[0].items[0].candidate.answer == answer


def change(path: str, value: Any) -> Callable[[Any], None]:
    """Set one part of a JSON value, `tasks.0.name`."""

    def apply(whole: Any) -> None:
        *parts, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in parts:
            whole = whole[part]
        whole[last] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (change("tasks.0.items.0.candidate.value", "1.0"), "item 1 of task 1: a score is '1.0', not a number or null"),
        (change("tasks.0.items.0.base.value", True), "a score is True"),
        (change("tasks.0.items.0.base.value", math.nan), "a score is nan"),
        (change("tasks.0.items.1.candidate.answer", None), "item 2 of task 1: `answer` is None, not text"),
        (change("tasks.0.items.0.extra", 1), "item 1 of task 1: "),
        (change("tasks.0.items.0.tags", ["en"]), "its tags are not an object of texts"),
        (change("tasks.0.items.0.id", 7), "`id` is 7, not text"),
        (change("tasks.0.items.0", None), "item 1 of task 1"),
        (change("tasks.0.family", "style"), "task 1: its family is 'style', not one of domain, general, safety, fidelity, memory"),
        (change("tasks.0.kind", "song"), "its kind is 'song', not one of answer, choice, text"),
        (change("tasks.0.rule", None), "its rule is not an object"),
        (change("tasks", None), "the report: "),
        (change("version", "1"), "`version` and `num_tokens` are whole numbers"),
        (change("base_digest", None), "`base_digest` is None, not text"),
        (change("incumbent_name", 3), "`incumbent_name` is text or null"),
        (change("unknown", 3), "unknown"),
    ],
)
def test_a_damaged_report_is_refused(damage: Callable[[Any], None], says: str) -> None:
    value = copy.deepcopy(report(item(), item()).to_json())
    damage(value)
    with pytest.raises(DataError, match="not a suite report of this version of Lorimer") as caught:
        suite_report_from_json(value)
    assert says in str(caught.value)


@pytest.mark.parametrize("value", [None, [], 3, "report", {}, {"tasks": []}])
def test_anything_else_is_no_report(value: Any) -> None:
    with pytest.raises(DataError, match="evaluate the adapter on the suite again"):
        suite_report_from_json(value)
