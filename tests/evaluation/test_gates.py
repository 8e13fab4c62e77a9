"""Gates: four verdicts, each for its reason, and no way past them with evidence that is broken."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.config import GateRecipe
from lorimer.data.example import Message
from lorimer.errors import GateFailedError, InconclusiveError, LorimerError
from lorimer.evaluation.gates import GateResult, check, gate_from_json, require_pass
from lorimer.evaluation.report import EvalReport, build_report
from lorimer.evaluation.statistics.proportions import FEWEST_TO_PASS
from lorimer.evaluation.task import Sample, Task


def gate(at_least: float | None = None, beats_base: bool = True, min_items: int = 1) -> GateRecipe:
    return GateRecipe(at_least=at_least, beats_base=beats_base, min_items=min_items)


def report(both: int = 0, won: int = 0, lost: int = 0, neither: int = 0, unscored: int = 0) -> EvalReport:
    outcomes = [("yes", "yes")] * both + [("yes", "no")] * won + [("no", "yes")] * lost + [("no", "no")] * neither
    answers: list[tuple[str | None, str]] = [*outcomes, *([(None, "no")] * unscored)]
    prompt = (Message(role="user", content="?"),)
    samples = tuple(Sample(id=str(n), prompt=prompt, target="yes") for n in range(len(answers)))
    return build_report(
        Task(name="helpdesk", metric="exact", samples=samples, dataset_digest="d" * 64),
        base_answers=[base for _, base in answers],
        adapter_answers=[adapter for adapter, _ in answers],
        base_name="gemma3-270m",
        base_digest="b" * 64,
        adapter_name="helpdesk",
        adapter_digest="a" * 64,
        seconds=1.0,
    )


@pytest.mark.parametrize(
    ("counts", "recipe", "verdict", "says"),
    [
        ({"won": 95, "neither": 5}, {"at_least": 0.85, "beats_base": False}, "PASS", "at least the 85.0% asked for"),
        ({"won": 50, "neither": 50}, {"at_least": 0.85, "beats_base": False}, "FAIL", "less than the 85.0% asked for"),
        ({"won": 90, "neither": 10}, {"at_least": 0.85, "beats_base": False}, "INCONCLUSIVE", "lies within the interval"),
        ({"both": 50, "won": 30, "neither": 20}, {}, "PASS", "better beyond chance"),
        ({"both": 50, "lost": 30, "neither": 20}, {}, "FAIL", "worse than the base"),
        ({"both": 50, "won": 3, "lost": 2}, {}, "INCONCLUSIVE", "no difference beyond chance"),
        ({"both": 100}, {}, "INCONCLUSIVE", "no difference beyond chance"),
        ({"won": 50, "neither": 50}, {"at_least": 0.85}, "FAIL", "asked for"),  # one PASS, one FAIL
        ({"won": 90, "neither": 10}, {"at_least": 0.85}, "INCONCLUSIVE", "within the interval"),  # one PASS, one open
        ({"lost": 90, "both": 10}, {"at_least": 0.1}, "FAIL", "worse than the base"),  # one open, one FAIL
        ({"won": 24}, {}, "INCONCLUSIVE", "Nothing passes by fewer than 25 items: 1 more are needed."),
        ({"won": 4}, {"at_least": 0.3, "beats_base": False}, "INCONCLUSIVE", "too few to pass by. Nothing passes"),
        ({"won": 25}, {"at_least": 0.5}, "PASS", "better beyond chance"),
        ({"lost": 12}, {}, "FAIL", "worse than the base"),
    ],
)
def test_gate_reads_its_verdict_from_the_intervals(counts: dict[str, int], recipe: dict[str, Any], verdict: str, says: str) -> None:
    result = check(report(**counts), gate(**recipe))
    assert result.verdict == verdict
    assert says in result.sentence


@pytest.mark.parametrize(
    ("counts", "recipe", "remedy"),
    [
        ({"won": 90, "neither": 10}, {"at_least": 0.85}, "About 196 items would settle it at the observed rate: 96 more."),
        ({"won": 90, "neither": 10}, {"at_least": 0.9}, "At the observed rate no number of items would settle it."),
        ({"both": 95, "won": 3, "lost": 2}, {}, "About 1921 items would settle it at the observed rate: 1821 more."),
        ({"both": 100}, {}, "At the observed rate no number of items would settle it."),
    ],
)
def test_gate_says_how_many_items_would_settle_it(counts: dict[str, int], recipe: dict[str, Any], remedy: str) -> None:
    result = check(report(**counts), gate(**recipe))
    assert remedy in [one.remedy for one in result.checks if one.verdict == "INCONCLUSIVE"]


GOOD = report(both=10, won=80, neither=10)


@pytest.mark.parametrize(
    ("evidence", "recipe", "name"),
    [
        (GOOD, gate(beats_base=False), "checks"),
        (GOOD, gate(min_items=101), "min_items"),
        (report(), gate(), "metric"),
        (report(won=100, unscored=6), gate(), "unscored"),
        (replace(GOOD, adapter_digest="b" * 64), gate(), "digests"),
        (replace(GOOD, base_digest=""), gate(), "digests"),
        (replace(GOOD, metric="vibes"), gate(), "metric"),  # type: ignore[arg-type]
        (replace(GOOD, comparison=replace(GOOD.comparison, difference=math.nan)), gate(), "metric"),
        (replace(GOOD, comparison=replace(GOOD.comparison, interval=replace(GOOD.comparison.interval, low=None))), gate(), "metric"),  # type: ignore[arg-type]
        (replace(GOOD, comparison=report(won=100).comparison), gate(), "items"),
        (replace(GOOD, adapter_score=report(won=100).adapter_score), gate(), "items"),
        (replace(GOOD, num_items=99), gate(), "items"),
        (replace(GOOD, items=GOOD.items[:99]), gate(), "items"),
        (replace(GOOD, items=(replace(GOOD.items[0], adapter_value=0.5), *GOOD.items[1:])), gate(), "items"),
        (replace(GOOD, items=(replace(GOOD.items[0], id="1"), *GOOD.items[1:])), gate(), "items"),
    ],
)
def test_gate_fails_closed_on_broken_evidence(evidence: EvalReport, recipe: GateRecipe, name: str) -> None:
    result = check(evidence, recipe)
    assert result.verdict == "ERROR"
    assert name in [one.name for one in result.checks]
    with pytest.raises(GateFailedError, match="could not be evaluated"):
        require_pass(result)


def test_gate_allows_a_few_unscored_items() -> None:
    assert check(report(won=100, unscored=5), gate()).verdict == "PASS"


def test_gate_names_every_fault_at_once() -> None:
    result = check(replace(report(won=2), adapter_digest="b" * 64), gate(min_items=30))
    assert [one.name for one in result.checks] == ["digests", "min_items"]
    assert "Add 28 or more items" in result.sentence


@pytest.mark.parametrize(
    ("counts", "error", "exit_code"),
    [({"lost": 60}, GateFailedError, 3), ({"both": 60}, InconclusiveError, 5)],
)
def test_require_pass_stops_with_the_reason(counts: dict[str, int], error: type[LorimerError], exit_code: int) -> None:
    with pytest.raises(error, match="against the base on the same 60 items") as caught:
        require_pass(check(report(**counts), gate()))
    assert caught.value.exit_code == exit_code


def test_require_pass_lets_a_passed_gate_through() -> None:
    require_pass(check(GOOD, gate(at_least=0.8)))


def test_gate_result_holds_digests_and_survives_json() -> None:
    result = check(GOOD, gate(at_least=0.8))
    assert (result.report_digest, result.candidate_digest, result.base_digest) == (GOOD.digest, "a" * 64, "b" * 64)
    again = gate_from_json(result.to_json())
    assert isinstance(again, GateResult)
    assert (again, again.digest) == (result, result.digest)
    assert replace(result, verdict="FAIL").digest != result.digest


counts = st.fixed_dictionaries({name: st.integers(0, 40) for name in ("both", "won", "lost", "neither", "unscored")})


@settings(deadline=None)
@given(counts, st.one_of(st.none(), st.floats(0, 1)), st.booleans(), st.integers(1, 60))
def test_gate_passes_only_what_its_intervals_show(counts: dict[str, int], at_least: float | None, beats_base: bool, min_items: int) -> None:
    evidence = report(**counts)
    result = check(evidence, GateRecipe(at_least=at_least, beats_base=beats_base, min_items=min_items))
    assert result.checks
    if result.verdict == "PASS":
        assert at_least is not None or beats_base
        assert at_least is None or evidence.adapter_score.interval.low >= at_least
        assert not beats_base or evidence.comparison.interval.low > 0
        assert evidence.num_items - evidence.num_unscored >= max(min_items, FEWEST_TO_PASS)
