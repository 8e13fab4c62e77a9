"""Rows of every shape become the same conversation; rows that cannot are refused with a reason."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


USER, GOOD, BAD = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "assistant", "content": "B"}
LONGER = [USER, BAD, {"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "preference"),
        ({"question": "Q", "chosen": "A", "rejected": "B"}, "preference"),
        ({"prompt": [USER], "chosen": "A", "rejected": "B"}, "preference"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, "preference"),
        ({"prompt": "Q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "preference"),
        ({"prompt": "Q", "chosen": [USER, GOOD], "rejected": [BAD]}, "preference"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "preference"),
        ({"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "preference"),
        ({"prompt": "Q", "messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "preference"),
        ({"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "OpenAI preference"),
    ],
)
def test_preference_is_recognised_and_keeps_both_answers(row: Row, name: str) -> None:
    shape = shape_of(row)
    example = read_example(row, shape, system=None, source="f:1")
    assert (shape.name, example.messages, example.rejected) == (name, (ASK, REPLY), "B")


def test_preference_may_follow_earlier_turns() -> None:
    rows: list[Row] = [
        {"prompt": LONGER, "chosen": "A", "rejected": "B"},
        {"prompt": "Q", "chosen": [*LONGER, GOOD], "rejected": [*LONGER, BAD]},
        {"input": {"messages": LONGER}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    ]
    found = {read_example(row, shape_of(row), system="S", source="f:1").digest for row in rows}
    assert len(found) == 1


def test_preference_prompt_is_where_a_column_name_says() -> None:
    row = {"ask": "Q", "chosen": "A", "rejected": "B"}
    shape = shape_of_columns(ColumnNames(prompt="ask"), row, "f.csv")
    assert shape is not None
    assert read_example(row, add_optional(shape, row), system=None, source="f:1").rejected == "B"
    plain = shape_of_columns(ColumnNames(prompt="ask", completion="chosen"), row, "f.csv")
    assert plain is not None
    assert plain.name == "prompt/completion"


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        (ColumnNames(chosen="better", rejected="worse"), {"prompt": "Q", "better": "A", "worse": "B"}),
        (ColumnNames(chosen="better", rejected="worse"), {"better": [USER, GOOD], "worse": [USER, BAD]}),
        (ColumnNames(prompt="ask", chosen="better", rejected="worse"), {"ask": "Q", "better": "A", "worse": "B", "messages": CHAT}),
        (ColumnNames(chosen="better"), {"question": "Q", "better": "A", "rejected": "B", "chosen": "C"}),
        (ColumnNames(rejected="worse"), {"question": "Q", "chosen": "A", "worse": "B", "answer": "C"}),
        (ColumnNames(chosen="rejected", rejected="chosen"), {"question": "Q", "chosen": "B", "rejected": "A"}),
    ],
)
def test_both_answers_are_where_column_names_say(columns: ColumnNames, row: Row) -> None:
    shape = shape_of_columns(columns, row, "f.csv")
    assert shape is not None
    example = read_example(row, add_optional(shape, row), system=None, source="f:1")
    assert (shape.name, example.messages, example.rejected) == ("preference", (ASK, REPLY), "B")


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


def pair(**changes: Any) -> Row:
    return {"prompt": "Q", "chosen": "A", "rejected": "B", **changes}


def openai_pair(**changes: Any) -> Row:
    return {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD], **changes}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pair(rejected=""), "'rejected' is empty"),
        (pair(rejected=None), "'rejected' is null, not a text"),
        (pair(chosen={}), "'chosen' is an object, not a text"),
        (pair(rejected=[]), "'rejected' is an empty list"),
        (pair(prompt=""), "'prompt' is empty"),
        (pair(prompt=None), "'chosen' is an answer alone, but the row has no prompt"),
        (pair(rejected="A"), "'chosen' and 'rejected' are the same answer, so there is no preference"),
        (pair(rejected=" A\n"), "are the same answer"),
        (pair(rejected=[GOOD]), "are the same answer"),
        (pair(rejected=[USER]), "'rejected' does not end with an assistant turn"),
        (pair(prompt="R", chosen=[USER, GOOD]), "'chosen' is a whole conversation, but 'prompt' is not part of it"),
        (pair(prompt=None, chosen=[USER, GOOD]), "'rejected' is an answer alone"),
        (pair(chosen=[*LONGER, GOOD], rejected=[USER, BAD]), "'chosen' and 'rejected' answer different prompts"),
        (pair(chosen=[{"role": "system", "content": "S"}, USER, GOOD]), "answer different prompts"),
        (pair(prompt=[USER, GOOD]), "turn 3 is 'assistant' where 'user' should speak"),
        ({"chosen": "Human: Q Assistant: A", "rejected": "Human: Q Assistant: B"}, "'chosen' is an answer alone"),
        (openai_pair(input="Q"), "'input' is a text, not an object with 'messages'"),
        (openai_pair(input={}), "'input.messages' is null, not a list"),
        (openai_pair(input={"messages": []}), "'input.messages' is an empty list"),
        (openai_pair(non_preferred_output=[GOOD]), "'preferred_output' and 'non_preferred_output' are the same answer"),
        (openai_pair(preferred_output=[{"role": "tool", "content": "x"}]), r"'preferred_output\[0\].role' is 'tool'"),
    ],
)
def test_pair_that_teaches_nothing_says_why(row: Row, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_example(row, shape_of(row), system=None, source="f:1")


@pytest.mark.parametrize(
    ("row", "others", "reason"),
    [
        ({"text": "t"}, {"prompt": "Q", "completion": "A"}, "has 'text', but prompt/completion rows"),
        (pair(), {"prompt": "Q", "completion": "A"}, "has 'prompt', 'chosen', 'rejected', but prompt/completion rows"),
        ({"prompt": "Q", "chosen": "A"}, pair(), "but preference rows, as the others here, have 'chosen', 'rejected'"),
        (pair(), openai_pair(), "but OpenAI preference rows"),
    ],
)
def test_row_of_another_shape_is_refused(row: Row, others: Row, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_example(row, shape_of(others), system=None, source="f:1")


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
    row = openai_pair(input={"messages": [{**USER, "name": "Ann"}], "tools": [], "more": None}, preferred_output=[{**GOOD, "weight": 0}])
    assert list(unused_columns(row, shape_of(row))) == ["input.tools", "input.messages[].name", "preferred_output[].weight"]
    assert list(unused_columns(pair(messages=CHAT, score=1), shape_of(pair()))) == ["messages", "score"]


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
        (ColumnNames(chosen="q", rejected="answer"), {"completion": "q", "rejected": "answer"}),
        (ColumnNames(prompt="q", chosen="question", rejected="answer"), {"prompt": "q", "completion": "question", "rejected": "answer"}),
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
        (ColumnNames(chosen="text"), "the rejected column must be named too; the file has 'text', 'category'"),
        (ColumnNames(rejected="text"), "the chosen column must be named too"),
        (ColumnNames(chosen="texts", rejected="category"), "no column 'texts', named for chosen .did you mean 'text'"),
        (ColumnNames(chosen="text", rejected="text"), "one column is named for two parts"),
        (ColumnNames(chosen="text", completion="category"), "`chosen` and `rejected` are two answers; name them, or `completion`"),
        (ColumnNames(rejected="category", text="text"), "`chosen` and `rejected` are two answers; name them, or `completion`"),
    ],
)
def test_columns_that_cannot_be_are_refused(columns: ColumnNames, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shape_of_columns(columns, ["text", "category"], "f.csv")


def test_long_column_names_are_shortened() -> None:
    assert len(list_columns(["x" * 500] * 100)) < 1_100


def test_preference_answer_is_not_its_prompt() -> None:
    with pytest.raises(ConfigError, match="the completion column must be named too"):
        shape_of_columns(ColumnNames(prompt="chosen"), ["chosen", "rejected"], "f.csv")
    with pytest.raises(ConfigError, match="the chosen column must be named too"):
        shape_of_columns(ColumnNames(prompt="chosen", rejected="worse"), ["chosen", "worse"], "f.csv")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9).filter(str.strip)


@given(TEXTS, TEXTS, TEXTS)
def test_pair_is_the_same_however_it_is_spelled(prompt: str, chosen: str, rejected: str) -> None:
    user, good, bad = ({"role": role, "content": text} for role, text in (("user", prompt), ("assistant", chosen), ("assistant", rejected)))
    rows: list[Row] = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"prompt": prompt, "chosen": [user, good], "rejected": [user, bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"input": {"messages": [user]}, "preferred_output": [good], "non_preferred_output": [bad]},
    ]
    if chosen.strip() == rejected.strip():
        for row in rows:
            with pytest.raises(DataError, match="are the same answer"):
                read_example(row, shape_of(row), system=None, source="f:1")
    else:
        examples = {read_example(row, shape_of(row), system=None, source="f:1").digest for row in rows}
        assert len(examples) == 1


# what strangers send: pairs that are right or almost so, and in some a value of any kind
ROLES = st.sampled_from(["system", "user", "assistant", "tool", None])
TURNS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": st.sampled_from(["Q", " A", "B", "", None])}), max_size=4)
ANY = st.sampled_from(["", " ", None, 3, 0.5, True, [], {}, ["Q"], {"messages": "Q"}]) | TURNS
PROMPTS = st.sampled_from(["Q", [USER], LONGER, {"messages": [USER]}, {"messages": LONGER, "tools": []}])
SIDES = st.sampled_from(["A", " A", "B", [GOOD], [BAD], [USER, GOOD], [USER, BAD], [*LONGER, GOOD], [*LONGER, BAD]])


@pytest.mark.parametrize("keys", [("prompt", "chosen", "rejected"), ("input", "preferred_output", "non_preferred_output")])
@given(values=st.tuples(PROMPTS, SIDES, SIDES), strange=st.dictionaries(st.integers(0, 2), ANY, max_size=2))
def test_any_pair_is_read_or_refused(keys: tuple[str, str, str], values: tuple[Any, Any, Any], strange: dict[int, Any]) -> None:
    row = {key: strange.get(place, value) for place, (key, value) in enumerate(zip(keys, values, strict=True))}
    try:
        example = read_example(row, shape_of(row), system=None, source="f:1")
    except DataError:
        return
    assert example.rejected
    assert example.rejected.strip() not in ("", example.answer.strip())
    roles = [message.role for message in example.messages if message.role != "system"]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert all(key not in keys for key in unused_columns(row, shape_of(row)))
