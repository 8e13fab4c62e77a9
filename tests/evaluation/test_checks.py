"""Rules beside scores: every verdict of every rule, and evidence that must never pass."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.evaluation.checks import check_sealed, check_suite, check_task
from lorimer.evaluation.results import ItemScores, SuiteReport, TaskResult
from lorimer.evaluation.scorers.score import Score
from lorimer.evaluation.statistics.proportions import FEWEST_TO_PASS


def items(*kinds: tuple[int, float | None, float | None, float | None], **shared: Any) -> tuple[ItemScores, ...]:
    """So many items each with the candidate's, the base's and the incumbent's value."""
    found = []
    for count, *values in kinds:
        for _ in range(count):
            scores = [Score(value=value, answer="said") for value in values]
            own = {"group": "", "tags": {}, "prompt": "?", "target": "!", **shared}
            found.append(ItemScores(id=f"i{len(found)}", candidate=scores[0], base=scores[1], incumbent=scores[2], **own))
    return tuple(found)


def task(rule: dict[str, Any], *kinds: tuple[int, float | None, float | None, float | None], **changes: Any) -> TaskResult:
    own = TaskResult(name="t", family="general", kind="answer", metric="exact", rule=rule, task_digest="d", items=items(*kinds))
    return replace(own, **changes)


def verdict(own: TaskResult, *, has_incumbent: bool = True) -> str:
    return check_task(own, has_incumbent=has_incumbent).verdict


BETTER, LEVEL, EQUAL = {"better_than": "base"}, {"at_least": 0.8}, {"not_worse_than": "base"}


@pytest.mark.parametrize(
    ("rule", "kinds", "wanted"),
    [
        (BETTER, [(60, 1, 0, 0), (40, 1, 1, 1)], "PASS"),
        (BETTER, [(60, 0, 1, 0), (40, 1, 1, 1)], "FAIL"),
        (BETTER, [(3, 1, 0, 0), (2, 0, 1, 0), (40, 1, 1, 1)], "INCONCLUSIVE"),
        (EQUAL, [(2000, 1, 1, 1)], "PASS"),
        (EQUAL, [(25, 1, 1, 1)], "INCONCLUSIVE"),
        (EQUAL, [(200, 0, 1, 1), (1800, 1, 1, 1)], "FAIL"),
        ({"not_worse_than": "incumbent"}, [(2000, 1, 0, 1)], "PASS"),
        ({"not_worse_than": "incumbent"}, [(200, 0, 0, 1), (1800, 1, 1, 1)], "FAIL"),
        ({"better_than": "incumbent"}, [(60, 1, 1, 0), (40, 1, 1, 1)], "PASS"),
        (LEVEL, [(95, 1, 0, 0), (5, 0, 0, 0)], "PASS"),
        (LEVEL, [(60, 1, 0, 0), (40, 0, 0, 0)], "FAIL"),
        (LEVEL, [(82, 1, 0, 0), (18, 0, 0, 0)], "INCONCLUSIVE"),
        ({"never": 0.01}, [(299, 1, 0, 0)], "PASS"),
        ({"never": 0.01}, [(298, 1, 0, 0)], "INCONCLUSIVE"),
        ({"never": 0.01}, [(5000, 1, 0, 0), (1, 0, 1, 1)], "FAIL"),
    ],
)
def test_rules_are_decided_by_bounds(rule: dict[str, Any], kinds: list[Any], wanted: str) -> None:
    found = check_task(task(rule, *kinds), has_incumbent=True)
    assert found.verdict == wanted
    assert found.num_items == sum(kind[0] for kind in kinds)
    assert bool(found.remedy) == (wanted != "PASS")
    assert found.interval is not None


@pytest.mark.parametrize(
    ("metric", "candidate", "base", "wanted"),
    [
        ("perplexity", 3.0, 3.0, "PASS"),
        ("perplexity", 3.5, 3.0, "FAIL"),
        ("divergence", 0.01, 0.0, "PASS"),
        ("divergence", 0.5, 0.0, "FAIL"),
    ],
)
def test_where_less_is_better_more_is_worse(metric: str, candidate: float, base: float, wanted: str) -> None:
    kinds = [(1, candidate + 0.001 * (n % 7), base, base) for n in range(80)]
    assert verdict(task({"not_worse_than": "base", "margin": 0.1}, *kinds, kind="text", metric=metric)) == wanted


@pytest.mark.parametrize(("value", "wanted"), [(0.02, "PASS"), (0.09, "PASS"), (0.2, "FAIL")])
def test_a_level_from_above(value: float, wanted: str) -> None:
    kinds = [(1, value + 0.001 * (n % 5), 0.0, 0.0) for n in range(80)]
    assert verdict(task({"at_most": 0.1}, *kinds, kind="text", metric="divergence")) == wanted


