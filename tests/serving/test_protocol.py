"""Request bodies: what is honoured, what asks for nothing, what is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from lorimer.data.example import Message
from lorimer.serving.protocol import MAX_MESSAGES, MAX_PROMPTS, ChatCompletionRequest, CompletionRequest
from lorimer.serving.refusals import MAX_FINDINGS, ApiError, describe_invalid, shown

CHAT = {"model": "helpdesk", "messages": [{"role": "user", "content": "hi"}]}


def read_chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({**CHAT, **fields})


def refusal_of(body: Any, kind: type[ChatCompletionRequest] | type[CompletionRequest] = ChatCompletionRequest) -> ApiError:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    return describe_invalid({**error, "loc": ("body", *error["loc"])} for error in caught.value.errors())


@pytest.mark.parametrize(
    "field",
    [
        {"n": 1},
        {"presence_penalty": 0},
        {"frequency_penalty": 0.0},
        {"logprobs": False},
        {"response_format": {"type": "text"}},
        {"logit_bias": None},
        {"logit_bias": {}},
        {"stop": None},
        {"tools": []},
        {"tool_choice": "none"},
        {"store": False},
        {"metadata": None},
        {"temperature": None},
        {"stream_options": None},
        {"whatever": None},
    ],
)
def test_field_that_asks_for_nothing_is_accepted(field: dict[str, Any]) -> None:
    assert read_chat(**field) == read_chat()


@pytest.mark.parametrize(
    ("field", "param", "code"),
    [
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
        ({"presence_penalty": False}, "presence_penalty", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"metadata": {"a": "b"}}, "metadata", "unsupported_parameter"),
        ({"top_k": 5}, "top_k", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": float("nan")}, "temperature", "invalid_value"),
        ({"top_p": True}, "top_p", "invalid_type"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"include": 1}}, "stream_options.include", "unknown_parameter"),
        ({"model": ""}, "model", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "a"}] * (MAX_MESSAGES + 1)}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": "a", "name": "Bo"}]}, "messages[0].name", "unknown_parameter"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "invalid_value"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages", "invalid_value"),
    ],
)
def test_field_that_is_not_honoured_is_refused_by_name(field: dict[str, Any], param: str, code: str) -> None:
    refusal = refusal_of({**CHAT, **field})
    assert (refusal.status, refusal.param, refusal.code) == (400, param, code)
    assert param in str(refusal)


def test_late_instruction_is_refused() -> None:
    refusal = refusal_of({**CHAT, "messages": [*CHAT["messages"], {"role": "developer", "content": "b"}, *CHAT["messages"]]})
    assert "message 1 has role 'developer'" in str(refusal)


def test_every_wrong_field_is_named() -> None:
    message = str(refusal_of({"temprature": 1, "n": 3, "seed": "x"}))
    for part in ("unknown field `temprature`: did you mean `temperature`?", "`n` is not supported", "`seed`", "`messages` is missing"):
        assert part in message


def test_a_body_of_nonsense_costs_a_short_answer() -> None:
    message = str(refusal_of({f"field{i}": i for i in range(5000)}))
    assert message.count("unknown field") <= MAX_FINDINGS
    assert len(str(refusal_of({**CHAT, "x" * 100_000: 1}))) < 1000


def test_text_that_is_not_unicode_can_be_shown() -> None:
    refusal = refusal_of({**CHAT, "model": "\ud800"})
    str(refusal).encode()
    shown("a\ud800" * 1000).encode()


def test_messages_become_turns() -> None:
    body = read_chat(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind."}]},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "ho", "refusal": None, "tool_calls": []},
            {"role": "user", "content": "and?"},
        ]
    )
    system = Message(role="system", content="Be brief.\n\nBe\nkind.")
    rest = [Message(role="user", content="hi"), Message(role="assistant", content="ho"), Message(role="user", content="and?")]
    assert body.conversation() == [system, *rest]


@pytest.mark.parametrize(("limits", "found"), [({}, None), ({"max_tokens": 5}, 5), ({"max_completion_tokens": 6}, 6)])
def test_either_limit_counts(limits: dict[str, int], found: int | None) -> None:
    assert read_chat(**limits).num_tokens_asked == found


def test_sampling_is_what_was_asked() -> None:
    params = read_chat(temperature=0.5, top_p=0.9, seed=7, ignore_eos=True).sampling(9)
    assert (params.max_tokens, params.temperature, params.top_p, params.seed, params.ignore_eos) == (9, 0.5, 0.9, 7, True)
    assert read_chat().sampling(1).temperature == 1.0  # OpenAI's default


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]), ([[]], [[]])],
)
def test_prompts_of_every_kind(prompt: Any, prompts: list[Any]) -> None:
    assert CompletionRequest.model_validate({"model": "a", "prompt": prompt}).prompts == prompts


@pytest.mark.parametrize("prompt", [[], 3, {}, ["a", 1], [1, "a"], [True], [-1], [[["a"]]], ["a"] * (MAX_PROMPTS + 1)])
def test_prompt_of_no_kind_is_refused(prompt: Any) -> None:
    assert refusal_of({"model": "a", "prompt": prompt}, CompletionRequest).param == "prompt"
