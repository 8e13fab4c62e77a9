"""Files in, dataset out: what is refused, what is recorded, what a recipe gets."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorimer.config import ColumnNames, Recipe
from lorimer.data.curate import curate, curate_file, resolve_dataset
from lorimer.data.dataset import Dataset, list_datasets, read_dataset
from lorimer.errors import ConfigError, DataError, NotFoundError


def rows_file(path: Path, num: int = 20, **extra: Any) -> Path:
    rows = [{"prompt": f"question {number}", "completion": f"answer {number % 3}", **extra} for number in range(num)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def findings_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    return {finding["rule"]: finding for finding in dataset.card["findings"]}


def test_curate_writes_a_dataset_with_its_card(tmp_path: Path) -> None:
    dataset = curate([rows_file(tmp_path / "t.jsonl", id=7)], name="support", system="S", default_tags={"language": "en"})
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 20
    assert dataset.train[0].messages[0].content == "S"
    source = dataset.card["sources"][0]
    assert (source["file"], source["shape"], source["columns_not_used"]) == ("t.jsonl", "prompt/completion", {"id": 20})
    assert dataset.card["languages"] == {"en": 20}
    assert read_dataset("support") == dataset


def test_curate_is_reproducible_wherever_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    first = curate([rows_file(tmp_path / "t.jsonl")], name="support")
    assert curate([rows_file(tmp_path / "elsewhere" / "t.jsonl")], name="support").digest == first.digest
    assert curate([tmp_path / "t.jsonl"], name="support", seed=1).digest != first.digest


def test_curate_joins_files_of_different_shapes(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text("instruction,output\nDo it,Done\n")
    dataset = curate([rows_file(tmp_path / "t.jsonl"), tmp_path / "u.csv"], name="support")
    assert [source["shape"] for source in dataset.card["sources"]] == ["prompt/completion", "Alpaca"]


def test_curate_keeps_pairs_of_answers_together(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"question {number}", "chosen": "yes ", "rejected": f"no {number}"} for number in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0], {**rows[0], "rejected": "maybe"}]))
    dataset = curate([path], name="pairs")
    examples = [*dataset.train, *dataset.validation, *dataset.test]
    assert (len(examples), {example.answer for example in examples}) == (21, {"yes"})
    assert sorted(example.rejected or "" for example in examples) == sorted(["maybe", *(f"no {number}" for number in range(20))])
    assert findings_of(dataset)["drop_exact_duplicates"]["num_removed"] == 1
    assert dataset.card["sources"][0]["columns"] == {"completion": "chosen", "rejected": "rejected", "prompt": "prompt"}
    assert read_dataset("pairs") == dataset


def test_curate_names_pairs_that_teach_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected\nQ,A,B\nR,A,A\nS,A,\n")
    with pytest.raises(DataError, match=r"pairs.csv:3: .* are the same answer.*; pairs.csv:4: 'rejected' is empty"):
        curate([path], name="pairs")
    assert len(curate([path], name="pairs", skip_bad_rows=True).train) == 1


def test_curate_refuses_bad_rows_with_their_lines(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "t.jsonl")
    path.write_text(path.read_text() + "{\n" * 12)
    with pytest.raises(DataError, match=r"t.jsonl:21: not valid JSON.*t.jsonl:30: .*; and 2 more rows: .*--skip-bad-rows") as caught:
        curate([path], name="support")
    assert "t.jsonl:31" not in str(caught.value)
    assert list_datasets() == []


def test_curate_can_skip_bad_rows_and_records_them(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "t.jsonl")
    path.write_text(path.read_text() + '{"prompt": "", "completion": "A"}\n')
    dataset = curate([path], name="support", skip_bad_rows=True)
    assert dataset.card["problems"] == [{"source": "t.jsonl:21", "reason": "'prompt' is empty"}]
    assert findings_of(dataset)["skip_bad_rows"]["num_removed"] == 1


def test_curate_says_when_rows_are_too_few_to_split(tmp_path: Path) -> None:
    dataset = curate([rows_file(tmp_path / "t.jsonl", 9)], name="support")
    assert len(dataset.train) == 9
    assert findings_of(dataset)["split"]["message"].startswith("only 9 rows, too few to hold any back")


def test_curate_takes_a_test_file_and_removes_its_prompts(tmp_path: Path) -> None:
    train = rows_file(tmp_path / "train.jsonl", 20)
    test = rows_file(tmp_path / "test.jsonl", 5)
    test.write_text(test.read_text() + '{"prompt": "QUESTION  0", "completion": "answer 0"}\n')
    dataset = curate([train], name="support", test_source=test)
    assert [row.source for row in dataset.test] == [f"test.jsonl:{line}" for line in range(1, 7)]
    assert len(dataset.train) + len(dataset.validation) == 15
    assert findings_of(dataset)["leak"]["num_removed"] == 5
    assert [source["use"] for source in dataset.card["sources"]] == ["train", "test"]


def test_curate_filters_languages_in_both_files(tmp_path: Path) -> None:
    rows = [{"text": f"t {number}", "language": ("en", "de", "fr")[number % 3]} for number in range(30)]
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps({**row, "text": name + str(row["text"])}) + "\n" for row in rows))
    dataset = curate([tmp_path / "train.jsonl"], name="support", languages=["en", "de"], test_source=tmp_path / "test.jsonl")
    assert dataset.card["languages"] == {"en": 20, "de": 20}
    assert findings_of(dataset)["keep_languages (test file)"]["num_removed"] == 10
    with pytest.raises(DataError, match="no example is tagged 'it'"):
        curate([tmp_path / "train.jsonl"], name="support", languages=["it"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "No Name"}, ConfigError, "dataset name 'No Name'"),
        ({"languages": ["English"]}, ConfigError, "'English' must be tags"),
        ({"system": " "}, ConfigError, "system text is empty"),
        ({"paths": []}, ConfigError, "at least one file"),
        ({"paths": ["a.jsonl", "b.jsonl"]}, NotFoundError, "files .*a.jsonl', .*b.jsonl' not found"),
        ({"test_source": "t.jsonl"}, ConfigError, "t.jsonl' is given more than once"),
        ({"paths": ["t.jsonl", "t.jsonl"]}, ConfigError, "given more than once"),
    ],
)
def test_curate_refuses_what_cannot_be(tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    rows_file(tmp_path / "t.jsonl")
    given = {"paths": ["t.jsonl"], "name": "support", **options}
    if "test_source" in given:
        given["test_source"] = tmp_path / given["test_source"]
    with pytest.raises(error, match=message):
        curate([tmp_path / name for name in given.pop("paths")], **given)


def test_curate_refuses_to_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("{\n")
    with pytest.raises(DataError, match=r"no row is left to train on \(1 row could not be read"):
        curate([path], name="support", skip_bad_rows=True)
    good = rows_file(tmp_path / "good.jsonl")
    with pytest.raises(DataError, match=r"test file .*t.jsonl' leaves no row to judge by"):
        curate([good], name="support", test_source=path, skip_bad_rows=True)


@pytest.mark.parametrize(("file", "name", "expected"), [("My Tickets (v2).jsonl", None, "my-tickets-v2"), ("t.jsonl", "desk", "desk")])
def test_recipe_file_is_curated_under_its_name(tmp_path: Path, file: str, name: str | None, expected: str) -> None:
    path = rows_file(tmp_path / file)
    assert curate_file(Recipe(base="b", dataset=str(path), name=name)).name == expected


def test_recipe_file_whose_name_makes_none_needs_one(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "データ.jsonl")
    with pytest.raises(ConfigError, match="give the recipe a `name:`"):
        curate_file(Recipe(base="b", dataset=str(path)))


def test_recipe_seed_does_not_move_rows(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "t.jsonl")
    digests = {curate_file(Recipe(base="b", dataset=str(path), seed=seed)).digest for seed in (0, 1)}
    assert len(digests) == 1


def test_recipe_dataset_is_a_name_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = curate([rows_file(tmp_path / "t.jsonl")], name="support")
    assert resolve_dataset(Recipe(base="b", dataset="support")) == named
    assert resolve_dataset(Recipe(base="b", dataset=named.digest)).digest == named.digest
    assert resolve_dataset(Recipe(base="b", dataset="t.jsonl", system="S")).train[0].messages[0].content == "S"
    with pytest.raises(NotFoundError, match=r"'suport' is neither .*\(there are support, t .did you mean 'support'.*nor a file here"):
        resolve_dataset(Recipe(base="b", dataset="suport"))


COLUMNS = ColumnNames(prompt="prompt", completion="completion")


@pytest.mark.parametrize(
    ("options", "differing"),
    [
        ({}, None),
        ({"columns": COLUMNS, "system": "S", "languages": ["en"]}, None),
        ({"languages": ["de"]}, "`languages` .curated with en"),
        ({"languages": ["en", "de"]}, "`languages`"),
        ({"system": "T"}, "`system` .curated with 'S'"),
        ({"columns": ColumnNames(text="prompt"), "system": "T"}, "`columns` .*, `system`"),
    ],
)
def test_recipe_may_only_repeat_how_a_dataset_was_curated(tmp_path: Path, options: dict[str, Any], differing: str | None) -> None:
    path = rows_file(tmp_path / "t.jsonl", language="en")
    curate([path], name="support", columns=COLUMNS, system="S")
    recipe = Recipe(base="b", dataset="support", **options)
    if differing is None:
        assert resolve_dataset(recipe).name == "support"
    else:
        with pytest.raises(ConfigError, match=differing):
            resolve_dataset(recipe)


def test_languages_that_were_filtered_for_may_be_repeated(tmp_path: Path) -> None:
    curate([rows_file(tmp_path / "t.jsonl")], name="untagged", languages=["en"])
    assert resolve_dataset(Recipe(base="b", dataset="untagged", languages=["en"])).name == "untagged"
    with pytest.raises(ConfigError, match="no row tagged"):
        resolve_dataset(Recipe(base="b", dataset="untagged", languages=["de"]))


def test_banking77_curates_with_its_own_test_file(shared_data: Path) -> None:
    folder = shared_data / "banking77"
    columns = ColumnNames(prompt="text", completion="category")
    dataset = curate([folder / "train.csv"], name="banking77", columns=columns, test_source=folder / "test.csv")
    assert len(dataset.test) == 3_080
    assert findings_of(dataset)["leak"]["num_removed"] == 7
    assert findings_of(dataset)["drop_exact_duplicates"]["num_removed"] == 4
    assert dataset.card["answers"][0]["num_distinct"] == 77