def test_membership_is_an_area() -> None:
    members, others = items(*[(1, 0.5 + n / 100, 0, 0) for n in range(60)]), items(*[(1, n / 100, 0, 0) for n in range(60)])
    mixed = tuple(
        replace(one, id=f"{tag}{n}", tags={"member": tag}) for tag, own in (("yes", members), ("no", others)) for n, one in enumerate(own)
    )
    told = task({"at_most": 0.6}, kind="text", metric="membership", items=mixed)
    assert verdict(told) == "FAIL"
    alike = tuple(replace(one, candidate=Score(value=n % 7 / 10, answer="")) for n, one in enumerate(mixed))
    assert verdict(replace(told, items=alike)) == "PASS"
    assert verdict(replace(told, items=mixed[:60])) == "ERROR"


def test_groups_are_counted_as_what_they_are() -> None:
    alone = [(60, 1, 0, 0), (30, 0, 1, 0)]
    assert verdict(task(BETTER, *alone)) == "PASS"
    grouped = tuple(replace(item, group=f"g{index // 30}") for index, item in enumerate(items(*alone)))
    assert verdict(task(BETTER, items=grouped)) == "INCONCLUSIVE"


@pytest.mark.parametrize(
    "kinds",
    [
        [],
        [(50, 1, 0, 0), (50, None, 0, 0)],
        [(50, 1, 0, 0), (50, 1, None, 0)],
        [(50, 1, 0, 0), (50, math.nan, 0, 0)],
        [(100, None, None, None)],
    ],
)
@pytest.mark.parametrize("rule", [BETTER, EQUAL, LEVEL, {"never": 0.5}, {"at_most": 1.0}])
def test_what_is_no_evidence_is_an_error(rule: dict[str, Any], kinds: list[Any]) -> None:
    assert verdict(task(rule, *kinds)) == "ERROR"


def test_items_that_repeat_are_an_error() -> None:
    twice = items((80, 1, 0, 0))
    assert verdict(task(BETTER, items=(*twice, twice[0]))) == "ERROR"


@pytest.mark.parametrize("rule", [EQUAL, {"never": 0.05}])
def test_an_adapter_that_says_nothing_never_passes(rule: dict[str, Any]) -> None:
    silent = tuple(replace(one, candidate=Score(value=1.0, answer=" \n")) for one in items((2000, 1, 1, 1)))
    assert verdict(task(rule, *[(2000, 1, 1, 1)])) == "PASS"
    assert verdict(task(rule, items=silent)) == "ERROR"


def report(*tasks: TaskResult, **changes: Any) -> SuiteReport:
    own = SuiteReport(
        suite="s", version=1, suite_digest="d", candidate_name="c@v2", candidate_digest="c", base_name="b", base_digest="b",
        incumbent_name=None, incumbent_digest=None, tasks=tasks, num_tokens=0, seconds=0.0, created_at="2026-11-01T00:00:00",
    )  # fmt: skip
    return replace(own, **changes)


@pytest.mark.parametrize(
    "changes", [{"candidate_digest": "b"}, {"candidate_digest": ""}, {"incumbent_digest": "c"}, {"base_digest": ""}, {"tasks": ()}]
)
def test_equal_or_missing_digests_are_errors(changes: dict[str, Any]) -> None:
    good = report(task(BETTER, (60, 1, 0, 0)))
    assert [check.verdict for check in check_suite(good)] == ["PASS"]
    assert {check.verdict for check in check_suite(replace(good, **changes))} == {"ERROR"}


@pytest.mark.parametrize(("hidden_gain", "wanted"), [(0, ["FAIL"]), (1, ["PASS"])])
def test_a_gain_on_open_items_alone_wears_the_suite_out(hidden_gain: int, wanted: list[str]) -> None:
    shown = items((90, 1, 0, 0), (10, 0, 0, 0))
    hidden = tuple(replace(one, id=f"h{one.id}") for one in items((40, hidden_gain, 0, 0), (10, 0, 0, 0)))
    found = check_sealed(report(task(BETTER, items=(*shown, *hidden))), frozenset(one.id for one in hidden))
    assert [check.verdict for check in found] == wanted
    assert check_sealed(report(task(BETTER, items=shown)), frozenset()) == []


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.just(1), *(st.sampled_from([0, 1, 0.5, None]) for _ in range(3))), max_size=40),
    st.sampled_from([BETTER, EQUAL, LEVEL, {"never": 0.01}, {"better_than": "incumbent"}]),
)
def test_small_or_broken_evidence_never_passes_what_it_cannot_show(kinds: list[Any], rule: dict[str, Any]) -> None:
    found = check_task(task(rule, *kinds), has_incumbent=True)
    assert found.reason
    if found.verdict == "PASS":
        assert all(None not in kind for kind in kinds) or sum(None in kind for kind in kinds) <= 0.05 * len(kinds)
        assert found.interval is not None
        assert found.value is not None
        assert "not_worse_than" not in rule  # forty items cannot show two points
        assert "never" not in rule
        assert found.num_items >= FEWEST_TO_PASS


