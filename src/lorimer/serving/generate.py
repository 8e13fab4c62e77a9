"""`POST /generate`, as text-generation-inference and LoRAX take it: the request for one continuation in other words."""

from typing import ClassVar

from pydantic import Field, ValidationError, model_validator

from lorimer.serving.body import INT64, Neutral, RequestPart, Text
from lorimer.serving.protocol import CompletionRequest

NEUTRAL_IN_PARAMETERS: Neutral = {
    "best_of": (1,),
    "typical_p": (1,),
    "watermark": (False,),
    "details": (False,),
    "decoder_input_details": (False,),
    "adapter_source": ("local",),
}


class GenerateCompletion(CompletionRequest):
    """The same as a text completion."""

    id_prefix: ClassVar[str] = "gen-"
    prompt_field: ClassVar[str] = "inputs"
    default_answer_len: ClassVar[int] = 100  # text-generation-inference's


class GenerateParameters(RequestPart):
    """How to generate."""

    neutral: ClassVar[Neutral] = NEUTRAL_IN_PARAMETERS
    adapter_id: Text | None = Field(None, min_length=1, max_length=1000)
    """The adapter; the base by default."""
    max_new_tokens: int | None = Field(None, ge=1, lt=INT64)
    do_sample: bool = False
    temperature: float | None = Field(None, gt=0, le=2)
    """Without it, and without `top_k`, `top_p` and `do_sample`, the likeliest tokens are taken."""
    top_k: int | None = Field(None, ge=1, lt=INT64)
    top_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=0, lt=INT64)
    stop: list[Text] | None = None
    return_full_text: bool | None = None
    ignore_eos_token: bool | None = None


class GenerateRequest(RequestPart):
    """`POST /generate`"""

    inputs: Text
    parameters: GenerateParameters = GenerateParameters()
    stream: bool = False
    """LoRAX's; streams are those of `/v1/completions`."""

    @model_validator(mode="after")
    def _check(self) -> "GenerateRequest":
        if self.stream:
            raise ValueError("`stream` is not supported here: ask `/v1/completions` for streams")
        try:
            self.to_completion()
        except ValidationError as exc:
            raise ValueError("; ".join(f"`{error['loc'][0]}`: {error['msg']}" for error in exc.errors())) from exc
        return self

    def to_completion(self) -> GenerateCompletion:
        """The same in the words of `/v1/completions`."""
        own = self.parameters
        samples = own.do_sample or any(value is not None for value in (own.temperature, own.top_k, own.top_p))
        asked = {
            "model": own.adapter_id or "base",
            "prompt": self.inputs,
            "max_tokens": own.max_new_tokens,
            "temperature": (own.temperature or 1.0) if samples else 0.0,
            "top_k": own.top_k,
            "top_p": own.top_p,
            "repetition_penalty": own.repetition_penalty,
            "frequency_penalty": own.frequency_penalty,
            "seed": own.seed,
            "stop": own.stop,
            "echo": own.return_full_text,
            "ignore_eos": own.ignore_eos_token,
        }
        return GenerateCompletion.model_validate(asked)
