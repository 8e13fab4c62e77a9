"""Parquet, saved Hugging Face datasets and queries come out as rows; what cannot be read is one row's problem, or one sentence."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorimer.config import ColumnNames
from lorimer.data.curate import curate
from lorimer.data.dataset import Dataset
from lorimer.data.queries import open_query
from lorimer.data.reading import ReadResult, read_rows
from lorimer.errors import ConfigError, DataError, NotFoundError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write_parquet(path: Path, **columns: list[Any]) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def read(path: Path, **columns: list[Any]) -> ReadResult:
    return read_rows(write_parquet(path, **columns))


def save_to_disk(folder: Path, rows: list[dict[str, Any]], features: dict[str, Any] | None = None, num_files: int = 1) -> Path:
    """What `datasets.Dataset.save_to_disk` leaves behind (datasets 5.2)."""
    folder.mkdir(parents=True)
    table = pyarrow.Table.from_pylist(rows)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    names = [f"data-{number:05}-of-{num_files:05}.arrow" for number in range(num_files)]
    for number, name in enumerate(names):
        part = table.slice(number * len(rows) // num_files, (number + 1) * len(rows) // num_files - number * len(rows) // num_files)
        with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], "_fingerprint": "f"}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def asked(dataset: Dataset) -> dict[str, str]:
    return {row.source: row.prompt[-1].content for row in (*dataset.train, *dataset.validation, *dataset.test)}


def test_parquet_rows_are_numbered_from_one(tmp_path: Path) -> None:
    result = read(tmp_path / "t.parquet", prompt=["Q", None, "R"], completion=["A", "B", "C"], at=[1.5, None, float("nan")])
    assert [example.source for example in result.examples] == ["t.parquet:1", "t.parquet:3"]
    assert [(problem.source, problem.reason) for problem in result.problems] == [("t.parquet:2", "'prompt' is null, not a text")]


def test_parquet_of_conversations_is_recognised(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]]
    assert read(tmp_path / "t.parquet", messages=turns).examples[0].answer == "A"


@pytest.mark.parametrize("cell", [b"bytes", 3, 2.5, True, [1], {"a": 1}])
def test_cells_that_are_no_texts_are_problems(tmp_path: Path, cell: Any) -> None:
    result = read(tmp_path / "t.parquet", prompt=[cell], completion=["A"])
    assert (len(result.examples), len(result.problems)) == (0, 1)


def test_parquet_text_that_is_not_utf8_spoils_its_row_alone(tmp_path: Path) -> None:
    broken = pyarrow.array([b"good", b"\xff\xfe", b"fine"]).view(pyarrow.utf8())
    parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "t.parquet")
    result = read_rows(tmp_path / "t.parquet")
    assert [example.text for example in result.examples] == ["good", "fine"]
    assert "not valid UTF-8" in result.problems[0].reason


def test_parquet_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"t.parquet' cannot be read as Parquet"):
        read_rows(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="holds no rows"):
        read(tmp_path / "e.parquet", text=pyarrow.array([], pyarrow.utf8()))


def test_saved_dataset_is_read_across_its_files_with_the_names_of_its_classes(tmp_path: Path) -> None:
    rows = [{"text": f"question {number}", "label": number % 2} for number in range(11)]
    features = {"label": {"names": ["card", "loan"], "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}}
    folder = save_to_disk(tmp_path / "saved", rows, features, num_files=3)
    dataset = curate([folder], name="saved", columns=ColumnNames(prompt="text", completion="label"))
    assert asked(dataset) == {f"saved:{number + 1}": f"question {number}" for number in range(11)}
    assert {row.answer for row in dataset.train} == {"card", "loan"}


def test_saved_dataset_dict_keeps_its_own_test_split(tmp_path: Path) -> None:
    for split, num in (("train", 30), ("test", 4)):
        save_to_disk(tmp_path / "both" / split, [{"prompt": f"{split} {number}", "completion": "A"} for number in range(num)])
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    dataset = curate([tmp_path / "both"], name="both")
    assert [row.source for row in dataset.test] == [f"both/test:{number}" for number in range(1, 5)]
    assert [(source["file"], source["use"]) for source in dataset.card["sources"]] == [("both/train", "train"), ("both/test", "test")]


def test_datasets_own_folders_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"prompt": ["Q", "R"], "completion": ["A", "B"]})
    made.save_to_disk(tmp_path / "saved")
    assert len(curate([tmp_path / "saved"], name="t").train) == 2


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "not an object"),
        ("{}", "names no data files"),
        ('{"_data_files": [{"filename": "../x.arrow"}]}', "is not there"),
        ('{"_data_files": []}', "data is not there"),
        ('{"_data_files": [{"filename": "x"}], "_indices_data_files": [1]}', "flatten_indices"),
    ],
)
def test_saved_dataset_that_is_damaged_is_refused(tmp_path: Path, state: str, message: str) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text(state)
    with pytest.raises(DataError, match=message):
        curate([tmp_path / "saved"], name="t")


def test_absent_pyarrow_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    code = f"""
import sys
sys.modules["pyarrow"] = None
from pathlib import Path
from lorimer.data.reading import read_rows
from lorimer.errors import ConfigError
try:
    read_rows(Path({str(tmp_path / "t.parquet")!r}))
except ConfigError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("t.parquet' needs pyarrow: pip install 'lorimer[data]'")


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """A database with twenty questions, one of which is not UTF-8."""
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table tickets (id integer primary key, question text, answer text)")
        connection.executemany("insert into tickets (question, answer) values (?, ?)", [(f"question {n}", "A") for n in range(20)])
        connection.execute("insert into tickets (question, answer) values (cast(x'ff41' as text), 'A')")
    connection.close()
    return f"sqlite:///{tmp_path / 'shop.db'}"


def test_query_rows_are_read_and_numbered(shop: str) -> None:
    query = open_query(shop, "select question, answer from tickets order by id")
    dataset = curate([], name="t", query=query, skip_bad_rows=True)
    assert asked(dataset) == {f"query:{number + 1}": f"question {number}" for number in range(20)}
    assert dataset.card["problems"] == [{"source": "query:21", "reason": "not valid UTF-8: save the file as UTF-8"}]
    (source,) = dataset.card["sources"]
    assert (source["query"], source["url"], len(source["sha256"])) == (query.query, "sqlite:///shop.db", 64)


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("select absent from tickets", DataError, "no such column"),
        ("delete from tickets", ConfigError, "returns no rows"),
        ("select question, answer, answer from tickets", DataError, "more than once"),
        ("select question, answer from tickets where id < 0", DataError, "holds no rows"),
        (" ", ConfigError, "is empty"),
    ],
)
def test_query_that_cannot_be_is_refused_and_changes_nothing(shop: str, query: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        curate([], name="t", query=open_query(shop, query))
    with sqlite3.connect(shop.removeprefix("sqlite:///")) as connection:
        assert connection.execute("select count(*) from tickets").fetchone() == (21,)
    connection.close()


def test_database_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        open_query(f"sqlite:///{tmp_path / 'absent.db'}", "select 1")
    with pytest.raises(ConfigError, match="not a database URL"):
        open_query("user:secret@host", "select 1")


def test_password_is_on_no_card() -> None:
    assert "secret" not in json.dumps(open_query("postgresql://ann:secret@host/shop", "select 1").describe())
