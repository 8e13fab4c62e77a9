"""What is answered, in OpenAI's words: whole replies, the chunks of streams, the cards of what can be asked for."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Finish = Literal["stop", "length", "tool_calls"]
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


class TokenLogprob(Reply):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]
    """What the token says, which need not be whole characters."""


class PlaceLogprobs(TokenLogprob):
    """The token that was chosen at one place, beside the likeliest ones."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Reply):
    """Log-probabilities of a message's tokens."""

    content: list[PlaceLogprobs]
    refusal: None


class TextLogprobs(Reply):
    """Log-probabilities of a continuation's tokens, in the older form; of its prompt's before them, where that is echoed."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """None for a prompt's first token, before which there is nothing."""
    top_logprobs: list[dict[str, float] | None]
    """The likeliest tokens at each place, and the one that stands there."""
    text_offset: list[int]


class CalledFunction(Reply):
    """A function that the answer calls."""

    name: str = ""
    arguments: str


class MessageCall(Reply):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class DeltaCall(Reply):
    """What a chunk adds to a call."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(Reply):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str | None
    """None where the answer is calls alone."""
    refusal: None
    tool_calls: list[MessageCall] = []


class ChatChoice(Reply):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class Delta(Reply):
    """What a chunk adds to the answer."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    tool_calls: list[DeltaCall] = []


class ChunkChoice(Reply):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class TextChoice(Reply):
    """One continuation, or a piece of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
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


class Generated(Reply):
    """The reply of `/generate`."""

    generated_text: str


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


class Health(Reply):
    """The reply of `/healthz`."""

    status: Literal["ok", "stopped"]
    base: str
    adapters_resident: int
    running: int
    """Answers in the batch."""
    waiting: int
    """Answers that wait for room, or for their adapter."""


class ErrorDetail(Reply):
    """Why there is no answer."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    """OpenAI's error body."""

    error: ErrorDetail
