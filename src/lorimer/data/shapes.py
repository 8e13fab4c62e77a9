"""The shapes rows come in: a row's keys tell which, and a row of a known shape becomes an Example. It knows nothing of files."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, cast

from lorimer.config import ColumnNames
from lorimer.data.example import Example, Message, Role
from lorimer.errors import ConfigError, DataError

Row = Mapping[str, Any]
ShapeName = Literal["chat messages", "ShareGPT", "prompt/completion", "Alpaca", "preference", "OpenAI preference", "text"]
Part = Literal[
    "messages", "prompt", "input", "completion", "rejected", "text", "system", "language", "licence", "consent", "subject", "group"
]

PAIRS = (
    *(("prompt", completion) for completion in ("completion", "response", "answer", "output")),
    ("input", "output"),
    ("question", "answer"),
)
PREFERENCE = ("chosen", "rejected")  # as columns are called, and as a recipe names them
PREFERENCE_PROMPTS = ("prompt", "question")
OPENAI_PREFERENCE = ("input", "preferred_output", "non_preferred_output")
ALPACA_INPUTS = ("input", "context")  # Dolly writes "context" and "response" where Alpaca writes "input" and "output"
ALPACA_OUTPUTS = ("output", "response")
LABELS = ("label", "labels", "label_text", "category", "class", "intent", "target", "sentiment", "topic")
EXTRAS: tuple[Part, ...] = ("licence", "consent", "subject", "group")
"""What is known of a row beside its content, in columns that are never guessed."""
OPTIONAL: frozenset[Part] = frozenset(("input", "system", "language", *EXTRAS))
ROLE_OF: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
ROLE_OF_SHAREGPT: Mapping[str, Role] = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How the rows of one file spell an example."""

    name: ShapeName
    columns: Mapping[Part, str]
    """Which column holds which part."""
    optional: frozenset[Part] = OPTIONAL
    """Parts a row may leave out."""

    def required(self) -> tuple[str, ...]:
        """The columns every row must have."""
        return tuple(column for part, column in self.columns.items() if part not in self.optional)


def recognise(keys: Collection[str]) -> Shape | None:
    """The shape that rows with these keys have, or None."""
    if _has_all(PREFERENCE, keys):  # first: pairs often come with the better conversation under "messages" once more
        return _preference(*PREFERENCE)
    if _has_all(OPENAI_PREFERENCE, keys):
        prompt, chosen, rejected = OPENAI_PREFERENCE
        return Shape(name="OpenAI preference", columns={"prompt": prompt, "completion": chosen, "rejected": rejected})
    if "messages" in keys:
        return Shape(name="chat messages", columns={"messages": "messages"})
    if "conversations" in keys:
        return Shape(name="ShareGPT", columns={"messages": "conversations"})
    output = _first(ALPACA_OUTPUTS, keys)
    if "instruction" in keys and output:
        return Shape(name="Alpaca", columns={"prompt": "instruction", "completion": output})
    for prompt, completion in PAIRS:
        if prompt in keys and completion in keys:
            return Shape(name="prompt/completion", columns={"prompt": prompt, "completion": completion})
    return Shape(name="text", columns={"text": "text"}) if "text" in keys else None


def add_optional(shape: Shape, keys: Collection[str]) -> Shape:
    """The same shape with the columns a row may leave out, where the file has them."""
    found: dict[Part, str | None] = {"language": _first(("language",), keys)}
    if shape.name != "text":
        found["system"] = _first(("system",), keys)
    if shape.name == "Alpaca":
        found["input"] = _first(ALPACA_INPUTS, keys)
    if shape.name == "preference":
        found["prompt"] = _first(PREFERENCE_PROMPTS, keys)
    taken = shape.columns.values()
    optional = {part: column for part, column in found.items() if column and column not in taken and part not in shape.columns}
    return replace(shape, columns={**shape.columns, **optional})