@pytest.mark.parametrize(
    ("rule", "kinds", "wanted"),
    [
        (BETTER, [(24, 1, 0, 0)], "INCONCLUSIVE"),
        (BETTER, [(25, 1, 0, 0)], "PASS"),
        ({"not_worse_than": "base", "margin": 0.5}, [(3, 1, 0, 0)], "INCONCLUSIVE"),
        ({"not_worse_than": "base", "margin": 0.5}, [(3, 0.9, 0.2, 0), (20, 0.8, 0.3, 0)], "INCONCLUSIVE"),
        ({"not_worse_than": "base", "margin": 0.5}, [(25, 1, 1, 0)], "PASS"),
        ({"at_least": 0.5}, [(24, 1, 0, 0)], "INCONCLUSIVE"),
        ({"at_least": 0.5}, [(25, 1, 0, 0)], "PASS"),
        ({"at_most": 0.5}, [(24, 0, 0, 0)], "INCONCLUSIVE"),
        (BETTER, [(12, 0, 1, 0)], "FAIL"),
        ({"at_least": 0.9}, [(12, 0, 0, 0)], "FAIL"),
    ],
)
def test_few_items_fail_and_never_pass(rule: dict[str, Any], kinds: list[Any], wanted: str) -> None:
    found = check_task(task(rule, *kinds), has_incumbent=True)
    assert found.verdict == wanted
    if wanted == "INCONCLUSIVE":
        assert f"{FEWEST_TO_PASS - found.num_items} more are needed" in found.remedy


def test_groups_are_what_is_counted_for_enough() -> None:
    """A hundred items in twenty groups are twenty."""
    own = tuple(replace(one, group=f"g{index % 20}") for index, one in enumerate(items((100, 1, 0, 0))))
    found = check_task(task({"not_worse_than": "base", "margin": 0.9}, items=own), has_incumbent=True)
    assert found.verdict == "INCONCLUSIVE"
    assert "25 groups of items: 5 more" in found.remedy


def passes(rule: dict[str, Any], num_won: int, num_lost: int, num_rest: int) -> bool:
    return verdict(task(rule, (num_won, 1, 0, 0), (num_lost, 0, 1, 1), (num_rest, 1, 1, 1))) == "PASS"


@pytest.mark.parametrize("num_items", [1, 3, 10, 24, 25, 29])
@pytest.mark.parametrize("margin", [0.0, 0.05, 0.3])
def test_what_is_worse_by_the_margin_passes_seldom_however_few_items(num_items: int, margin: float) -> None:
    """Exact: all that can come of so many items, each with its chance, for every share of items on which the two differ."""
    rule = {"not_worse_than": "base", "margin": margin} if margin else BETTER
    counts = [(b, c) for b in range(num_items + 1) for c in range(num_items + 1 - b)]
    passing = [(b, c) for b, c in counts if passes(rule, b, c, num_items - b - c)]
    assert bool(passing) == (num_items >= FEWEST_TO_PASS)
    for discordance in (0.05, 0.1, 0.3, 0.6, 1.0):
        if discordance >= margin:
            chances = ((discordance - margin) / 2, (discordance + margin) / 2, 1 - discordance)
            assert sum(trinomial(b, c, num_items - b - c, chances) for b, c in passing) <= 0.074


def trinomial(b: int, c: int, rest: int, chances: tuple[float, float, float]) -> float:
    ways = math.comb(b + c + rest, b) * math.comb(c + rest, c)
    return ways * chances[0] ** b * chances[1] ** c * chances[2] ** rest


@pytest.mark.parametrize("num_items", [3, 24, 25, 31, 60])
@pytest.mark.parametrize("limit", [0.01, 0.2, 0.5, 0.9])
def test_a_share_just_below_its_limit_passes_in_one_of_twenty_at_most(num_items: int, limit: float) -> None:
    for rule in ({"at_least": limit}, {"at_most": 1 - limit}):
        right = range(num_items + 1)
        passing = [k for k in right if verdict(task(rule, (k, 1, 0, 0), (num_items - k, 0, 0, 0))) == "PASS"]
        share = limit if "at_least" in rule else 1 - limit
        assert sum(math.comb(num_items, k) * share**k * (1 - share) ** (num_items - k) for k in passing) <= 0.05 + 1e-9
        assert not passing or num_items >= FEWEST_TO_PASS


@pytest.mark.parametrize(("value", "wanted"), [(8.0, "FAIL"), (0.0, "INCONCLUSIVE")])
def test_a_few_canaries_known_by_heart_are_enough_to_fail(value: float, wanted: str) -> None:
    """Four at the most there can be; four at the least leave open what others would be."""
    assert verdict(task({"at_most": 3.0}, (4, value, 0.0, 0.0), kind="choice", metric="exposure"), has_incumbent=False) == wanted
