"""LangChain's and LlamaIndex's OpenAI classes against a running server: what applications are written with works as it is.

They live in an environment of their own (`make test-clients`), since they bring dozens of packages that Lorimer does not need.
"""

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, Field

from fakes import tiny_base
from lorimer.model.base import Base
from lorimer.registry.records import AdapterVersion
from lorimer.serving.server import background_server

QUESTION = "My invoice is wrong"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic.*", "ignore::DeprecationWarning")  # their own
ENDS = ("stop", "length", "tool_calls")


class Point(BaseModel):
    """Where something is."""

    is_on: bool = Field(description="Whether it is switched on.")


def get_weather(unit: Literal["C", "F"]) -> str:
    """Say how warm it is.

    Args:
        unit: C or F.
    """
    return f"12 {unit}"


@pytest.fixture(scope="session")
def base() -> Base:
    """A base with room for descriptions of tools."""
    own = tiny_base()
    own.model.config.max_position_embeddings = 4096
    return own


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    """A running server."""
    with background_server(app) as url:
        yield f"{url}/v1"


@pytest.fixture
def langchain(url: str) -> Any:
    """LangChain's class for chats."""
    module = pytest.importorskip("langchain_openai", reason="needs langchain-openai: `make test-clients` brings it")
    return lambda **fields: module.ChatOpenAI(
        base_url=url, api_key="none", max_retries=0, **{"model": "helpdesk", "temperature": 0, "max_tokens": 12, **fields}
    )


@pytest.fixture
def llamaindex(url: str) -> Any:
    """LlamaIndex's class for servers like OpenAI's."""
    module = pytest.importorskip("llama_index.llms.openai_like", reason="needs llama-index-llms-openai-like: `make test-clients` brings it")
    return lambda **fields: module.OpenAILike(
        api_base=url, api_key="none", max_retries=0, context_window=4096,
        **{"is_chat_model": True, "model": "helpdesk", "temperature": 0, "max_tokens": 12, **fields},
    )  # fmt: skip


def test_langchain_answers_whole_and_streamed(langchain: Any, text_of: Any, helpdesk: AdapterVersion) -> None:
    model = langchain()
    whole = model.invoke([("system", "Be brief."), ("human", QUESTION)])
    pieces = list(model.stream([("system", "Be brief."), ("human", QUESTION)]))
    assert "".join(piece.content for piece in pieces) == whole.content
    assert whole.response_metadata["model_name"] == helpdesk.id
    assert whole.usage_metadata["output_tokens"] == 12
    assert model.invoke(QUESTION).content == text_of(QUESTION, helpdesk)
    counted = langchain(stream_usage=True).stream(QUESTION)
    assert sum(piece.usage_metadata["output_tokens"] for piece in counted if piece.usage_metadata) == 12


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2, "temperature": 0.7, "seed": 3},
        {"top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {70: 3}},
        {"logprobs": True, "top_logprobs": 3},
        {"stop": ["zz"]},
        {"extra_body": {"top_k": 3, "adapter_id": "billing"}, "model": "base"},
        {"model_kwargs": {"user": "ada"}},
        {"service_tier": "auto", "store": False, "metadata": {}},
    ],
)
def test_langchain_s_fields_are_taken(langchain: Any, fields: dict[str, Any]) -> None:
    assert langchain(**fields).invoke(QUESTION).response_metadata["finish_reason"] in ENDS
    assert len(langchain(**{**fields, "n": 1}).batch([QUESTION, "Hello"])) == 2


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_langchain_gets_objects(langchain: Any, method: str) -> None:
    model = langchain(max_tokens=400, logit_bias={6: -5}).with_structured_output(Point, method=method, include_raw=True)
    found = model.invoke(f"{QUESTION}. Answer in JSON.")
    if method != "json_mode" and found["raw"].response_metadata["finish_reason"] != "length":
        assert isinstance(found["parsed"], Point)
    if method == "json_schema":
        pieces = list(model.stream(QUESTION))
        assert pieces