def shape_of_columns(columns: ColumnNames, keys: Collection[str], file: str) -> Shape | None:
    """The shape that explicit column names ask for; None if they name only extras and the rest is not recognised.

    Raises:
        ConfigError: naming every column that the file does not have, or parts that do not go together.
    """
    named = columns.model_dump(exclude_none=True)
    absent = [_describe_absent(name, column, keys, file) for name, column in named.items() if column not in keys]
    if absent:
        raise ConfigError("; ".join(absent))
    alone = [column for name, column in named.items() if name != "group"]  # rows may be grouped by what else they are made of
    if len(set(alone)) < len(alone):
        raise ConfigError(f"columns for {file!r}: one column is named for two parts ({named})")
    is_preference = bool(columns.chosen or columns.rejected)
    if is_preference and (columns.completion or columns.text):
        raise ConfigError(f"columns for {file!r}: `chosen` and `rejected` are two answers; name them, or `completion`, or `text`")
    if columns.text:
        shape: Shape | None = Shape(name="text", columns={"text": columns.text})
    elif is_preference:
        shape = _two_answers(named, keys, file)
    elif columns.completion or (columns.prompt and not _has_all(PREFERENCE, set(keys) - {columns.prompt})):
        shape = _pair(columns, keys, file)
    else:
        shape = recognise(keys)
    if shape and shape.name == "text" and (columns.prompt or columns.completion or columns.system):
        raise ConfigError(f"columns for {file!r}: plain text has no prompt, completion or system; name `text` or the others")
    wanted = cast(dict[Part, str], {"completion" if name == "chosen" else name: column for name, column in named.items()})
    return replace(shape, columns={**shape.columns, **wanted}) if shape else None


def read_example(row: Row, shape: Shape, *, system: str | None, source: str) -> Example:
    """Turn one row into an Example; `system` is put before it if the row brings none.

    Raises:
        DataError: saying what is wrong with the row (without its place, which the caller knows).
    """
    absent = [column for column in shape.required() if column not in row]
    if absent:
        raise DataError(f"has {list_columns(row)}, but {shape.name} rows, as the others here, have {list_columns(shape.required())}")
    tags = _read_tags(row, shape)
    if shape.name == "text":
        return Example(text=_read_text(row[shape.columns["text"]], shape.columns["text"]), source=source, tags=tags)
    messages, rejected = _read_preference(row, shape) if "rejected" in shape.columns else (_read_messages(row, shape), None)
    messages = _with_system(messages, row, shape, system)
    _check_order(messages)
    return Example(messages=messages, rejected=rejected, source=source, tags=tags)


def read_extras(row: Row, shape: Shape) -> dict[Part, str]:
    """What a row's columns say of licence, consent, subject and group; a number is its digits, nothing is an empty text.

    Raises:
        DataError: if one holds neither a text nor a number.
    """
    found: dict[Part, str] = {}
    for part in EXTRAS:
        column = shape.columns.get(part)
        if column is not None:
            found[part] = _read_short(row.get(column), column)
    return found


def unused_columns(row: Row, shape: Shape) -> Iterator[str]:
    """The keys of a row, and of its turns, that no part of the example was made from."""
    used = set(shape.columns.values())
    for key, value in row.items():
        if key not in used and value is not None and not (key == "tags" and isinstance(value, dict)):
            yield key
        elif key in used and isinstance(value, list):
            yield from _unused_in_turns(key, value, ("from", "value") if shape.name == "ShareGPT" else ("role", "content"))
        elif key in used and isinstance(value, dict):  # OpenAI's preference input, which may also define tools
            yield from (f"{key}.{inner}" for inner, given in value.items() if inner != "messages" and given is not None)
            yield from _unused_in_turns(f"{key}.messages", value["messages"], ("role", "content"))


def list_columns(keys: Collection[str]) -> str:
    """Column names for a message, shortened where a file without a header put whole sentences there."""
    shown = [repr(shorten(key)) for key in keys]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")


def shorten(text: str, max_chars: int = 40) -> str:
    """The beginning of a text, marked as such."""
    return text if len(text) <= max_chars else text[:max_chars] + "…"


def _first(names: Collection[str], keys: Collection[str]) -> str | None:
    return next((name for name in names if name in keys), None)


def _has_all(names: Collection[str], keys: Collection[str]) -> bool:
    return all(name in keys for name in names)


def _unused_in_turns(name: str, turns: list[dict[str, Any]], known: tuple[str, str]) -> Iterator[str]:
    yield from dict.fromkeys(f"{name}[].{inner}" for turn in turns for inner in turn if inner not in known)


