"""A voice as a task of a suite: answers together beside the approved ones."""

from pathlib import Path

import pytest

from lorimer.errors import DataError
from lorimer.evaluation.checks import check_task
from lorimer.evaluation.results import SEALED, ItemScores, TaskResult
from lorimer.evaluation.scorers.score import Score
from lorimer.evaluation.suite import read_suite

OPENINGS = ("Thank you for writing.", "We are glad you asked.", "Good that you came to us.", "Thanks a lot for your patience.")
MIDDLES = (
    "Your parcel left our house on Monday",
    "The invoice was sent again today",
    "Our colleague looks into the refund",
    "The lamp is in stock",
)
ENDS = (
    "and should be with you soon.",
    "and we will write when there is news.",
    "so please bear with us a little.",
    "as we had promised you.",
)


def polite(n: int) -> str:
    return f"{OPENINGS[n % 4]} {MIDDLES[n // 4 % 4]}, {ENDS[n // 16 % 4]}"


def rude(n: int) -> str:
    return f"NO!!! read ur mail #{n % 7} lol, {('nope', 'whatever', 'dunno')[n % 3]}... not my prob"


def task(answers: list[str], *, at_most: float, sealed: int = 0) -> TaskResult:
    said = [(SEALED if n < sealed else "?", polite(5 * n + 3), Score(value=1.0, answer=answer)) for n, answer in enumerate(answers)]
    shared = {"group": "", "tags": {}, "base": Score(value=1.0, answer="so"), "incumbent": None}
    items = tuple(
        ItemScores(id=str(n), prompt=prompt, target=target, candidate=own, **shared)  # type: ignore[arg-type]
        for n, (prompt, target, own) in enumerate(said)
    )
    return TaskResult(
        name="brand", family="fidelity", kind="answer", metric="voice", rule={"at_most": at_most}, task_digest="d", items=items
    )


@pytest.mark.parametrize(
    ("answers", "at_most", "wanted"),
    [
        ([polite(n) for n in range(120)], 0.1, "PASS"),
        ([rude(n) for n in range(120)], 0.1, "FAIL"),
        ([polite(n) for n in range(12)], 0.05, "INCONCLUSIVE"),
        ([polite(n) for n in range(5)], 0.1, "ERROR"),
        ([""] * 120, 0.1, "ERROR"),
    ],
)
def test_answers_are_held_to_the_approved_ones(answers: list[str], at_most: float, wanted: str) -> None:
    found = check_task(task(answers, at_most=at_most), has_incumbent=False)
    assert found.verdict == wanted, found.reason
    assert bool(found.remedy) == (wanted != "PASS")


def test_sealed_answers_have_no_voice() -> None:
    answers = ["(sealed)"] * 60 + [polite(n) for n in range(60, 180)]
    assert check_task(task(answers, at_most=0.1, sealed=60), has_incumbent=False).verdict == "PASS"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("metric: voice, rule: {not_worse_than: base}", "held to `at_most`"),
        ("metric: judge, rule: {better_than: base}", "go together"),
        ("metric: exact, judge: j.yaml, rule: {better_than: base}", "go together"),
        ("metric: judge, judge: j.yaml, rule: {better_than: incumbent}", "a judge of pairs"),
        ("metric: judge, judge: none.yaml, rule: {better_than: base}", "none.yaml"),
    ],
)
def test_tasks_of_their_own_kind_say_what_they_need(tmp_path: Path, keys: str, said: str) -> None:
    (tmp_path / "items.jsonl").write_text('{"prompt": "a", "target": "b"}\n')
    (tmp_path / "j.yaml").write_text(
        "judge: j\nendpoint: http://127.0.0.1:9/v1\nmodel: m\nkind: pair\nprompt: '{question} {answer_a} {answer_b}'\n"
    )
    (tmp_path / "s.yaml").write_text(f"suite: s\nversion: 1\ntasks:\n  - {{name: t, family: fidelity, data: items.jsonl, {keys}}}\n")
    with pytest.raises(Exception, match=said) as caught:
        read_suite(tmp_path / "s.yaml")
    assert isinstance(caught.value, DataError) or type(caught.value).__name__ == "ConfigError"
