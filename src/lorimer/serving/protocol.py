"""What may be asked, in OpenAI's words: chat and text completions. What is not honoured is refused; how it is answered it does not know."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, ValidationInfo, ValidatorFunctionWrapHandler, field_validator

from lorimer.model.turns import Turn
from lorimer.serving.body import INT64, Neutral, Text
from lorimer.serving.generation import MAX_ANSWERS, MAX_LOGPROBS, NEUTRAL, NEUTRAL_IN_STREAM_OPTIONS, GenerationRequest
from lorimer.serving.messages import (
    NEUTRAL_IN_FORMAT,
    NEUTRAL_IN_MESSAGE,
    ChatMessage,
    FunctionDefinition,
    NamedTool,
    Tool,
    check_conversation,
    turns_of,
)

MAX_MESSAGES = 256  # a chat template is rendered once a turn: beyond this a small body would cost minutes
MAX_TOOLS = 128

NEUTRAL_IN_CHAT = {**NEUTRAL, "best_of": (1,)}
NEUTRAL_IN_COMPLETION = {**NEUTRAL, "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False), "top_logprobs": (0,)}


class ChatCompletionRequest(GenerationRequest):
    """`POST /v1/chat/completions`"""

    id_prefix: ClassVar[str] = "chatcmpl-"
    prompt_field: ClassVar[str] = "messages"
    default_answer_len: ClassVar[int] = 1024
    neutral: ClassVar[Neutral] = NEUTRAL_IN_CHAT
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, lt=INT64)
    """OpenAI's newer name of `max_tokens`."""
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: list[Tool] = Field([], max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool = Field("auto", validate_default=True)
    parallel_tool_calls: bool = True
    """Whether one answer may call several tools."""

    @field_validator("messages")
    @classmethod
    def _check_messages(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        check_conversation(messages)
        return messages

    @field_validator("max_completion_tokens")
    @classmethod
    def _check_limits(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("max_tokens") is not None:
            raise ValueError("means the same as `max_tokens`: give one of them")
        return limit

    @field_validator("top_logprobs")
    @classmethod
    def _check_logprobs(cls, count: int | None, info: ValidationInfo) -> int | None:
        if count and not info.data.get("logprobs"):
            raise ValueError("only with log-probabilities: set `logprobs` to true or leave it out")
        return count

    @field_validator("tools")
    @classmethod
    def _check_tools(cls, tools: list[Tool]) -> list[Tool]:
        names = [tool.function.name for tool in tools]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two are called {twice[0]!r}: give each a name of its own")
        return tools

    @field_validator("tool_choice", mode="wrap")
    @classmethod
    def _check_choice(cls, choice: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            found = validate(choice)
        except ValidationError as exc:
            named = '{"type": "function", "function": {"name": "..."}}'
            raise ValueError(f"must be 'none', 'auto', 'required' or {named}") from exc
        names = [tool.function.name for tool in info.data.get("tools", ())]
        if isinstance(found, NamedTool) and found.function.name not in names:
            raise ValueError(f"no tool is called {found.function.name!r}: name one of `tools`")
        if found == "required" and not names:
            raise ValueError("there is no tool to call: give `tools`")
        form = info.data.get("response_format")
        if names and found != "none" and (info.data.get("ignore_eos") or (form is not None and form.asked_schema is not None)):
            raise ValueError(
                "`tools` that may be called are not supported together with `response_format` or `ignore_eos`: leave one of them out, "
                "or set `tool_choice` to 'none'"
            )
        return found

    @property
    def num_tokens_asked(self) -> int | None:
        """The longest answer the client wants, where it says so."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """See `GenerationRequest`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def offered(self) -> tuple[FunctionDefinition, ...]:
        """The functions that the answer may call."""
        if self.tool_choice == "none":
            return ()
        wanted = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        return tuple(tool.function for tool in self.tools if wanted in (None, tool.function.name))

    @property
    def must_call(self) -> bool:
        """Whether the answer has to call one of them."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def may_call_several(self) -> bool:
        """Whether it may call more than one; one that was chosen by name is called once."""
        return self.parallel_tool_calls and not isinstance(self.tool_choice, NamedTool)

    def turns(self) -> list[Turn]:
        """The conversation as the renderer takes it."""
        return turns_of(self.messages)


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`"""

    id_prefix: ClassVar[str] = "cmpl-"
    prompt_field: ClassVar[str] = "prompt"
    default_answer_len: ClassVar[int] = 16  # OpenAI's
    neutral: ClassVar[Neutral] = NEUTRAL_IN_COMPLETION
    prompt: Text | list[Text] | list[Annotated[int, Field(ge=0, lt=INT64)]] | list[list[Annotated[int, Field(ge=0, lt=INT64)]]]
    """One text or several, or their token ids."""
    best_of: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    """As many as `n`: all answers are given."""
    max_tokens: int | None = Field(None, ge=0, lt=INT64)
    """0 where the prompt's log-probabilities are all that is wanted."""
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = Field(False, validate_default=True)
    """Say the prompt before the answer, and its log-probabilities before the answer's."""

    @field_validator("prompt", mode="wrap")
    @classmethod
    def _check_prompt(cls, prompt: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            found = validate(prompt)
        except ValidationError as exc:
            raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists") from exc
        is_list = isinstance(found, list) and (not found or not isinstance(found[0], int))
        if is_list and not 1 <= len(found) <= MAX_ANSWERS // info.data.get("n", 1):
            raise ValueError(f"1 to {MAX_ANSWERS} prompts in a request, times `n`, found {len(found)}")
        return found

    @field_validator("best_of")
    @classmethod
    def _check_best_of(cls, best_of: int | None, info: ValidationInfo) -> int | None:
        if best_of is not None and best_of != info.data.get("n", best_of):
            raise ValueError("is supported only where it equals `n`: all answers are given")
        return best_of

    @field_validator("echo")
    @classmethod
    def _check_echo(cls, echo: bool, info: ValidationInfo) -> bool:
        if info.data.get("max_tokens") == 0 and not (echo and info.data.get("logprobs") is not None):
            raise ValueError("and `logprobs` are what `max_tokens` of 0 is for: set both, or ask for at least one token")
        return echo

    @property
    def num_logprobs(self) -> int | None:
        """See `GenerationRequest`."""
        return self.logprobs

    @property
    def wants_prompt_scores(self) -> bool:
        """Whether the prompt's log-probabilities are asked for too."""
        return self.echo and self.logprobs is not None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [entry for entry in self.prompt if isinstance(entry, int)]
        return [ids] if ids else [entry for entry in self.prompt if not isinstance(entry, int)]


KNOWN_FIELDS = sorted({*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields})
NOT_HONOURED = {*NEUTRAL_IN_CHAT, *NEUTRAL_IN_COMPLETION, *NEUTRAL_IN_MESSAGE, *NEUTRAL_IN_STREAM_OPTIONS, *NEUTRAL_IN_FORMAT}