def _pair(columns: ColumnNames, keys: Collection[str], file: str) -> Shape:
    """The pair of which at least one half was named; the other may be a column that is recognised.

    Raises:
        ConfigError: if it is not.
    """
    prompt = columns.prompt or _first([name for name, _ in PAIRS if name != columns.completion], keys)
    completion = columns.completion or _first([name for _, name in PAIRS if name != columns.prompt], keys)
    if not prompt or not completion:
        missing = "completion" if columns.prompt else "prompt"
        raise ConfigError(f"columns for {file!r}: the {missing} column must be named too; the file has {list_columns(keys)}")
    return Shape(name="prompt/completion", columns={"prompt": prompt, "completion": completion})


def _two_answers(named: Mapping[str, str], keys: Collection[str], file: str) -> Shape:
    """The pair of answers of which at least one was named; the other may have its usual name.

    Raises:
        ConfigError: if it has not.
    """
    usual = [name for name in PREFERENCE if name in keys and name not in named.values()]
    missing = [name for name in PREFERENCE if name not in named and name not in usual]
    if missing:
        raise ConfigError(f"columns for {file!r}: the {missing[0]} column must be named too; the file has {list_columns(keys)}")
    chosen, rejected = (named.get(name, name) for name in PREFERENCE)
    return _preference(chosen, rejected)


def _preference(chosen: str, rejected: str) -> Shape:
    """Its prompt may be missing: both answers may bring their whole conversation."""
    return Shape(name="preference", columns={"completion": chosen, "rejected": rejected}, optional=OPTIONAL | {"prompt"})


def _describe_absent(part: str, column: str, keys: Collection[str], file: str) -> str:
    near = get_close_matches(column, keys, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{file!r} has no column {column!r}, named for {part}{hint}; it has {list_columns(keys)}"


def _read_messages(row: Row, shape: Shape) -> tuple[Message, ...]:
    columns = shape.columns
    if shape.name == "chat messages":
        return _read_turns(row[columns["messages"]], columns["messages"], "role", "content", ROLE_OF)
    if shape.name == "ShareGPT":
        return _read_turns(row[columns["messages"]], columns["messages"], "from", "value", ROLE_OF_SHAREGPT)
    if shape.name == "Alpaca":
        prompt = _read_text(row[columns["prompt"]], columns["prompt"])
        given = row.get(columns.get("input", ""))
        if given not in (None, ""):
            prompt = f"{prompt}\n\n{_read_text(given, columns['input'])}"
        return (Message(role="user", content=prompt), *_read_side(row, columns["completion"], "assistant"))
    return (*_read_side(row, columns["prompt"], "user"), *_read_side(row, columns["completion"], "assistant"))


def _read_preference(row: Row, shape: Shape) -> tuple[tuple[Message, ...], str]:
    """The conversation that ends with the better answer, and the worse answer to the same prompt.

    In the forms of TRL's documentation ("Dataset formats") and of OpenAI's ("Direct preference optimization").
    """
    chosen, rejected = shape.columns["completion"], shape.columns["rejected"]
    prompt = _read_prompt(row, shape)
    better, worse = (_read_conversation(row, column, prompt, shape) for column in (chosen, rejected))
    if _bare(better[:-1]) != _bare(worse[:-1]):
        raise DataError(f"{chosen!r} and {rejected!r} answer different prompts, so they cannot be compared")
    if better[-1].content.strip() == worse[-1].content.strip():
        raise DataError(f"{chosen!r} and {rejected!r} are the same answer, so there is no preference to learn")
    return better, worse[-1].content


def _read_prompt(row: Row, shape: Shape) -> tuple[Message, ...]:
    """What both answers of a pair answer, or nothing if they bring their conversation with them."""
    column = shape.columns.get("prompt", "")
    value = row.get(column)
    if shape.name != "OpenAI preference":
        return () if value is None else _read_side(row, column, "user")
    if not isinstance(value, dict):
        raise DataError(f"{column!r} is {kind(value)}, not an object with 'messages'")
    return _read_turns(value.get("messages"), f"{column}.messages", "role", "content", ROLE_OF)


def _read_conversation(row: Row, column: str, prompt: tuple[Message, ...], shape: Shape) -> tuple[Message, ...]:
    """One side of a pair: an answer to the prompt, or a whole conversation, which must then hold the prompt if there is one."""
    turns = _read_side(row, column, "assistant")
    if turns[-1].role != "assistant":
        raise DataError(f"{column!r} does not end with an assistant turn, so there is no answer to learn")
    if turns[0].role == "assistant":
        if not prompt:
            raise DataError(f"{column!r} is an answer alone, but the row has no prompt that it answers")
        return (*prompt, *turns)
    if not set(_bare(prompt)) <= set(_bare(turns[:-1])):
        raise DataError(f"{column!r} is a whole conversation, but {shape.columns['prompt']!r} is not part of it")
    return turns


def _bare(messages: tuple[Message, ...]) -> tuple[tuple[Role, str], ...]:
    """Turns without the white space that curation takes off."""
    return tuple((message.role, message.content.strip()) for message in messages)


def _read_side(row: Row, column: str, role: Role) -> tuple[Message, ...]:
    """One side of a pair: a text, or a list of turns as in TRL's conversational prompt-completion format ("Dataset formats")."""
    value = row[column]
    if isinstance(value, list):
        return _read_turns(value, column, "role", "content", ROLE_OF)
    return (Message(role=role, content=_read_text(value, column)),)


def _read_turns(value: Any, column: str, role_key: str, content_key: str, role_of: Mapping[str, Role]) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise DataError(f"{column!r} is {kind(value)}, not a list of turns")
    if not value:
        raise DataError(f"{column!r} is an empty list")
    messages = []
    for number, turn in enumerate(value):
        place = f"{column}[{number}]"
        if not isinstance(turn, dict):
            raise DataError(f"'{place}' is {kind(turn)}, not an object with {role_key!r} and {content_key!r}")
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in role_of:
            found = repr(shorten(role)) if isinstance(role, str) else kind(role)
            raise DataError(f"'{place}.{role_key}' is {found}, not one of {', '.join(role_of)}")
        messages.append(Message(role=role_of[role], content=_read_text(turn.get(content_key), f"{place}.{content_key}")))
    return tuple(messages)


def _read_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name!r} is {kind(value)}, not a text")
    if not value.strip():
        raise DataError(f"{name!r} is empty")
    return value


