"""Rows of every shape become the same conversation; rows that cannot are refused with a reason."""

from typing import Any

import pytest

from lorimer.config import ColumnNames
from lorimer.data.example import Message
from lorimer.data.shapes import Shape, add_optional, list_columns, read_example, recognise, shape_of_columns, unused_columns
from lorimer.errors import ConfigError, DataError

Row = dict[str, Any]
ASK, REPLY = Message(role="user", content="Q"), Message(role="assistant", content="A")
CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


def shape_of(row: Row) -> Shape:
    shape = recognise(row)
    assert shape is not None
    return add_optional(shape, row)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": CHAT}, "chat messages"),
        ({"prompt": "Q", "completion": "A"}, "prompt/completion"),
        ({"prompt": "Q", "response": "A"}, "prompt/completion"),
        ({"prompt": "Q", "answer": "A"}, "prompt/completion"),
        ({"prompt": "Q", "output": "A"}, "prompt/completion"),
        ({"input": "Q", "output": "A"}, "prompt/completion"),
        ({"question": "Q", "answer": "A"}, "prompt/completion"),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "prompt/completion"),
        ({"prompt": CHAT[:1], "completion": "A"}, "prompt/completion"),
        ({"instruction": "Q", "input": "", "output": "A"}, "Alpaca"),
        ({"instruction": "Q", "context": None, "response": "A"}, "Alpaca"),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "ShareGPT"),
    ],
)
def test_shape_is_recognised_and_becomes_messages(row: Row, name: str) -> None:
    shape = shape_of(row)
    assert shape.name == name
    assert read_example(row, shape, system=None, source="f:1").messages == (ASK, REPLY)


def test_text_row_becomes_text() -> None:
    example = read_example({"text": "once"}, shape_of({"text": "once"}), system=None, source="f:1")
    assert (example.text, example.messages) == ("once", ())


def test_alpaca_input_follows_its_instruction() -> None:
    row = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    assert read_example(row, shape_of(row), system=None, source="f:1").prompt[0].content == "Translate.\n\nGuten Tag"


@pytest.mark.parametrize(
    ("row", "system"),
    [
        ({"prompt": "Q", "completion": "A"}, "given"),
        ({"prompt": "Q", "completion": "A", "system": "own"}, "own"),
        ({"prompt": "Q", "completion": "A", "system": ""}, "given"),
        ({"messages": CHAT}, "given"),
        ({"messages": [{"role": "system", "content": "own"}, *CHAT]}, "own"),
        ({"messages": [{"role": "developer", "content": "own"}, *CHAT]}, "own"),
    ],
)
def test_system_text_is_put_before_rows_that_have_none(row: Row, system: str) -> None:
    example = read_example(row, shape_of(row), system="given", source="f:1")
    assert example.messages == (Message(role="system", content=system), ASK, REPLY)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": None, "completion": "A"}, "'prompt' is null, not a text"),
        ({"prompt": 3, "completion": "A"}, "'prompt' is a number, not a text"),
        ({"prompt": "Q", "completion": {"a": 1}}, "'completion' is an object, not a text"),
        ({"prompt": "Q", "completion": " \n"}, "'completion' is empty"),
        ({"messages": "hi"}, "'messages' is a text, not a list"),
        ({"messages": []}, "'messages' is an empty list"),
        ({"messages": ["hi"]}, r"'messages\[0\]' is a text, not an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "'tool', not one of system, developer, user, assistant"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "is a list, not one of"),
        ({"messages": [{"role": "user"}]}, r"'messages\[0\].content' is null"),
        ({"messages": CHAT[:1]}, "does not end with an assistant turn"),
        ({"messages": [{"role": "system", "content": "S"}]}, "does not end with an assistant turn"),
        ({"messages": CHAT[1:]}, "turn 1 is 'assistant' where 'user' should speak"),
        ({"messages": [*CHAT, *CHAT[1:]]}, "turn 3 is 'assistant' where 'user' should speak"),
        ({"messages": [*CHAT, {"role": "system", "content": "S"}]}, "turn 3 is 'system'"),
        ({"messages": [{"role": "system", "content": "S"}, *CHAT], "system": "T"}, "a system message and a column 'system' too"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "'bot', not one of system, human"),
        ({"text": []}, "'text' is a list, not a text"),
        ({"text": "t", "language": 5}, "'language' is a number"),
        ({"text": "t", "tags": {"language": 5}}, "'tags.language' is a number"),
        ({"text": "t", "language": "en", "tags": {"language": "de"}}, "'en' but its tags say 'de'"),
    ],
)
def test_row_that_cannot_be_learned_from_says_why(row: Row, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_example(row, shape_of(row), system=None, source="f:1")


def test_row_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match="has 'text', but prompt/completion rows"):
        read_example({"text": "t"}, shape_of({"prompt": "Q", "completion": "A"}), system=None, source="f:1")


