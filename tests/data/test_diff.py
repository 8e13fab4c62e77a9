"""Two datasets are told apart row by row; contamination is found in whatever else is judged by."""

import json
from pathlib import Path
from typing import Any

from lorimer.data.contamination import check_contamination, find_contamination
from lorimer.data.curate import curate, curate_to_disk
from lorimer.data.dataset import DatasetFolder, open_dataset
from lorimer.data.diff import compare

LONG = "please tell me how long the delivery of my new card to {} takes when i order it from abroad"


def make(tmp_path: Path, name: str, rows: list[tuple[str, str]], **options: Any) -> DatasetFolder:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows))
    return curate_to_disk([path], name=name, **options)


ROWS = [(f"question {number}", f"answer {number}") for number in range(60)]


def test_diff_of_equal_datasets_is_empty(tmp_path: Path) -> None:
    found = compare(make(tmp_path, "a", ROWS), make(tmp_path, "b", ROWS))
    assert (found.num_same, found.added, found.removed, found.moved, found.options) == (60, {}, {}, {}, {})
    assert found.describe() == ["60 rows are the same in the same split"]


def test_diff_names_what_came_went_and_was_answered_otherwise(tmp_path: Path) -> None:
    before = make(tmp_path, "a", ROWS)
    after = make(tmp_path, "b", [*ROWS[:50], (ROWS[50][0], "another"), ("new", "A")], licence="CC BY 4.0")
    found = compare(before, after)
    assert (sum(found.added.values()), sum(found.removed.values()), found.num_reanswered) == (2, 10, 1)
    assert (found.num_same, found.num_relabelled) == (50, 50)
    assert found.examples["added"] == ("t.jsonl:51", "t.jsonl:52")
    assert found.options["licence"] == (None, "CC BY 4.0")
    assert json.loads(json.dumps(found.to_json()))["num_reanswered"] == 1


def test_diff_names_rows_that_moved(tmp_path: Path) -> None:
    found = compare(make(tmp_path, "a", ROWS), make(tmp_path, "b", ROWS, seed=1))
    assert sum(found.moved.values()) + found.num_same == 60
    assert found.moved


def test_contamination_is_found_word_for_word_and_nearly(tmp_path: Path) -> None:
    dataset = make(tmp_path, "a", [*ROWS, (LONG.format("berlin"), "A"), (LONG.format("parisx"), "A")])
    train = [row.prompt[-1].content for row in dataset.rows("train")]
    suites = {"exam": [train[0].upper(), LONG.format("berlim")], "other": ["nothing that was asked in any row here"]}
    (found,) = find_contamination(dataset, suites)
    num_near = sum(text.startswith("please") for text in train)
    assert (found.suite, found.num_texts, found.num_exact, found.num_near) == ("exam", 2, 1, num_near)
    assert found.examples


def test_contamination_looks_at_the_test_rows_of_other_datasets(tmp_path: Path) -> None:
    first = make(tmp_path, "a", ROWS)
    assert check_contamination(first) == []
    make(tmp_path, "same-split", ROWS)
    assert check_contamination(first) == []  # the same row falls into the same split everywhere
    make(tmp_path, "other-seed", ROWS, seed=7)
    (found,) = check_contamination(first)
    assert (found.suite, found.num_exact > 0) == ("dataset 'other-seed'", True)


def test_dataset_is_opened_without_its_rows_and_read_one_by_one(tmp_path: Path) -> None:
    written = make(tmp_path, "a", ROWS)
    opened = open_dataset("a")
    assert opened == written
    dataset = curate([tmp_path / "t.jsonl"], name="a")
    assert [*opened.rows("train")] == [*dataset.train]
    assert [digest.hex() for digest in opened.record_digests("test")] == [row.record_digest for row in dataset.test]
