"""The tables of fields in docs/serving.md are those of the request bodies; `python tests/serving/test_fields.py` writes them anew."""

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
from openai.resources.chat.completions import Completions as ChatCompletions
from openai.resources.completions import Completions

from lorimer.serving.body import RequestPart
from lorimer.serving.generate import GenerateParameters, GenerateRequest
from lorimer.serving.generation import NamedAdapter, StreamOptions
from lorimer.serving.messages import Called, CalledFunction, ChatMessage, FunctionDefinition, JsonSchema, ResponseFormat, TextPart, Tool
from lorimer.serving.protocol import ChatCompletionRequest, CompletionRequest

DOCS = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
BEGIN, END = "<!-- fields: made by tests/serving/test_fields.py -->", "<!-- end of fields -->"
CLIENTS_OWN = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
PARTS: dict[str, type[RequestPart]] = {
    "messages[]": ChatMessage,
    "messages[].content[]": TextPart,
    "messages[].tool_calls[]": Called,
    "messages[].tool_calls[].function": CalledFunction,
    "tools[]": Tool,
    "tools[].function": FunctionDefinition,
    "response_format": ResponseFormat,
    "response_format.json_schema": JsonSchema,
    "stream_options": StreamOptions,
    "adapters[]": NamedAdapter,
    "/generate": GenerateRequest,
    "/generate parameters": GenerateParameters,
}


def tables() -> str:
    """As the documentation has them."""
    bodies = {"/v1/chat/completions": (ChatCompletionRequest, ChatCompletions), "/v1/completions": (CompletionRequest, Completions)}
    columns = {route: {**dict.fromkeys(_sent_by(client), "400"), **_taken_by(body)} for route, (body, client) in bodies.items()}
    names = sorted({name for column in columns.values() for name in column})
    rows = [(f"`{name}`", *(column.get(name, "400") for column in columns.values())) for name in names]
    parts = [(f"`{place}`", *_summed(_taken_by(part))) for place, part in PARTS.items()]
    first = _table(("field", *(f"`{route}`" for route in columns)), rows)
    return "\n".join([*first, "", *_table(("in", "honoured", "taken with these values only"), parts)])


def _sent_by(client: type) -> set[str]:
    """What OpenAI's own client can send."""
    return set(inspect.signature(client.create).parameters) - CLIENTS_OWN


def _taken_by(part: type[RequestPart]) -> dict[str, str]:
    own = {field.alias or name: "yes" for name, field in part.model_fields.items()}
    return {**{name: f"only {_spelled(values)}" for name, values in part.neutral.items()}, **own}


def _spelled(values: tuple[Any, ...]) -> str:
    return ", ".join(f"`{json.dumps(value)}`" for value in values)


def _summed(taken: Mapping[str, str]) -> tuple[str, str]:
    only = [f"`{name}`: {how.removeprefix('only ')}" for name, how in taken.items() if how != "yes"]
    return ", ".join(f"`{name}`" for name, how in taken.items() if how == "yes"), "; ".join(only)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(row)} |" for row in rows)


def test_documented_fields_are_those_that_are_taken() -> None:
    written = DOCS.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    assert written == tables(), "write them anew: python tests/serving/test_fields.py"


def test_everything_openais_client_sends_is_documented() -> None:
    written = DOCS.read_text(encoding="utf-8")
    for name in _sent_by(ChatCompletions) | _sent_by(Completions):
        assert f"| `{name}` |" in written, f"openai {openai.__version__} sends {name!r}"


if __name__ == "__main__":
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
    DOCS.write_text(f"{before}{BEGIN}\n{tables()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
