"""`lorimer data` through its own command line."""

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lorimer.cli.data import app
from lorimer.data.dataset import read_dataset
from lorimer.errors import ConfigError, DataError, NotFoundError, UsageError


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.csv"
    rows = [f"question {number},[b]answer[/b] {number % 2},{'en' if number % 2 else 'de'},{number}" for number in range(30)]
    path.write_text("\n".join(["question,label,language,id", *rows]))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def curate(tickets: Path, *options: object) -> Result:
    return run("curate", tickets, "--name", "support", "--completion-column", "label", *options)


def test_curate_prints_shape_splits_findings_and_paths(tickets: Path) -> None:
    result = curate(tickets)
    assert result.exit_code == 0, result.output
    dataset = read_dataset("support")
    line = "tickets.csv (train): 30 rows, prompt/completion (question as prompt, label as completion, language); columns not used: id"
    for text in (line, f"train {len(dataset.train)}, validation", "drop_exact_duplicates: no row", str(dataset.path), "card.html"):
        assert text in result.output


def test_curate_prints_one_json_object(tickets: Path) -> None:
    value = json.loads(curate(tickets, "--json").stdout)
    dataset = read_dataset("support")
    assert (value["name"], value["digest"], value["path"]) == ("support", dataset.digest, str(dataset.path))
    assert value["card"] == dataset.card


def test_curate_passes_every_option_on(tickets: Path, tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text('{"question": "new", "label": "x", "language": "de"}\n{\n')
    options = ["--system", "S", "--language", "de", "--test", test, "--skip-bad-rows", "--seed", 3]
    result = curate(tickets, *options, "--prompt-column", "question", "--language-column", "language")
    assert result.exit_code == 0, result.output
    card = read_dataset("support").card
    assert card["curation"]["columns"] == {"prompt": "question", "completion": "label", "language": "language"}
    assert (card["curation"]["system"], card["curation"]["seed"], card["languages"]) == ("S", 3, {"de": 16})
    assert (card["num_problems"], card["splits"]["test"]["num_examples"]) == (1, 1)


def test_curate_takes_plain_text(tickets: Path) -> None:
    result = run("curate", tickets, "--name", "texts", "--text-column", "question")
    assert result.exit_code == 0, result.output
    assert read_dataset("texts").train[0].text is not None


@pytest.mark.parametrize(
    ("text", "error"),
    [("frage,antwort\na,b\n", ConfigError), ("prompt,completion\na\n", DataError), ("", DataError), (None, NotFoundError)],
)
def test_curate_raises_what_the_reader_can_act_on(tmp_path: Path, text: str | None, error: type[Exception]) -> None:
    path = tmp_path / "t.csv"
    if text is not None:
        path.write_text(text)
    result = run("curate", path, "--name", "support")
    assert isinstance(result.exception, error)


def test_list_prints_every_dataset(tickets: Path) -> None:
    assert "No datasets yet" in run("list").output
    assert json.loads(run("list", "--json").stdout) == {"datasets": []}
    curate(tickets)
    dataset = read_dataset("support")
    assert dataset.digest[:16] in run("list").output
    listed = json.loads(run("list", "--json").stdout)["datasets"]
    assert [(each["name"], each["digest"], each["path"]) for each in listed] == [("support", dataset.digest, str(dataset.path))]
    assert sum(listed[0]["num_examples"].values()) == 30


def test_show_prints_card_and_first_rows_as_they_are(tickets: Path) -> None:
    curate(tickets)
    result = run("show", "support")
    row = read_dataset("support").train[0]
    assert all(text in result.output for text in (row.source, row.prompt[0].content, row.answer))
    value = json.loads(run("show", "support", "--json").stdout)
    assert value["examples"] == [example.to_json() for example in read_dataset("support").train[:3]]


def test_report_prints_the_path_of_the_page(tickets: Path) -> None:
    curate(tickets)
    path = Path(run("report", "support").stdout.strip())
    assert path.read_text().startswith("<!doctype html>")


def test_unknown_name_is_not_found() -> None:
    for verb in ("show", "report"):
        assert isinstance(run(verb, "absent").exception, NotFoundError)


def test_rules_can_be_printed_changed_and_used(tickets: Path, tmp_path: Path) -> None:
    printed = run("rules").stdout
    assert "duplicates:" in printed
    names = {rule["name"] for rule in json.loads(run("rules", "--json").stdout)["rules"]}
    assert {"pii", "secrets", "encoding", "drop_too_long"} <= names
    path = tmp_path / "rules.yaml"
    path.write_text(printed.replace("max_chars: 20000", "max_chars: 12"))
    result = curate(tickets, "--rules", path)
    assert isinstance(result.exception, DataError)
    assert "30 rows had more than 12 characters" in str(result.exception)


def test_query_is_read_and_needs_its_database(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table t (prompt text, completion text)")
        connection.executemany("insert into t values (?, ?)", [(f"q{number}", "a") for number in range(12)])
    connection.close()
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    result = run("curate", "--sql", url, "--query", "select * from t", "--name", "shop", "--licence", "internal", "--consent", "terms")
    assert result.exit_code == 0, result.output
    assert "12 rows read, 12 kept" in result.output
    assert read_dataset("shop").train[0].licence == "internal"
    assert isinstance(run("curate", "--sql", url, "--name", "shop").exception, UsageError)


def test_diff_prints_what_changed(tickets: Path) -> None:
    before = json.loads(curate(tickets, "--json").stdout)["digest"]
    curate(tickets, "--seed", 5)
    assert "moved" in run("diff", before, "support").output
    assert json.loads(run("diff", before, "support", "--json").stdout)["before"] == before


def test_contamination_is_said_after_curating_and_when_asked(tickets: Path) -> None:
    curate(tickets)
    assert "No row of train" in run("contamination", "support").output
    result = run("curate", tickets, "--name", "other", "--completion-column", "label", "--seed", 5)
    assert "contamination:" in result.output
    found = json.loads(run("contamination", "other", "--json").stdout)["contamination"]
    assert found[0]["suite"] == "dataset 'support'"


def test_grouped_and_stratified_is_passed_on(tickets: Path) -> None:
    result = curate(tickets, "--group-by", "id", "--stratify")
    assert result.exit_code == 0, result.output
    curation = read_dataset("support").card["curation"]
    assert (curation["columns"]["group"], curation["split"]["stratify"]) == ("id", True)
