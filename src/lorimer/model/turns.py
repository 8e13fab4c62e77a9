"""A conversation as chat templates take it: turns, and calls of tools in them. How a base's template shows it this file does not know."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lorimer.data.example import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A function that an answer asks its reader to call."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn, which may call tools or answer such a call."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant's turn asks for."""
    tool_call_id: str = ""
    """Which of them a tool's turn answers, and the name of the tool."""
    name: str = ""

    @property
    def texts(self) -> list[str]:
        """Everything in it that is its speaker's."""
        calls = [text for call in self.tool_calls for text in (call.id, call.name, *strings_in(call.arguments))]
        return [self.content, self.tool_call_id, self.name, *calls]

    def with_texts(self, change: Callable[[str], str]) -> "Turn":
        """The same with all of it changed."""
        calls = tuple(
            ToolCall(id=change(call.id), name=change(call.name), arguments=with_strings(call.arguments, change)) for call in self.tool_calls
        )
        name, call_id = change(self.name), change(self.tool_call_id)
        return replace(self, content=change(self.content), tool_calls=calls, tool_call_id=call_id, name=name)

    def to_template(self) -> dict[str, Any]:
        """In the words of Hugging Face's templates (its documentation, "chat extras")."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            calls = [{"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in self.tool_calls]
            found["tool_calls"] = calls
        if self.role == "tool":
            found |= {"tool_call_id": self.tool_call_id, "name": self.name}
        return found


def as_turns(messages: Sequence[Message] | Sequence[Turn]) -> list[Turn]:
    """Messages as turns without calls."""
    return [turn if isinstance(turn, Turn) else Turn(role=turn.role, content=turn.content) for turn in messages]


def with_system_folded(turns: Sequence[Turn]) -> Sequence[Turn]:
    """The system message put before the first user turn."""
    if len(turns) < 2 or turns[0].role != "system":
        return turns
    system, first, *rest = turns
    return [replace(first, content=f"{system.content}\n\n{first.content}"), *rest]


def strings_in(value: Any) -> Iterable[str]:
    """All text in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, own in value.items():
            yield key
            yield from strings_in(own)
    elif isinstance(value, list):
        for own in value:
            yield from strings_in(own)


def with_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with all its text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): with_strings(own, change) for key, own in value.items()}
    return [with_strings(own, change) for own in value] if isinstance(value, list) else value
