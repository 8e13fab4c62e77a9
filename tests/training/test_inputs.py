"""Of broken data and a missing base both are named; a base that is here, or takes minutes to find, is not spoken of."""

from pathlib import Path

import pytest

from fakes import save_tiny_base
from lorimer.config import Recipe
from lorimer.errors import DataError, NotFoundError
from lorimer.training import inputs
from lorimer.training.inputs import read_datasets


def recipe(folder: Path, text: str, base: str = "/no/base", name: str = "rows") -> Recipe:
    (folder / f"{name}.jsonl").write_text(text)
    return Recipe(base=base, dataset=str(folder / f"{name}.jsonl"))


def test_broken_data_and_a_missing_base_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:1: not valid JSON.*; base '/no/base' is neither a shipped base nor a folder"):
        read_datasets([recipe(tmp_path, "{")])


def test_problems_of_all_recipes_are_named_once_each(tmp_path: Path) -> None:
    asked = [recipe(tmp_path, text, name=name) for name, text in (("a", "{"), ("b", ""), ("c", '{"text": "t"}'))]
    with pytest.raises(DataError) as error:
        read_datasets([*asked, Recipe(base="/no/base", dataset="ghost")])
    words = ("a.jsonl:1: not valid JSON", "b.jsonl' holds no rows", "dataset 'ghost'", "base '/no/base'")
    assert [str(error.value).count(part) for part in words] == [1, 1, 1, 1]
    assert "c.jsonl" not in str(error.value)


@pytest.mark.parametrize("online", [False, True])
def test_only_what_is_wrong_is_named(online: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0" if online else "1")
    save_tiny_base(tmp_path / "base")
    with pytest.raises(NotFoundError, match=r"^dataset 'ghost' is [^;]*$"):
        read_datasets([Recipe(base="some/hub-id" if online else str(tmp_path / "base"), dataset="ghost")])


def test_a_shipped_base_is_not_prepared_for_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "find_base", lambda name: pytest.fail("it was looked for"))
    monkeypatch.setattr(inputs, "find_spec", lambda name: object())
    with pytest.raises(DataError, match="not valid JSON"):
        read_datasets([recipe(tmp_path, "{", "gemma3-270m")])


def test_a_shipped_base_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    for module in (inputs, importlib.util):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"not valid JSON.*; base 'gemma3-270m' is not installed"):
        read_datasets([recipe(tmp_path, "{", "gemma3-270m")])


def test_a_missing_base_is_named_where_the_data_is_right(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"^base '/no/base' is [^;]*; or give a folder"):
        read_datasets([recipe(tmp_path, '{"text": "t"}'), recipe(tmp_path, '{"text": "u"}', name="more")])


def test_datasets_are_returned_in_the_order_of_the_recipes(tmp_path: Path) -> None:
    save_tiny_base(tmp_path / "base")
    asked = [recipe(tmp_path, f'{{"text": "{name}"}}', str(tmp_path / "base"), name) for name in ("b", "a")]
    assert [(dataset.name, dataset.train[0].text) for dataset in read_datasets(asked)] == [("b", "b"), ("a", "a")]