def kind(value: Any) -> str:
    """What a value is, in words: one of JSON's, or what else a table may hold."""
    names = {type(None): "null", bool: "a Boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value)) or f"of type {type(value).__name__}"


def _read_short(value: Any, column: str) -> str:
    if value is None or value != value:  # NaN is how tables of numbers say null
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{column!r} is {kind(value)}, not a text or a number")
    return str(value).strip()


def _read_tags(row: Row, shape: Shape) -> dict[str, str]:
    tags = row.get("tags")
    tags = dict(tags) if isinstance(tags, dict) else {}
    wrong = [key for key, value in tags.items() if not isinstance(value, str)]
    if wrong:
        raise DataError(f"{'tags.' + shorten(wrong[0])!r} is {kind(tags[wrong[0]])}, not a text")
    column = shape.columns.get("language", "")
    language = row.get(column)
    if language in (None, ""):
        return tags
    language = _read_text(language, column).strip()
    if tags.get("language", language) != language:
        raise DataError(f"{column!r} says {shorten(language)!r} but its tags say {shorten(tags['language'])!r}")
    return {**tags, "language": language}


def _with_system(messages: tuple[Message, ...], row: Row, shape: Shape, system: str | None) -> tuple[Message, ...]:
    column = shape.columns.get("system", "")
    own = row.get(column)
    if messages[0].role == "system":
        if own not in (None, ""):
            raise DataError(f"has a system message and a column {column!r} too; keep one")
        return messages
    text = _read_text(own, column) if own not in (None, "") else system
    return (Message(role="system", content=text), *messages) if text else messages


def _check_order(messages: tuple[Message, ...]) -> None:
    """A conversation is: at most one system message, then user and assistant in turn, an assistant last.

    Raises:
        DataError: if it is not.
    """
    turns = messages[1:] if messages[0].role == "system" else messages
    for number, message in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if message.role != expected:
            raise DataError(f"roles do not alternate: turn {number + 1} is {message.role!r} where {expected!r} should speak")
    if len(turns) % 2 or not turns:
        raise DataError("does not end with an assistant turn, so there is no answer to learn")
