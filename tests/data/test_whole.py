"""What repeats, contradicts or leaks is found among staged rows, whoever curated them."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorimer.config import ColumnNames, Curation, Shingling
from lorimer.data.curate import curate
from lorimer.data.dataset import Dataset
from lorimer.data.features import asked_text
from lorimer.data.near import find_near

LONG = "please tell me how long the delivery of my new card number {} will take when i order it from abroad"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ask(prompt: str, answer: str = "A", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, **more}


def run(tmp_path: Path, rows: list[dict[str, Any]], rules: dict[str, Any] | None = None, **options: Any) -> Dataset:
    path = write(tmp_path / "t.jsonl", rows)
    return curate([path], name="t", rules=Curation.model_validate(rules or {}), **options)


def finding(dataset: Dataset, rule: str) -> dict[str, Any]:
    return next(each for each in dataset.card["findings"] if each["rule"] == rule)


def left_out(dataset: Dataset) -> list[dict[str, str]]:
    return [json.loads(line) for line in (dataset.path / "left_out.jsonl").read_text().splitlines()]


def sources(dataset: Dataset) -> list[str]:
    return sorted(row.source for row in (*dataset.train, *dataset.validation, *dataset.test))


@pytest.mark.parametrize(
    ("second", "is_duplicate"),
    [
        (ask("q ", "A"), True),
        (ask("Q", "A\n"), True),
        (ask("Q", "a"), False),
        (ask("R", "A"), False),
        (ask("Q", "A", system="S"), False),
    ],
)
def test_duplicates_are_dropped_and_the_first_is_kept(tmp_path: Path, second: dict[str, Any], is_duplicate: bool) -> None:
    dataset = run(tmp_path, [ask("Q", "A"), second])
    assert sources(dataset) == (["t.jsonl:1"] if is_duplicate else ["t.jsonl:1", "t.jsonl:2"])
    assert finding(dataset, "drop_exact_duplicates")["num_removed"] == int(is_duplicate)
    why = {"source": "t.jsonl:2", "rule": "drop_exact_duplicates", "reason": "repeats t.jsonl:1"}
    assert left_out(dataset) == ([why] if is_duplicate else [])


@pytest.mark.parametrize(("second", "is_duplicate"), [("B", True), ("B\n", True), ("b", False), ("C", False)])
def test_duplicate_pairs_have_the_same_rejected_answer_too(tmp_path: Path, second: str, is_duplicate: bool) -> None:
    rows = [{"prompt": prompt, "chosen": "A", "rejected": rejected} for prompt, rejected in (("Q", "B"), ("q", second))]
    assert len(sources(run(tmp_path, rows))) == (1 if is_duplicate else 2)


def test_every_repeat_names_the_first_of_its_kind(tmp_path: Path) -> None:
    rows = [{"text": text} for text in ("Once upon", "twice", "once  upon", "TWICE", "Once upon", "once")]
    dataset = run(tmp_path, rows)
    assert [(row["source"], row["reason"]) for row in left_out(dataset)] == [
        ("t.jsonl:3", "repeats t.jsonl:1"),
        ("t.jsonl:4", "repeats t.jsonl:2"),
        ("t.jsonl:5", "repeats t.jsonl:1"),
    ]


def test_duplicates_can_be_reported_alone(tmp_path: Path) -> None:
    dataset = run(tmp_path, [ask("Q"), ask("q"), ask("R")], {"duplicates": {"exact": "report"}})
    found = finding(dataset, "drop_exact_duplicates")
    assert (len(sources(dataset)), found["num_flagged"], found["examples"]) == (3, 1, ["t.jsonl:2"])


@pytest.mark.parametrize("action", ["report", "drop"])
def test_conflicts_are_reported_in_groups(tmp_path: Path, action: str) -> None:
    rows = [ask("Q", "A"), ask("R", "A"), ask("q", "B"), ask("R", " A"), {**ask("S", "C"), "system": "x"}, {**ask("S", "D"), "system": "y"}]
    dataset = run(tmp_path, rows, {"conflicts": action})
    found = finding(dataset, "flag_conflicts")
    assert found["examples"] == ["t.jsonl:1", "t.jsonl:3"]
    assert found["message"].startswith("1 prompt had more than one answer (2 rows), all ")
    assert len(sources(dataset)) == (5 if action == "report" else 3)


def test_no_conflicts_are_said_so(tmp_path: Path) -> None:
    assert finding(run(tmp_path, [ask("Q"), ask("R")]), "flag_conflicts")["message"] == "no prompt had more than one answer"


def test_near_rows_are_reported_with_their_groups(tmp_path: Path) -> None:
    rows = [ask(LONG.format(number), "AB"[number == 3]) for number in range(4)] + [ask(f"something else altogether {'x' * 30} {'y' * 20}")]
    dataset = run(tmp_path, rows)
    found = finding(dataset, "near_duplicates")
    assert (found["num_flagged"], found["num_removed"], len(sources(dataset))) == (3, 0, 5)
    assert dataset.card["duplicates"] == {"exact": 0, "near": 3, "groups_of_2": 0, "groups_of_3_to_5": 1, "groups_of_6_and_more": 0}


def test_near_rows_with_equal_answers_are_dropped_when_asked(tmp_path: Path) -> None:
    rows = [ask(LONG.format(number), "AB"[number == 3]) for number in range(4)]
    dataset = run(tmp_path, rows, {"duplicates": {"near": "drop"}})
    assert sources(dataset) == ["t.jsonl:1", "t.jsonl:4"]
    assert {row["reason"] for row in left_out(dataset)} == {"near t.jsonl:1"}


def many(num: int) -> list[dict[str, Any]]:
    """Rows of which some are near to a few others, and the rest to none."""
    return [
        ask(f"{LONG.format(number % 20)} {' '.join(hex(number * 7919 + at) for at in range(2 if number < 40 else 12))}")
        for number in range(num)
    ]


@pytest.mark.parametrize("action", ["drop", "report"])
def test_no_row_that_is_held_back_has_a_near_twin_in_train(tmp_path: Path, action: str) -> None:
    dataset = run(tmp_path, many(120), {"duplicates": {"across_splits": action, "near": "off"}})
    held = [asked_text(row) for row in (*dataset.validation, *dataset.test)]
    train = [asked_text(row) for row in dataset.train]
    near = find_near([*held, *train], Shingling()).pairs
    across = {right for left, right in near.tolist() if left < len(held) <= right}
    found = finding(dataset, "near_leak")
    assert found["examples"]
    if action == "drop":
        assert (across, len(held) + len(train)) == (set(), 120 - found["num_removed"])
    else:
        assert (len(across), len(held) + len(train)) == (found["num_flagged"], 120)


def test_near_twins_can_be_left_alone(tmp_path: Path) -> None:
    dataset = run(tmp_path, many(60), {"duplicates": {"across_splits": "off", "near": "off"}})
    assert {each["rule"] for each in dataset.card["findings"]}.isdisjoint({"near_leak", "near_duplicates"})


def test_short_prompts_are_compared_whole_only(tmp_path: Path) -> None:
    dataset = run(tmp_path, [ask(f"question {number}") for number in range(60)])
    assert (len(sources(dataset)), finding(dataset, "near_duplicates")["num_flagged"]) == (60, 0)


def test_grouped_rows_stay_together_and_do_not_leak(tmp_path: Path) -> None:
    rows = [ask(f"question {number % 150}", customer=number % 40) for number in range(400)]
    columns = ColumnNames(group="customer")
    dataset = run(tmp_path, rows, {"duplicates": {"exact": "report"}}, columns=columns)
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    groups = {split: {int(row.source.partition(":")[2]) % 40 for row in found} for split, found in splits.items()}
    # the file's line 1 is row 0: lines and rows differ by one in every group alike
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    asked = {split: {row.prompt for row in found} for split, found in splits.items()}
    assert not asked["train"] & (asked["validation"] | asked["test"])
    assert finding(dataset, "leak")["num_removed"] > 0


def test_stratified_splits_share_out_every_answer(tmp_path: Path) -> None:
    rows = [ask(f"question {number}", f"label {number % 3}") for number in range(300)]
    dataset = run(tmp_path, rows, {"split": {"stratify": True}})
    counts = [sum(row.answer == f"label {number}" for row in dataset.test) for number in range(3)]
    assert counts == [10, 10, 10]
