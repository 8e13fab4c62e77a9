"""Recipes: strict, every problem at once, the file and the key named."""

from pathlib import Path

import pytest

from lorimer.config import Recipe, parse_recipe, read_recipe, recipe_yaml
from lorimer.errors import ConfigError

LEAST = "base: gemma3-270m\ndataset: helpdesk\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_least_recipe_is_enough(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, LEAST))
    assert (recipe.base, recipe.dataset, recipe.preset, recipe.seed, recipe.gate.beats_base) == (
        "gemma3-270m",
        "helpdesk",
        "instruction",
        0,
        True,
    )


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        (LEAST + "rnak: 8\n", [r"unknown key `rnak` \(did you mean `rank`\?\)"]),
        (LEAST + "gate: {at_laest: 0.9}\n", [r"unknown key `gate.at_laest` \(did you mean `at_least`\?\)"]),
        ("rank: x\n", ["key `base` is missing", "key `dataset` is missing", "key `rank`"]),
        (LEAST + "gate: {at_least: 90}\n", ["`gate.at_least`", "found 90"]),
        (LEAST + "preset: wizardry\n", ["`preset`", "'wizardry'"]),
        (LEAST + "name: ../../etc\n", ["`name`"]),
        ("base: [\n", ["line 2: not valid YAML"]),
        ("", ["holds NoneType, not keys"]),
        ("- base\n", ["holds list, not keys"]),
    ],
)
def test_wrong_recipe_names_file_and_keys(text: str, reasons: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, text)
    for reason in (*reasons, str(path)):
        with pytest.raises(ConfigError, match=reason):
            read_recipe(path)


def test_missing_recipe_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lorimer init"):
        read_recipe(tmp_path / "none.yaml")


def test_recipe_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_recipe(tmp_path / "recipe.yaml")


def test_written_recipe_reads_back_the_same() -> None:
    recipe = Recipe(base="b", dataset="d", rank=4, languages=["de"], gate={"at_least": 0.5})
    import yaml

    assert parse_recipe(yaml.safe_load(recipe_yaml(recipe)), "x") == recipe


def test_data_beside_the_recipe_is_found_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\nhello\n")
    assert read_recipe(write(tmp_path, "base: b\ndataset: rows.csv\n")).dataset == str(tmp_path / "rows.csv")
