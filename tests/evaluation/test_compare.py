"""Runs are compared only where they were asked the same; what differs is said."""

from typing import Any

import pytest

from lorimer.errors import UsageError
from lorimer.evaluation.compare import ComparedRun, Comparison, refuse_unlike
from lorimer.evaluation.statistics.proportions import compare_pairs, proportion_of


def recorded(run_id: str, base: str = "b" * 64, dataset: str = "d" * 64) -> dict[str, Any]:
    return {"id": run_id, "base_name": "gemma", "base_digest": base, "dataset_name": "tickets", "dataset_digest": dataset}


def test_runs_on_the_same_items_pass() -> None:
    refuse_unlike([recorded("one"), recorded("two"), recorded("three")])


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([], ["two runs or more, found 0"]),
        ([recorded("one")], ["two runs or more, found 1"]),
        ([recorded("one"), recorded("two", base="c" * 64)], ["run 'two' has base 'gemma' (cccccccccccc), run 'one' has base"]),
        (
            [recorded("one"), recorded("two", dataset="e" * 64), recorded("three", base="c" * 64, dataset="f" * 64)],
            ["run 'two' has dataset 'tickets' (eeeeeeeeeeee)", "run 'three' has base", "run 'three' has dataset"],
        ),
    ],
)
def test_what_differs_is_said_all_at_once(runs: list[dict[str, Any]], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        refuse_unlike(runs)
    assert [word for word in words if word not in str(caught.value)] == []


def test_json_has_the_shares_themselves() -> None:
    needs = {"num_parameters": 1, "saved_bytes": 2, "seconds": 3.0, "peak_bytes": 4}
    first, second = (True, True, False, False), (True, True, True, False)
    runs = (
        ComparedRun(run_id="one", name="t", method="lora", exact=proportion_of(first), loss=0.5, against_first=None, **needs),
        ComparedRun(
            run_id="two",
            name="t",
            method="full",
            exact=proportion_of(second),
            loss=0.4,
            against_first=compare_pairs(zip(second, first, strict=True)),
            **needs,
        ),
    )
    value = Comparison(base_name="b", base_digest="b", dataset_name="d", dataset_digest="d", num_items=4, runs=runs).to_json()
    assert [run["exact"]["value"] for run in value["runs"]] == [0.5, 0.75]
    assert value["runs"][1]["against_first"]["difference"] == 0.25