@pytest.mark.parametrize(
    ("row", "tags"),
    [
        ({"text": "t", "language": "de"}, {"language": "de"}),
        ({"text": "t", "language": None}, {}),
        ({"text": "t", "tags": {"team": "a"}, "language": "de"}, {"team": "a", "language": "de"}),
        ({"text": "t", "tags": ["a"]}, {}),
    ],
)
def test_language_and_tags_become_tags(row: Row, tags: dict[str, str]) -> None:
    assert read_example(row, shape_of(row), system=None, source="f:1").tags == tags


def test_columns_that_nothing_is_made_of_are_named() -> None:
    row = {"messages": [{**CHAT[0], "name": "Ann"}, {**CHAT[1], "weight": 0}], "id": 1, "note": None, "tags": {}, "language": "en"}
    assert list(unused_columns(row, shape_of(row))) == ["messages[].name", "messages[].weight", "id"]
    assert list(unused_columns({"text": "t", "tags": ["x"]}, shape_of({"text": "t"}))) == ["tags"]


def test_explicit_columns_win() -> None:
    keys = ["text", "category", "prompt", "completion", "language"]
    shape = shape_of_columns(ColumnNames(prompt="text", completion="category"), keys, "f.csv")
    assert shape is not None
    assert (shape.name, dict(shape.columns)) == ("prompt/completion", {"prompt": "text", "completion": "category"})


@pytest.mark.parametrize(
    ("columns", "columns_found"),
    [
        (ColumnNames(prompt="q"), {"prompt": "q", "completion": "answer"}),
        (ColumnNames(completion="q"), {"prompt": "question", "completion": "q"}),
        (ColumnNames(language="q"), {"prompt": "question", "completion": "answer", "language": "q"}),
        (ColumnNames(text="q"), {"text": "q"}),
    ],
)
def test_columns_not_named_are_recognised(columns: ColumnNames, columns_found: dict[str, str]) -> None:
    shape = shape_of_columns(columns, ["q", "question", "answer"], "f.csv")
    assert shape is not None
    assert dict(shape.columns) == columns_found


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ColumnNames(prompt="txt", completion="categories"),
            "'f.csv' has no column 'txt', named for prompt .did you mean 'text'?.*; .*'categor",
        ),
        (ColumnNames(prompt="text"), "the completion column must be named too"),
        (ColumnNames(completion="text"), "the prompt column must be named too"),
        (ColumnNames(prompt="text", completion="text"), "one column is named for two parts"),
        (ColumnNames(text="text", prompt="category"), "plain text has no prompt"),
        (ColumnNames(system="category"), "plain text has no prompt, completion or system"),
    ],
)
def test_columns_that_cannot_be_are_refused(columns: ColumnNames, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shape_of_columns(columns, ["text", "category"], "f.csv")


def test_long_column_names_are_shortened() -> None:
    assert len(list_columns(["x" * 500] * 100)) < 1_100
