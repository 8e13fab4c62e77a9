"""What is answered, in OpenAI's shapes: whole replies, the chunks of streams, the cards of what can be asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

Finish = Literal["stop", "length"]
DONE = b"data: [DONE]\n\n"


class Reply(BaseModel):
    """Base of what is sent; fields that were not set are left out."""

    model_config = ConfigDict(frozen=True)

    def to_bytes(self) -> bytes:
        """The JSON text."""
        return self.model_dump_json(exclude_unset=True).encode()

    def to_event(self) -> bytes:
        """The JSON text as a server-sent event."""
        return b"data: " + self.to_bytes() + b"\n\n"


class Usage(Reply):
    """What a request cost, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(Reply):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Reply):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: None
    finish_reason: Finish


class Delta(Reply):
    """What a chunk adds to the answer."""

    role: Literal["assistant"] = "assistant"
    content: str = ""


class ChunkChoice(Reply):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: None
    finish_reason: Finish | None


class TextChoice(Reply):
    """One continuation, or a piece of it."""

    index: int
    text: str
    logprobs: None
    finish_reason: Finish | None


class GenerationReply(Reply):
    """What all replies to a generation request have in common."""

    id: str
    created: int
    model: str
    """The version that answered, whatever name was asked for."""
    system_fingerprint: str
    usage: Usage | None = None


class ChatCompletion(GenerationReply):
    """The reply of `/v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class ChatCompletionChunk(GenerationReply):
    """An event of its stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]


class Completion(GenerationReply):
    """The reply of `/v1/completions`, and an event of its stream."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class ModelCard(Reply):
    """One name that `model` may hold; vLLM's card."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    """Digest of what answers."""
    parent: str | None
    """The base of an adapter."""
    max_model_len: int


class ModelList(Reply):
    """All of them."""

    object: Literal["list"]
    data: list[ModelCard]


class ErrorDetail(Reply):
    """Why there is no answer."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    """OpenAI's error body."""

    error: ErrorDetail


class Answer(NamedTuple):
    """One finished answer, before it is put into a shape."""

    text: str
    finish_reason: Finish


class Shape(Protocol):
    """How the answers to one request are put into replies."""

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Reply:
        """All answers at once."""

    def opening(self, index: int) -> Sequence[Reply]:
        """What a stream says before an answer's first piece."""

    def piece(self, index: int, text: str) -> Reply:
        """A piece of an answer."""

    def closing(self, index: int, finish_reason: Finish) -> Reply:
        """The end of an answer."""

    def counts(self, usage: Usage) -> Reply:
        """The token counts at a stream's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What stands on every reply to one request."""

    id: str
    model: str
    system_fingerprint: str
    created: int
    ends_with_usage: bool
    """A stream that ends with its token counts says in every chunk before that they are not known yet."""

    def on_whole(self) -> dict[str, Any]:
        """The fields of a whole reply."""
        return {"id": self.id, "created": self.created, "model": self.model, "system_fingerprint": self.system_fingerprint}

    def on_chunk(self) -> dict[str, Any]:
        """The fields of a chunk."""
        return {**self.on_whole(), "usage": None} if self.ends_with_usage else self.on_whole()


class ChatShape:
    """Replies of `/v1/chat/completions`."""

    def __init__(self, heading: Heading) -> None:
        self.heading = heading

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Reply:
        """See `Shape`."""
        choices = [
            ChatChoice(
                index=index,
                message=AnswerMessage(role="assistant", content=answer.text, refusal=None),
                logprobs=None,
                finish_reason=answer.finish_reason,
            )
            for index, answer in enumerate(answers)
        ]
        return ChatCompletion(**self.heading.on_whole(), object="chat.completion", choices=choices, usage=usage)

    def opening(self, index: int) -> Sequence[Reply]:
        """See `Shape`."""
        return [self._chunk(index, Delta(role="assistant", content=""))]

    def piece(self, index: int, text: str) -> Reply:
        """See `Shape`."""
        return self._chunk(index, Delta(content=text))

    def closing(self, index: int, finish_reason: Finish) -> Reply:
        """See `Shape`."""
        return self._chunk(index, Delta(), finish_reason)

    def counts(self, usage: Usage) -> Reply:
        """See `Shape`."""
        return ChatCompletionChunk(**{**self.heading.on_chunk(), "usage": usage}, object="chat.completion.chunk", choices=[])

    def _chunk(self, index: int, delta: Delta, finish_reason: Finish | None = None) -> Reply:
        choice = ChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=finish_reason)
        return ChatCompletionChunk(**self.heading.on_chunk(), object="chat.completion.chunk", choices=[choice])


class TextShape:
    """Replies of `/v1/completions`."""

    def __init__(self, heading: Heading) -> None:
        self.heading = heading

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Reply:
        """See `Shape`."""
        choices = [
            TextChoice(index=index, text=answer.text, logprobs=None, finish_reason=answer.finish_reason)
            for index, answer in enumerate(answers)
        ]
        return Completion(**self.heading.on_whole(), object="text_completion", choices=choices, usage=usage)

    def opening(self, index: int) -> Sequence[Reply]:
        """See `Shape`."""
        return []

    def piece(self, index: int, text: str) -> Reply:
        """See `Shape`."""
        return self._chunk(index, text)

    def closing(self, index: int, finish_reason: Finish) -> Reply:
        """See `Shape`."""
        return self._chunk(index, "", finish_reason)

    def counts(self, usage: Usage) -> Reply:
        """See `Shape`."""
        return Completion(**{**self.heading.on_chunk(), "usage": usage}, object="text_completion", choices=[])

    def _chunk(self, index: int, text: str, finish_reason: Finish | None = None) -> Reply:
        choice = TextChoice(index=index, text=text, logprobs=None, finish_reason=finish_reason)
        return Completion(**self.heading.on_chunk(), object="text_completion", choices=[choice])
