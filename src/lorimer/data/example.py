"""What one training row is: an Example of Messages, with where it came from."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lorimer.storage import digest_of

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row to learn from or to be judged by: either a conversation that ends with the wanted answer, or plain text."""

    messages: tuple[Message, ...] = ()
    text: str | None = None
    """Plain text to continue learning on; exclusive with `messages`."""
    rejected: str | None = None
    """The worse answer to the same prompt, for learning from preferences."""
    source: str
    """File and line it was read from, as `tickets.jsonl:12`."""
    tags: dict[str, str] = field(default_factory=dict)
    """What is known about it beside its content, as `{"language": "en"}`; never shown to the model."""
    licence: str = ""
    consent: str = ""
    subject: str = ""
    """An opaque random key of the person it is about, never that person's own id; "" for none."""
    parent: str = ""
    """Record digest of the row a synthetic row was made from; "" for a row that was collected."""

    @property
    def digest(self) -> str:
        """SHA-256 of the content alone: equal rows have equal digests, wherever they came from."""
        return digest_of(self.content())

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The conversation up to the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last assistant turn: what an evaluation compares with."""
        return self.messages[-1].content

    def content(self) -> dict[str, Any]:
        """The JSON value that training sees."""
        if self.text is not None:
            return {"text": self.text}
        messages = [{"role": m.role, "content": m.content} for m in self.messages]
        # left out where there is none, so that rows without one keep the digests they always had
        return {"messages": messages} if self.rejected is None else {"messages": messages, "rejected": self.rejected}

    def to_json(self) -> dict[str, Any]:
        """The JSON value a dataset keeps."""
        known = {name: getattr(self, name) for name in ("licence", "consent", "subject", "parent") if getattr(self, name)}
        return {**self.content(), "source": self.source, "tags": self.tags, **known}

    @property
    def record_digest(self) -> str:
        """SHA-256 of all a dataset keeps of it."""
        return digest_of(self.to_json())


def example_from_json(value: dict[str, Any]) -> Example:
    """Read back what `Example.to_json` wrote."""
    messages = tuple(Message(role=m["role"], content=m["content"]) for m in value.get("messages", ()))
    text, rejected = value.get("text"), value.get("rejected")
    known = {name: value.get(name, "") for name in ("licence", "consent", "subject", "parent")}
    return Example(messages=messages, text=text, rejected=rejected, source=value["source"], tags=value["tags"], **known)
