"""The stock `openai` client against a running server: every field it can send is honoured, in the shapes it reads, or refused by name."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from fakes import tiny_base
from lorimer.model.base import Base
from lorimer.serving.server import background_server

MESSAGES: Any = [{"role": "user", "content": "My invoice is wrong"}]
ASK: dict[str, Any] = {"model": "helpdesk", "messages": MESSAGES, "temperature": 0, "max_tokens": 12}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Says how warm it is.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"unit": {"type": "string", "enum": ["C", "F"]}},
            "required": ["unit"],
            "additionalProperties": False,
        },
    },
}


class Point(BaseModel):
    """What an answer is parsed into."""

    is_on: bool
    colour: str | None = None


@pytest.fixture(scope="session")
def base() -> Base:
    """A base with room for descriptions of tools."""
    own = tiny_base()
    own.model.config.max_position_embeddings = 4096
    return own


@pytest.fixture
def client(app: FastAPI) -> Iterator[openai.OpenAI]:
    """The stock client of a running server."""
    with background_server(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2, "seed": 7, "temperature": 1.3},
        {"stop": ["zz"]},
        {"stop": "zz"},
        {"temperature": 0.7, "top_p": 0.9, "seed": 1},
        {"presence_penalty": 0.5, "frequency_penalty": -0.5},
        {"logit_bias": {"70": -100, "71": 5}},
        {"logprobs": True, "top_logprobs": 5},
        {"max_completion_tokens": 5, "max_tokens": openai.omit},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "text"}},
        {"tools": [WEATHER], "tool_choice": "auto", "parallel_tool_calls": False},
        {"tools": [WEATHER], "tool_choice": "none"},
        {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 120},
        {"user": "team-7", "store": False, "service_tier": "auto", "metadata": {}},
        {"extra_body": {"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.1, "ignore_eos": True}},
        {"model": "base", "extra_body": {"adapters": [{"id": "helpdesk@v1", "scale": 0.7}, {"id": "billing"}]}},
        {"model": "base", "extra_body": {"adapter_id": "billing"}},
        {"model": "helpdesk@v1*0.7+billing"},
    ],
)
def test_every_field_of_chat_is_honoured_whole_and_streamed(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    asked = {**ASK, "seed": 3, **fields}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage
    assert {chunk.model for chunk in chunks} == {whole.model}
    for choice in whole.choices:
        own = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.delta.content or "" for part in own) == (choice.message.content or "")
        assert [part.finish_reason for part in own if part.finish_reason] == [choice.finish_reason]
        places = [place for part in own if part.logprobs for place in part.logprobs.content or []]
        wanted = (choice.logprobs and choice.logprobs.content) or []
        assert [place.token for place in places] == [place.token for place in wanted]
        assert [place.logprob for place in places] == pytest.approx([place.logprob for place in wanted], abs=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2, "best_of": 2, "temperature": 1.0},
        {"logprobs": 3},
        {"echo": True},
        {"echo": True, "logprobs": 2, "n": 2},
        {"echo": True, "logprobs": 1, "max_tokens": 0},
        {"prompt": ["Dear", "Yours"], "n": 2, "temperature": 1.0},
        {"prompt": [[70, 71], [72]]},
        {"stop": ["zz"], "presence_penalty": 1, "frequency_penalty": 1, "logit_bias": {"70": 3}, "top_p": 0.5},
        {"extra_body": {"top_k": 3, "response_format": {"type": "json_object"}}},
        {"extra_body": {"ignore_eos": True, "adapter_id": "billing"}, "model": "base"},
    ],
)
def test_every_field_of_completions_is_honoured_whole_and_streamed(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"model": "helpdesk", "prompt": "Dear", "temperature": 0, "max_tokens": 8, "seed": 3, **fields}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    for choice in whole.choices:
        own = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in own) == choice.text
        tokens = [token for part in own if part.logprobs for token in part.logprobs.tokens or []]
        assert tokens == ((choice.logprobs and choice.logprobs.tokens) or [])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"functions": [{"name": "look"}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"extra_body": {"best_of": 3}}, "best_of"),
        ({"extra_body": {"top_a": 1}}, "top_a"),
        ({"extra_body": {"adapters": [{"id": "nobody"}]}, "model": "base"}, "adapters"),
        ({"extra_body": {"adapters": [{"id": "billing"}]}}, "adapters"),
        ({"logit_bias": {"70000": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "no"}}}}, "response_format"),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"response_format": {"type": "json_object"}, "extra_body": {"ignore_eos": True}}, "ignore_eos"),
    ],
)
def test_field_that_is_not_honoured_is_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        client.chat.completions.create(**{**ASK, **fields})
    assert caught.value.param == param
    assert param in str(caught.value)


def test_answers_are_parsed_into_a_model_of_the_clients(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(model="helpdesk", messages=MESSAGES, response_format=Point, temperature=0, max_tokens=300,
                                          logit_bias={"6": -5})  # fmt: skip
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(reply.choices[0].message.parsed, Point)


def test_a_conversation_with_tools_goes_round(client: openai.OpenAI) -> None:
    asked: Any = {"model": "helpdesk", "tools": [WEATHER], "temperature": 0, "max_tokens": 120}
    first = client.chat.completions.create(messages=MESSAGES, tool_choice="required", parallel_tool_calls=False, **asked)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls
    assert json.loads(message.tool_calls[0].function.arguments)["unit"] in ("C", "F")
    results = [{"role": "tool", "tool_call_id": call.id, "content": "12 degrees"} for call in message.tool_calls]
    second = client.chat.completions.create(messages=[*MESSAGES, message, *results], **{**asked, "max_tokens": 8})
    assert second.choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_streamed_calls_are_put_together_by_the_client(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="helpdesk", messages=MESSAGES, tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0, max_tokens=120,
    ) as stream:  # fmt: skip
        for _ in stream:
            pass
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert (final.choices[0].finish_reason, call.function.name) == ("tool_calls", "get_weather")
    assert json.loads(call.function.arguments)["unit"] in ("C", "F")


def test_reply_says_in_its_headers_who_answered(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**{**ASK, "model": "helpdesk*0.5+billing"})
    assert raw.headers["x-adapter"] == raw.parse().model == "helpdesk@v1*0.5+billing@v1"
