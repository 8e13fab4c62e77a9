"""Five answers become a recipe with its gate."""

import json
from pathlib import Path

import pytest

from lorimer.cli.main import run
from lorimer.config import read_recipe


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\nhow,so\n")
    return path


def flags(rows: Path, output: Path, **more: str) -> list[str]:
    answers = {
        "use-case": "classification",
        "languages": "en,de",
        "data": str(rows),
        "base": "gemma3-270m",
        "success": "label",
        "at-least": "0.9",
    }
    answers |= {"output": str(output)} | {key.replace("_", "-"): value for key, value in more.items()}
    return ["init", *(part for key, value in answers.items() for part in (f"--{key}", value))]


def test_flags_write_a_recipe_that_reads_back(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "recipe.yaml"
    assert run([*flags(data, output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_examples"] == 1
    recipe = read_recipe(output)
    assert (recipe.preset, recipe.languages, recipe.metric, recipe.gate.at_least) == ("classification", ["en", "de"], "label", 0.9)
    assert recipe.dataset == str(data)


def test_questions_are_asked_for_what_is_not_given(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from lorimer.cli.main import app

    output = tmp_path / "recipe.yaml"
    answers = f"extraction\nany\n{data}\n\n\n0.7\n"
    result = CliRunner().invoke(app, ["init", "--output", str(output)], input=answers)
    assert result.exit_code == 0, result.output
    recipe = read_recipe(output)
    assert (recipe.preset, recipe.languages, recipe.base, recipe.metric, recipe.gate.at_least) == (
        "extraction", None, "gemma3-270m", "exact_json", 0.7,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"success": "vibes"}, "'vibes' is not one of"),
        ({"languages": "English"}, "'English' is no language tag"),
        ({"data": "nowhere.csv"}, "nowhere.csv"),
        ({"prompt_column": "questoin", "completion_column": "answer"}, "question"),
        ({"at_least": "90"}, "at-least"),
    ],
)
def test_wrong_answers_write_nothing(
    more: dict[str, str], words: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(flags(data, tmp_path / "recipe.yaml", **more)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "recipe.yaml").exists()


def test_existing_recipe_is_not_overwritten_unasked(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "recipe.yaml"
    output.write_text("mine")
    assert run(flags(data, output)) == 2
    assert "--force" in capsys.readouterr().err
    assert output.read_text() == "mine"
