"""The conversation of a chat request: what was said, what may be called, and what form the answer is to have, in OpenAI's words."""

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lorimer.model.turns import ToolCall, Turn
from lorimer.serving.body import JsonObject, Neutral, RequestPart, Text, check_json, without_neutral

NAME_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
NEUTRAL_IN_MESSAGE: Neutral = {"tool_calls": ([],), "annotations": ([],)}
NEUTRAL_IN_FORMAT: Neutral = {"strict": (True, False)}
"""Every schema is held to strictly."""


class TextPart(RequestPart):
    """A piece of a message's content."""

    type: Literal["text"]
    text: Text


class CalledFunction(RequestPart):
    """A function that an answer called."""

    name: str = Field(pattern=NAME_PATTERN)
    arguments: Text
    """A JSON object, as text."""

    @field_validator("arguments")
    @classmethod
    def _check_arguments(cls, text: str) -> str:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ValueError("must be a JSON object, as text")
        check_json(value)
        return text


class Called(RequestPart):
    """A call in an assistant's message."""

    id: Text = Field(min_length=1, max_length=256)
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(RequestPart):
    """One turn of the conversation asked about."""

    neutral: ClassVar[Neutral] = NEUTRAL_IN_MESSAGE
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart]
    tool_calls: list[Called] = Field([], max_length=128)
    """Calls that an assistant's message asked for; then it need have no content."""
    tool_call_id: Text | None = Field(None, max_length=256)
    """Which call a tool's message answers."""
    name: Text | None = Field(None, max_length=256)
    """The tool's, in a tool's message."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: Any) -> Any:
        value = without_neutral(value, cls.neutral)
        is_call = isinstance(value, dict) and value.get("role") == "assistant" and "tool_calls" in value
        return {"content": "", **value} if is_call else value

    @field_validator("tool_calls", "tool_call_id", "name")
    @classmethod
    def _check_role(cls, value: Any, info: ValidationInfo) -> Any:
        role = "assistant" if info.field_name == "tool_calls" else "tool"
        if info.data.get("role", role) != role:
            raise ValueError(f"only a message with role {role!r} has it")
        return value

    @property
    def is_instruction(self) -> bool:
        """Whether it is the operator's word; `developer` is OpenAI's newer name of `system`."""
        return self.role in ("system", "developer")

    @property
    def text(self) -> str:
        """The content as one string; parts stand on lines of their own, as in vLLM."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class FunctionDefinition(RequestPart):
    """A function that an answer may call."""

    neutral: ClassVar[Neutral] = NEUTRAL_IN_FORMAT
    name: str = Field(pattern=NAME_PATTERN)
    description: Text = Field("", max_length=10_000)
    parameters: JsonObject = Field(default_factory=dict)
    """A JSON schema of its arguments; none at all by default."""

    @field_validator("parameters")
    @classmethod
    def _check_parameters(cls, schema: dict[str, Any]) -> dict[str, Any]:
        if schema.get("type", "object") != "object":
            raise ValueError(f"arguments are a JSON object: the schema's type must be 'object', found {schema['type']!r}")
        return schema

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """The schema that a call's arguments are held to."""
        return (
            {"type": "object", **self.parameters}
            if self.parameters
            else {"type": "object", "properties": {}, "additionalProperties": False}
        )


class Tool(RequestPart):
    """Something an answer may call."""

    type: Literal["function"]
    function: FunctionDefinition


class ChosenFunction(RequestPart):
    """The name of a function."""

    name: str = Field(pattern=NAME_PATTERN)


class NamedTool(RequestPart):
    """The tool that has to be called."""

    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(RequestPart):
    """What the answer's JSON is to look like."""

    neutral: ClassVar[Neutral] = NEUTRAL_IN_FORMAT
    name: str = Field(pattern=NAME_PATTERN)
    description: Text = ""
    schema_: JsonObject = Field(alias="schema")


class ResponseFormat(RequestPart):
    """What form an answer is to have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _check_schema(cls, schema: JsonSchema | None, info: ValidationInfo) -> JsonSchema | None:
        kind = info.data.get("type")
        if kind == "json_schema" and schema is None:
            raise ValueError("is missing: give it a `name` and a `schema`")
        if kind is not None and kind != "json_schema" and schema is not None:
            raise ValueError(f"only for type 'json_schema', found {kind!r}")
        return schema

    @property
    def asked_schema(self) -> dict[str, Any] | None:
        """What the answer is held to; None for free text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


def check_conversation(messages: Sequence[ChatMessage]) -> None:
    """See that a conversation can be answered.

    Raises:
        ValueError: if it cannot; with what is wrong.
    """
    if messages[-1].role not in ("user", "tool"):
        raise ValueError(f"the last message must have role 'user' or 'tool', found {messages[-1].role!r}: there is nothing to answer")
    first_turn = next(i for i, message in enumerate(messages) if not message.is_instruction)
    called: set[str | None] = set()
    for i, message in enumerate(messages):
        if message.is_instruction and i > first_turn:
            raise ValueError(f"message {i} has role {message.role!r}: instructions stand before all other messages")
        if message.role == "tool" and message.tool_call_id not in called:
            raise ValueError(f"message {i} answers no call: its `tool_call_id` is the `id` of a call in an earlier assistant message")
        called.update(call.id for call in message.tool_calls)


def turns_of(messages: Sequence[ChatMessage]) -> list[Turn]:
    """The turns as the renderer takes them: instructions, if any, as one system message."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls}
    system = [message.text for message in messages if message.is_instruction]
    turns = [_turn(message, names) for message in messages if not message.is_instruction]
    return [Turn(role="system", content="\n\n".join(system)), *turns] if system else turns


def _turn(message: ChatMessage, names: dict[str, str]) -> Turn:
    calls = tuple(
        ToolCall(id=call.id, name=call.function.name, arguments=json.loads(call.function.arguments)) for call in message.tool_calls
    )
    if message.role == "tool":
        call_id = message.tool_call_id or ""
        return Turn(role="tool", content=message.text, tool_call_id=call_id, name=message.name or names[call_id])
    return Turn(role="user" if message.role == "user" else "assistant", content=message.text, tool_calls=calls)
