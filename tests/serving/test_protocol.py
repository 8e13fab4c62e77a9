"""Request bodies: what is honoured, what asks for nothing, what is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from lorimer.inference.composition import MAX_PARTS
from lorimer.model.turns import ToolCall, Turn
from lorimer.serving.generation import MAX_ANSWERS, derived_seed
from lorimer.serving.protocol import MAX_MESSAGES, ChatCompletionRequest, CompletionRequest
from lorimer.serving.refusals import MAX_FINDINGS, ApiError, describe_invalid, shown

CHAT = {"model": "helpdesk", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "helpdesk", "prompt": "hi"}
LOOK = {"type": "function", "function": {"name": "look"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "point", "schema": {"type": "object"}}}


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
        {"tool_choice": "auto"},
        {"parallel_tool_calls": True},
        {"top_logprobs": None, "logprobs": False, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "adapters": []},
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
        ({"n": 0}, "n", "invalid_value"),
        ({"n": MAX_ANSWERS + 1}, "n", "invalid_value"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"suffix": "a"}, "suffix", "unsupported_parameter"),
        ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
        ({"presence_penalty": False}, "presence_penalty", "invalid_type"),
        ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"top_k": 1.5}, "top_k", "invalid_type"),
        ({"min_p": 1.5}, "min_p", "invalid_value"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value"),
        ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
        ({"logprobs": 5}, "logprobs", "invalid_type"),
        ({"top_logprobs": 5}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_value"),
        ({"response_format": {**SCHEMA, "type": "json_object"}}, "response_format.json_schema", "invalid_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        ({"response_format": SCHEMA, "ignore_eos": True}, "ignore_eos", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters",
            "invalid_value",
        ),
        ({"tools": [LOOK, LOOK]}, "tools", "invalid_value"),
        ({"tools": [LOOK], "tool_choice": "maybe"}, "tool_choice", "invalid_value"),
        ({"tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "listen"}}}, "tool_choice", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tools": [LOOK], "response_format": SCHEMA}, "tool_choice", "invalid_value"),
        ({"tools": [LOOK], "ignore_eos": True}, "tool_choice", "invalid_value"),
        ({"functions": [{"name": "look"}]}, "functions", "unsupported_parameter"),
        ({"adapters": [{"id": "sql", "scale": 11}]}, "adapters[0].scale", "invalid_value"),
        ({"adapters": [{"id": "sql", "weight": 1}]}, "adapters[0].weight", "unknown_parameter"),
        ({"adapters": [{"id": "sql"}] * (MAX_PARTS + 1)}, "adapters", "invalid_value"),
        ({"adapter_id": "sql"}, "adapter_id", "invalid_value"),
        ({"metadata": {"a": "b"}}, "metadata", "unsupported_parameter"),
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
        ({"messages": [{"role": "judge", "content": "a"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages", "invalid_value"),
        ({"messages": [*CHAT["messages"], CALLED, {"role": "tool", "content": "a", "tool_call_id": "c2"}]}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "a", "tool_call_id": "c1"}]}, "messages[0].tool_call_id", "invalid_value"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]}, "messages[0].tool_calls", "invalid_value"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content", "missing_required_parameter"),
        (
            {"messages": [{**CALLED, "tool_calls": [{**CALL, "function": {"name": "look", "arguments": "[1]"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
            "invalid_value",
        ),
        ({"messages": [{"role": "user", "content": "a", "name": "Bo"}]}, "messages[0].name", "invalid_value"),
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


@pytest.mark.parametrize(
    ("field", "param", "code"),
    [
        ({"best_of": 2}, "best_of", "invalid_value"),
        ({"n": 2, "best_of": 3}, "best_of", "invalid_value"),
        ({"max_tokens": 0}, "echo", "invalid_value"),
        ({"max_tokens": 0, "echo": True}, "echo", "invalid_value"),
        ({"max_tokens": 0, "logprobs": 1}, "echo", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
        ({"tools": [LOOK]}, "tools", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
        ({"suffix": "the end"}, "suffix", "unsupported_parameter"),
        ({"prompt": ["a"] * 43, "n": 3}, "prompt", "invalid_value"),
    ],
)
def test_field_that_completions_do_not_honour_is_refused_by_name(field: dict[str, Any], param: str, code: str) -> None:
    refusal = refusal_of({**TEXT, **field}, CompletionRequest)
    assert (refusal.status, refusal.param, refusal.code) == (400, param, code)
    assert param in str(refusal)


@pytest.mark.parametrize(
    "field",
    [
        {"n": 3, "best_of": 3},
        {"logprobs": 0},
        {"logprobs": 5},
        {"logprobs": False, "suffix": "", "tools": [], "tool_choice": "none"},
        {"echo": True},
        {"echo": True, "logprobs": 0},
        {"echo": True, "logprobs": 1, "max_tokens": 0},
        {"response_format": SCHEMA},
        {"prompt": ["a"] * 42, "n": 3},
    ],
)
def test_field_that_completions_honour_is_accepted(field: dict[str, Any]) -> None:
    assert CompletionRequest.model_validate({**TEXT, **field})


@pytest.mark.parametrize(
    ("body", "model", "adapters"),
    [
        ({"adapter_id": "sql"}, "sql", []),
        ({"adapter_id": "sql", "model": "base"}, "sql", []),
        ({"adapter_id": "sql", "model": ""}, "sql", []),
        ({"adapter_id": "sql", "model": "sql"}, "sql", []),
        ({"model": "base", "adapters": [{"id": "sql@v3", "scale": 0.7}, {"id": "tone"}]}, "base", [("sql@v3", 0.7), ("tone", 1.0)]),
    ],
)
def test_who_answers_is_said_in_several_ways(body: dict[str, Any], model: str, adapters: list[tuple[str, float]]) -> None:
    found = ChatCompletionRequest.model_validate({**body, "messages": CHAT["messages"]})
    assert (found.model, [(one.id, one.scale) for one in found.adapters]) == (model, adapters)


@pytest.mark.parametrize(
    ("choice", "names", "must", "several"),
    [
        (None, ["look", "listen"], False, True),
        ("auto", ["look", "listen"], False, True),
        ("none", [], False, True),
        ("required", ["look", "listen"], True, True),
        ({"type": "function", "function": {"name": "listen"}}, ["listen"], True, False),
    ],
)
def test_choice_says_what_may_be_called(choice: Any, names: list[str], must: bool, several: bool) -> None:
    tools = [LOOK, {"type": "function", "function": {"name": "listen", "description": "Hear.", "strict": True}}]
    body = read_chat(tools=tools, tool_choice=choice)
    assert ([function.name for function in body.offered], body.must_call, body.may_call_several) == (names, must, several)
    assert read_chat(tools=tools, parallel_tool_calls=False).may_call_several is False


def test_late_instruction_is_refused() -> None:
    refusal = refusal_of({**CHAT, "messages": [*CHAT["messages"], {"role": "developer", "content": "b"}, *CHAT["messages"]]})
    assert "message 1 has role 'developer'" in str(refusal)


def test_every_wrong_field_is_named() -> None:
    message = str(refusal_of({"temprature": 1, "store": True, "seed": "x"}))
    for part in ("unknown field `temprature`: did you mean `temperature`?", "`store` is not supported", "`seed`", "`messages` is missing"):
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
            CALLED,
            {"role": "tool", "content": [{"type": "text", "text": "7"}], "tool_call_id": "c1"},
        ]
    )
    call = ToolCall(id="c1", name="look", arguments={"at": 1})
    assert body.turns() == [
        Turn(role="system", content="Be brief.\n\nBe\nkind."),
        Turn(role="user", content="hi"),
        Turn(role="assistant", content="ho"),
        Turn(role="user", content="and?"),
        Turn(role="assistant", content="", tool_calls=(call,)),
        Turn(role="tool", content="7", tool_call_id="c1", name="look"),
    ]


@pytest.mark.parametrize(("limits", "found"), [({}, None), ({"max_tokens": 5}, 5), ({"max_completion_tokens": 6}, 6)])
def test_either_limit_counts(limits: dict[str, int], found: int | None) -> None:
    assert read_chat(**limits).num_tokens_asked == found


def test_sampling_is_what_was_asked() -> None:
    params = read_chat(temperature=0.5, top_p=0.9, seed=7, ignore_eos=True).sampling(9)
    assert (params.max_tokens, params.temperature, params.top_p, params.seed, params.ignore_eos) == (9, 0.5, 0.9, 7, True)
    assert read_chat().sampling(1).temperature == 1.0  # OpenAI's default


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"top_k": 5}, "top_k", 5),
        ({"top_k": -1}, "top_k", 0),
        ({"min_p": 0.1}, "min_p", 0.1),
        ({"presence_penalty": 0.5}, "presence_penalty", 0.5),
        ({"frequency_penalty": -0.5}, "frequency_penalty", -0.5),
        ({"repetition_penalty": 1.2}, "repetition_penalty", 1.2),
        ({"logit_bias": {"7": -100, "8": 1.5}}, "logit_bias", {7: -100, 8: 1.5}),
        ({"logprobs": True}, "num_logprobs", 0),
        ({"logprobs": True, "top_logprobs": 3}, "num_logprobs", 3),
        ({}, "num_logprobs", None),
    ],
)
def test_every_field_reaches_the_engine(fields: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(read_chat(**fields).sampling(1), name) == value


def test_each_of_several_answers_has_a_seed_of_its_own() -> None:
    seeds = [read_chat(seed=7, n=4).sampling(1, choice=choice).seed for choice in range(4)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 4
    assert seeds == [derived_seed(7, choice) for choice in range(4)]
    assert read_chat(n=4).sampling(1, choice=3).seed is None


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]), ([[]], [[]])],
)
def test_prompts_of_every_kind(prompt: Any, prompts: list[Any]) -> None:
    assert CompletionRequest.model_validate({"model": "a", "prompt": prompt}).prompts == prompts


@pytest.mark.parametrize("prompt", [[], 3, {}, ["a", 1], [1, "a"], [True], [-1], [[["a"]]], ["a"] * (MAX_ANSWERS + 1)])
def test_prompt_of_no_kind_is_refused(prompt: Any) -> None:
    assert refusal_of({"model": "a", "prompt": prompt}, CompletionRequest).param == "prompt"
