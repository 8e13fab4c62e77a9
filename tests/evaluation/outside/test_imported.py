"""Two runs of another harness are paired item by item, and nothing of either is lost."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.errors import DataError, LorimerError, UsageError
from lorimer.evaluation.outside.environment import python_of, run
from lorimer.evaluation.outside.imported import ImportedItem, ImportedTask, number_of, pair_imports


def item(key: str, value: float | None, **more: str) -> ImportedItem:
    return ImportedItem(key=key, prompt=more.get("prompt", f"what is {key}?"), target="", answer="so", scores={"acc": value})


def task(*items: ImportedItem, name: str = "arc", **conditions: str) -> ImportedTask:
    return ImportedTask(source="lm-eval", name=name, kind="choice", conditions=conditions, items=items)


def test_items_are_paired_by_key_whatever_their_order() -> None:
    (found,) = pair_imports([task(item("a", 1.0), item("b", 0.0))], [task(item("b", 1.0), item("a", 1.0))])
    assert (found.name, found.metric, found.family, found.kind) == ("arc:acc", "lm-eval.acc", "general", "choice")
    assert found.rule == {"not_worse_than": "base", "margin": 0.02}
    assert [(one.id, one.candidate.value, one.base.value) for one in found.items] == [("a", 1.0, 1.0), ("b", 0.0, 1.0)]


def test_what_one_run_has_not_is_unscored_there_and_not_left_out() -> None:
    (found,) = pair_imports([task(item("a", 1.0), item("c", None))], [task(item("a", 0.0), item("b", 1.0), item("c", 1.0))])
    assert {one.id: (one.candidate.value, one.base.value, one.is_scored) for one in found.items} == {
        "a": (1.0, 0.0, True),
        "b": (None, 1.0, False),
        "c": (None, 1.0, False),
    }
    assert {one.id: one.candidate.explanation for one in found.items}["b"] == "the candidate was not asked this"


@pytest.mark.parametrize(
    ("candidate", "baseline", "said"),
    [
        ([], [], "there are no tasks"),
        ([task(item("a", 1.0))], [], "task 'arc' is in one run only"),
        ([task(item("a", 1.0), num_shots="0")], [task(item("a", 1.0), num_shots="5")], "num_shots '0' and '5'"),
        ([task(item("a", 1.0))], [task(item("a", 1.0), seed="1")], "seed None and '1'"),
        ([task(item("a", 1.0), item("a", 0.0))], [task(item("a", 1.0))], "candidate's task 'arc' has 1 items more than once (a)"),
        ([task(item("a", 1.0))], [task(item("a", 1.0, prompt="other"))], "asks 1 items in other words (a)"),
        ([task(item("a", 1.0)), task(item("b", 1.0))], [task(item("a", 1.0))], "two results of task 'arc'"),
    ],
)
def test_runs_that_do_not_fit_are_refused(candidate: list[ImportedTask], baseline: list[ImportedTask], said: str) -> None:
    with pytest.raises(DataError) as caught:
        pair_imports(candidate, baseline)
    assert said in str(caught.value)


scores = st.dictionaries(st.integers(0, 9).map(str), st.sampled_from([None, 0.0, 0.5, 1.0]), min_size=1, max_size=10)


@settings(deadline=None)
@given(scores, scores)
def test_every_item_of_either_run_is_there_once(own: dict[str, float | None], base: dict[str, float | None]) -> None:
    results = pair_imports([task(*(item(k, v) for k, v in own.items()))], [task(*(item(k, v) for k, v in base.items()))])
    found = [one for result in results for one in result.items]
    assert {one.id: one.candidate.value for one in found} == {key: own.get(key) for key in {*own, *base}}
    assert {one.id: one.base.value for one in found} == {key: base.get(key) for key in {*own, *base}}
    assert len(found) == len({*own, *base})


@pytest.mark.parametrize(
    ("value", "number"), [(1, 1.0), (True, 1.0), (0.25, 0.25), (math.nan, None), (math.inf, None), ("1", None), (None, None), ([1], None)]
)
def test_only_finite_numbers_are_scores(value: object, number: float | None) -> None:
    assert number_of(value) == number


def test_an_environment_that_is_not_there_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORIMER_LM_EVAL", raising=False)
    with pytest.raises(UsageError, match=r"LORIMER_LM_EVAL is not set: make an environment .*pip install x==1"):
        python_of("LORIMER_LM_EVAL", "x==1")
    monkeypatch.setenv("LORIMER_LM_EVAL", "/nowhere/python")
    with pytest.raises(UsageError, match="cannot be run"):
        python_of("LORIMER_LM_EVAL", "x==1")


def test_a_process_ends_with_its_time_and_a_failure_has_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run(["/bin/sh", "-c", "echo $HF_HUB_OFFLINE $OWN"], log=log, environment={"OWN": "7"})
    assert log.read_text() == "1 7\n"
    assert not run(["/bin/sh", "-c", "sleep 60 & sleep 60"], log=log, environment={}, seconds=0.2)
    with pytest.raises(LorimerError, match=r"status 3: the end is near"):
        run(["/bin/sh", "-c", "echo the end is near; exit 3"], log=log, environment={})
