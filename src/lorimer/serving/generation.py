"""What every request for answers may say, whatever is to be answered: who answers, how tokens are chosen, where the answer ends.

The fields are those of OpenAI's API reference (platform.openai.com/docs/api-reference); `top_k`, `min_p`, `repetition_penalty` and
`ignore_eos` are vLLM's, `adapter_id` is LoRAX's, and `adapters` is ours.
"""

import hashlib
import re
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lorimer.inference.composition import MAX_PARTS, MAX_SCALE
from lorimer.inference.sampling import SamplingParams
from lorimer.serving.body import INT64, Neutral, RequestPart, Text, without_neutral
from lorimer.serving.messages import ResponseFormat

MAX_ANSWERS = 128  # prompts, and answers to each
MAX_STOPS, MAX_STOP_LEN = 4, 256
MAX_BIASES = 1024
MAX_LOGPROBS = 20
NAMES_OF_BASE = ("", "base")

NEUTRAL: Neutral = {
    "suffix": ("",),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "metadata": ({},),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "logit_bias": ({},),
    "adapters": ([],),
    "echo": (False,),
    "logprobs": (False,),
}
"""Values that ask for nothing: leaving them out changes no answer, and some fields are honoured with no others."""
NEUTRAL_IN_STREAM_OPTIONS: Neutral = {"include_obfuscation": (False,), "continuous_usage_stats": (False,)}


class StreamOptions(RequestPart):
    """What a stream carries beside its pieces."""

    neutral: ClassVar[Neutral] = NEUTRAL_IN_STREAM_OPTIONS
    include_usage: bool = False


class NamedAdapter(RequestPart):
    """One adapter of those that answer together."""

    id: Text = Field(min_length=1, max_length=200)
    """By any of its names."""
    scale: float = Field(1.0, ge=-MAX_SCALE, le=MAX_SCALE)
    """What its change is multiplied by."""


class GenerationRequest(RequestPart):
    """What chat and text completions have in common."""

    id_prefix: ClassVar[str]
    prompt_field: ClassVar[str]
    """Where what is to be answered stands; named in messages."""
    default_answer_len: ClassVar[int]
    """Tokens of an answer where the client sets no limit."""
    model: Text = Field(min_length=1, max_length=1000)
    """An adapter (`helpdesk`, `helpdesk@v3`, `helpdesk@champion`, `helpdesk@sha256:ab12cd`), several (`sql@v3*0.7+tone`), the base, or
    `auto`."""
    adapter_id: Text | None = Field(None, min_length=1, max_length=1000)
    """LoRAX's name of `model`; then `model` is the base's or left out."""
    adapters: list[NamedAdapter] = Field([], max_length=MAX_PARTS)
    """Adapters whose changes are added up, each with its scale; `model` is the base's name then."""
    max_tokens: int | None = Field(None, ge=1, lt=INT64)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=-1, lt=INT64)
    """0 and -1 are all."""
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field({}, max_length=MAX_BIASES)
    """By token id."""
    n: int = Field(1, ge=1, le=MAX_ANSWERS)
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    stop: Text | list[Text] = Field([], max_length=MAX_STOP_LEN)
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: Text | None = Field(None, max_length=256)
    """Kept in the request log."""
    ignore_eos: bool = False
    """Go on to the limit whatever the model says; for measuring."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: Any) -> Any:
        """Leave out what asks for nothing; LoRAX's clients name the adapter in a field of its own."""
        value = without_neutral(value, cls.neutral)
        if isinstance(value, dict) and isinstance(value.get("adapter_id"), str) and value.get("model", "") in NAMES_OF_BASE:
            return {**value, "model": value["adapter_id"]}
        return value

    @field_validator("adapter_id")
    @classmethod
    def _check_adapter_id(cls, adapter_id: str | None, info: ValidationInfo) -> str | None:
        if adapter_id is not None and info.data.get("model", adapter_id) != adapter_id:
            raise ValueError(f"means the same as `model`, which is {info.data['model'][:100]!r}: give one of them")
        return adapter_id

    @field_validator("logit_bias")
    @classmethod
    def _check_biases(cls, biases: dict[str, float]) -> dict[str, float]:
        if wrong := [key for key in biases if not re.fullmatch(r"[0-9]{1,18}", key)]:
            raise ValueError(f"has token ids for keys, found {wrong[0][:100]!r}")
        return biases

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

    @field_validator("ignore_eos")
    @classmethod
    def _check_end(cls, ignore_eos: bool, info: ValidationInfo) -> bool:
        form = info.data.get("response_format")
        if ignore_eos and form is not None and form.asked_schema is not None:
            raise ValueError("an answer of a given form ends where the form ends: leave out `ignore_eos` or `response_format`")
        return ignore_eos

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

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens are wanted beside each one; None if no log-probabilities are."""
        raise NotImplementedError

    @property
    def biases(self) -> dict[int, float]:
        """`logit_bias` by token id."""
        return {int(key): bias for key, bias in self.logit_bias.items()}

    def sampling(self, max_tokens: int, *, choice: int = 0) -> SamplingParams:
        """How the engine is to choose tokens for one of the `n` answers."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=self.biases,
            num_logprobs=self.num_logprobs,
            seed=None if self.seed is None else derived_seed(self.seed, choice),
            ignore_eos=self.ignore_eos,
        )


def derived_seed(seed: int, choice: int) -> int:
    """A seed for each of several answers; the first has the one that was asked for, so that alone it is the same."""
    if choice == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {choice}".encode()).digest()[:7], "big")
