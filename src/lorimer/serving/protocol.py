"""What may be asked, in OpenAI's words. Only what is honoured is accepted; how a request is answered it does not know.

The fields are those of OpenAI's API reference (platform.openai.com/docs/api-reference), and vLLM's `ignore_eos`.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from lorimer.data.example import Message
from lorimer.inference.sampling import SamplingParams

MAX_MESSAGES = 256  # a chat template is rendered once a turn: beyond this a small body would cost minutes
MAX_PROMPTS = 128
MAX_STOPS, MAX_STOP_LEN = 4, 256
INT64 = 2**63

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "metadata": ({},),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
"""Fields not honoured, with the values that ask for nothing: leaving those out changes no answer."""
NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {"tool_calls": ([],), "annotations": ([],)}
NEUTRAL_IN_STREAM_OPTIONS: dict[str, tuple[Any, ...]] = {"include_obfuscation": (False,), "continuous_usage_stats": (False,)}


def _check_unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no text."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise ValueError("holds half a surrogate pair: send valid Unicode") from exc
    return text


Text = Annotated[str, AfterValidator(_check_unicode)]


class RequestPart(BaseModel):
    """Base of what strangers send: unknown fields are errors, nothing is converted, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(RequestPart):
    """What a stream carries beside its pieces."""

    include_usage: bool = False

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: Any) -> Any:
        return without_neutral(value, NEUTRAL_IN_STREAM_OPTIONS)


class TextPart(RequestPart):
    """A piece of a message's content."""

    type: Literal["text"]
    text: Text


class ChatMessage(RequestPart):
    """One turn of the conversation asked about."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: Any) -> Any:
        return without_neutral(value, NEUTRAL_IN_MESSAGE)

    @property
    def is_instruction(self) -> bool:
        """Whether it is the operator's word; `developer` is OpenAI's newer name of `system`."""
        return self.role in ("system", "developer")

    @property
    def text(self) -> str:
        """The content as one string; parts stand on lines of their own, as in vLLM."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class GenerationRequest(RequestPart):
    """What chat and text completions have in common."""

    id_prefix: ClassVar[str]
    prompt_field: ClassVar[str]
    """Where what is to be answered stands; named in messages."""
    default_answer_len: ClassVar[int]
    """Tokens of an answer where the client sets no limit."""
    model: Text = Field(min_length=1, max_length=1000)
    """An adapter (`helpdesk`, `helpdesk@v3`, `helpdesk@champion`, `helpdesk@sha256:ab12cd`) or the base."""
    max_tokens: int | None = Field(None, ge=1, lt=INT64)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    stop: Text | list[Text] = Field([], max_length=MAX_STOP_LEN)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Text | None = Field(None, max_length=256)
    """Kept in the request log."""
    ignore_eos: bool = False
    """Go on to the limit whatever the model says; for measuring."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: Any) -> Any:
        return without_neutral(value, NEUTRAL)

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: str | list[str]) -> str | list[str]:
        stops = [stop] if isinstance(stop, str) else stop
        if len(stops) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings, found {len(stops)}")
        if not all(0 < len(text) <= MAX_STOP_LEN for text in stops):
            raise ValueError(f"a stop string has 1 to {MAX_STOP_LEN} characters")
        return stop

    @field_validator("stream_options")
    @classmethod
    def _check_stream_options(cls, options: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if options is not None and not info.data.get("stream"):
            raise ValueError("only for streams: set `stream` to true or leave it out")
        return options

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def num_tokens_asked(self) -> int | None:
        """The longest answer the client wants, where it says so."""
        return self.max_tokens

    def sampling(self, max_tokens: int) -> SamplingParams:
        """How the engine is to choose tokens."""
        return SamplingParams(
            max_tokens=max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed, ignore_eos=self.ignore_eos
        )


class ChatCompletionRequest(GenerationRequest):
    """`POST /v1/chat/completions`"""

    id_prefix: ClassVar[str] = "chatcmpl-"
    prompt_field: ClassVar[str] = "messages"
    default_answer_len: ClassVar[int] = 1024
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, lt=INT64)
    """OpenAI's newer name of `max_tokens`."""

    @field_validator("messages")
    @classmethod
    def _check_order(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        if messages[-1].role != "user":
            raise ValueError(f"the last message must have role 'user', found {messages[-1].role!r}: there is nothing to answer")
        first_turn = next(i for i, message in enumerate(messages) if not message.is_instruction)
        late = [i for i, message in enumerate(messages) if message.is_instruction and i > first_turn]
        if late:
            raise ValueError(f"message {late[0]} has role {messages[late[0]].role!r}: instructions stand before all other messages")
        return messages

    @field_validator("max_completion_tokens")
    @classmethod
    def _check_limits(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("max_tokens") is not None:
            raise ValueError("means the same as `max_tokens`: give one of them")
        return limit

    @property
    def num_tokens_asked(self) -> int | None:
        """The longest answer the client wants, where it says so."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    def conversation(self) -> list[Message]:
        """The turns as the renderer takes them: instructions, if any, as one system message."""
        system = [message.text for message in self.messages if message.is_instruction]
        turns = [
            Message(role="user" if message.role == "user" else "assistant", content=message.text)
            for message in self.messages
            if not message.is_instruction
        ]
        return [Message(role="system", content="\n\n".join(system)), *turns] if system else turns


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`"""

    id_prefix: ClassVar[str] = "cmpl-"
    prompt_field: ClassVar[str] = "prompt"
    default_answer_len: ClassVar[int] = 16  # OpenAI's
    prompt: Text | list[Text] | list[Annotated[int, Field(ge=0, lt=INT64)]] | list[list[Annotated[int, Field(ge=0, lt=INT64)]]]
    """One text or several, or their token ids."""

    @field_validator("prompt", mode="wrap")
    @classmethod
    def _check_prompt(cls, prompt: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            found = validate(prompt)
        except ValidationError as exc:
            raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists") from exc
        if isinstance(found, list) and (not found or not isinstance(found[0], int)) and not 1 <= len(found) <= MAX_PROMPTS:
            raise ValueError(f"1 to {MAX_PROMPTS} prompts in a request, found {len(found)}")
        return found

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [entry for entry in self.prompt if isinstance(entry, int)]
        return [ids] if ids else [entry for entry in self.prompt if not isinstance(entry, int)]


def without_neutral(body: Any, neutral: Mapping[str, tuple[Any, ...]]) -> Any:
    """A JSON object without its nulls and without fields that are not honoured but ask for nothing either."""
    if not isinstance(body, dict):
        return body
    return {key: value for key, value in body.items() if value is not None and not _is_among(value, neutral.get(key, ()))}


def _is_among(value: Any, neutral: Iterable[Any]) -> bool:
    """Equality as JSON has it: `0` is `0.0`, but not `false`."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral)


KNOWN_FIELDS = sorted({*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields})
NOT_HONOURED = {*NEUTRAL, *NEUTRAL_IN_MESSAGE, *NEUTRAL_IN_STREAM_OPTIONS}