def test_langchain_calls_tools_and_comes_back(langchain: Any) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    model = langchain(max_tokens=200)
    for choice in ("any", "get_weather", "required"):
        bound = model.bind_tools([get_weather], tool_choice=choice, strict=True, parallel_tool_calls=False)
        first = bound.invoke(QUESTION)
        assert [call["name"] for call in first.tool_calls] == ["get_weather"]
    streamed = None
    for piece in bound.stream(QUESTION):
        streamed = piece if streamed is None else streamed + piece
    assert [call["name"] for call in streamed.tool_calls] == ["get_weather"]
    results = [ToolMessage(get_weather("C"), tool_call_id=call["id"]) for call in first.tool_calls]
    again = model.bind_tools([get_weather]).invoke([HumanMessage(QUESTION), first, *results])
    assert again.response_metadata["finish_reason"] in ENDS


async def _collect(stream: Any) -> list[Any]:
    return [piece async for piece in stream]


def test_langchain_answers_asynchronously(langchain: Any) -> None:
    import asyncio

    pieces = asyncio.run(_collect(langchain().astream(QUESTION)))
    assert "".join(piece.content for piece in pieces) == langchain().invoke(QUESTION).content


def test_langchain_s_plain_completions(url: str) -> None:
    module = pytest.importorskip("langchain_openai", reason="needs langchain-openai: `make test-clients` brings it")
    model = module.OpenAI(base_url=url, api_key="none", model="helpdesk", temperature=0, max_tokens=12, max_retries=0)
    assert "".join(model.stream("Dear")) == model.invoke("Dear")
    assert len(model.generate(["Dear", "Yours"]).generations) == 2


def test_langchain_sees_refusals(langchain: Any) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="does not exist"):
        langchain(model="nobody").invoke(QUESTION)
    with pytest.raises(openai.BadRequestError, match="reasoning_effort"):
        langchain(reasoning_effort="low").invoke(QUESTION)


def test_llamaindex_answers_whole_and_streamed(llamaindex: Any, text_of: Any, helpdesk: AdapterVersion) -> None:
    from llama_index.core.llms import ChatMessage

    model = llamaindex()
    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=QUESTION)]
    whole, pieces = model.chat(messages), list(model.stream_chat(messages))
    assert "".join(piece.delta or "" for piece in pieces) == whole.message.content
    assert model.complete(QUESTION).text == text_of(QUESTION, helpdesk)
    assert list(model.stream_complete(QUESTION))[-1].text == text_of(QUESTION, helpdesk)


def test_llamaindex_s_plain_completions(llamaindex: Any) -> None:
    model = llamaindex(is_chat_model=False)
    assert list(model.stream_complete("Dear"))[-1].text == model.complete("Dear").text


def test_llamaindex_calls_tools(llamaindex: Any) -> None:
    from llama_index.core.tools import FunctionTool

    model = llamaindex(is_function_calling_model=True, max_tokens=200)
    tool = FunctionTool.from_defaults(get_weather)
    reply = model.chat_with_tools([tool], user_msg=QUESTION, tool_required=True, allow_parallel_tool_calls=False)
    assert [call.tool_name for call in model.get_tool_calls_from_response(reply)] == ["get_weather"]
    found = model.predict_and_call([tool], user_msg=QUESTION, tool_required=True)
    assert found.sources[0].raw_output.startswith("12 ")
    pieces = list(model.stream_chat_with_tools([tool], user_msg=QUESTION, tool_required=True))
    assert [call.tool_name for call in model.get_tool_calls_from_response(pieces[-1])] == ["get_weather"]


def test_llamaindex_gets_objects(llamaindex: Any) -> None:
    from llama_index.core.prompts import PromptTemplate

    model = llamaindex(is_function_calling_model=True, max_tokens=400, additional_kwargs={"logit_bias": {"6": -5}})
    assert isinstance(model.structured_predict(Point, PromptTemplate(QUESTION)), Point)
    strict = llamaindex(is_function_calling_model=True, should_use_structured_outputs=True, max_tokens=400,
                        additional_kwargs={"logit_bias": {"6": -5}})  # fmt: skip
    assert isinstance(strict.structured_predict(Point, PromptTemplate(QUESTION)), Point)
