"""How the answers to one request are put into replies, whole or piece by piece: the form of chat, and that of continued text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lorimer.inference.sampling import TokenScores
from lorimer.inference.text import TokenNames
from lorimer.serving.answers import Answer, Piece
from lorimer.serving.replies import (
    AnswerMessage,
    CalledFunction,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    ChunkChoice,
    Completion,
    Delta,
    DeltaCall,
    Finish,
    Generated,
    MessageCall,
    PlaceLogprobs,
    Reply,
    TextChoice,
    TextLogprobs,
    TokenLogprob,
    Usage,
)
from lorimer.serving.tools import CallPiece


class Form(Protocol):
    """How the answers to one request are put into replies."""

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Reply:
        """All answers at once."""

    def opening(self, index: int) -> Sequence[Reply]:
        """What a stream says before an answer's first piece."""

    def piece(self, piece: Piece) -> Reply:
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
    has_logprobs: bool

    def on_whole(self) -> dict[str, Any]:
        """The fields of a whole reply."""
        return {"id": self.id, "created": self.created, "model": self.model, "system_fingerprint": self.system_fingerprint}

    def on_chunk(self) -> dict[str, Any]:
        """The fields of a chunk."""
        return {**self.on_whole(), "usage": None} if self.ends_with_usage else self.on_whole()


class ChatForm:
    """Replies of `/v1/chat/completions`."""

    def __init__(self, heading: Heading, names: TokenNames) -> None:
        self.heading, self.names = heading, names

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Reply:
        """See `Form`."""
        choices = [
            ChatChoice(index=index, message=_message(answer), logprobs=self._logprobs(answer.scores), finish_reason=answer.finish_reason)
            for index, answer in enumerate(answers)
        ]
        return ChatCompletion(**self.heading.on_whole(), object="chat.completion", choices=choices, usage=usage)

    def opening(self, index: int) -> Sequence[Reply]:
        """See `Form`."""
        return [self._chunk(index, Delta(role="assistant", content=""))]

    def piece(self, piece: Piece) -> Reply:
        """See `Form`."""
        said: dict[str, Any] = {"content": piece.text} if piece.text or not piece.calls else {}
        if piece.calls:
            said["tool_calls"] = [_delta_of(call) for call in piece.calls]
        return self._chunk(piece.index, Delta(**said), scores=piece.scores)

    def closing(self, index: int, finish_reason: Finish) -> Reply:
        """See `Form`."""
        return self._chunk(index, Delta(), finish_reason)

    def counts(self, usage: Usage) -> Reply:
        """See `Form`."""
        return ChatCompletionChunk(**{**self.heading.on_chunk(), "usage": usage}, object="chat.completion.chunk", choices=[])

    def _chunk(self, index: int, delta: Delta, finish_reason: Finish | None = None, scores: Sequence[TokenScores] = ()) -> Reply:
        logprobs = self._logprobs(scores) if scores else None
        choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)
        return ChatCompletionChunk(**self.heading.on_chunk(), object="chat.completion.chunk", choices=[choice])

    def _logprobs(self, scores: Sequence[TokenScores]) -> ChatLogprobs | None:
        if not self.heading.has_logprobs:
            return None
        content = [
            PlaceLogprobs(**self._named(place.token_id), logprob=place.logprob, top_logprobs=[self._top(i, p) for i, p in place.top])
            for place in scores
        ]
        return ChatLogprobs(content=content, refusal=None)

    def _top(self, token_id: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(**self._named(token_id), logprob=logprob)

    def _named(self, token_id: int) -> dict[str, Any]:
        said = self.names.bytes_of(token_id)
        return {"token": said.decode(errors="replace"), "bytes": list(said)}


class TextForm:
    """Replies of `/v1/completions`."""

    def __init__(self, heading: Heading, names: TokenNames) -> None:
        self.heading, self.names = heading, names
        self._offsets: dict[int, int] = {}  # where each answer's next token begins

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Reply:
        """See `Form`."""
        choices = [
            TextChoice(index=index, text=answer.text, logprobs=self._logprobs(index, answer), finish_reason=answer.finish_reason)
            for index, answer in enumerate(answers)
        ]
        return Completion(**self.heading.on_whole(), object="text_completion", choices=choices, usage=usage)

    def opening(self, index: int) -> Sequence[Reply]:
        """See `Form`."""
        return []

    def piece(self, piece: Piece) -> Reply:
        """See `Form`."""
        has_scores = piece.scores or piece.first_id is not None
        return self._chunk(piece.index, piece.text, logprobs=self._logprobs(piece.index, piece) if has_scores else None)

    def closing(self, index: int, finish_reason: Finish) -> Reply:
        """See `Form`."""
        return self._chunk(index, "", finish_reason)

    def counts(self, usage: Usage) -> Reply:
        """See `Form`."""
        return Completion(**{**self.heading.on_chunk(), "usage": usage}, object="text_completion", choices=[])

    def _chunk(self, index: int, text: str, finish_reason: Finish | None = None, logprobs: TextLogprobs | None = None) -> Reply:
        choice = TextChoice(index=index, text=text, logprobs=logprobs, finish_reason=finish_reason)
        return Completion(**self.heading.on_chunk(), object="text_completion", choices=[choice])

    def _logprobs(self, index: int, said: Piece | Answer) -> TextLogprobs | None:
        if not self.heading.has_logprobs:
            return None
        first = [] if said.first_id is None else [said.first_id]
        ids = [*first, *(place.token_id for place in said.scores)]
        tokens = [self._name(i) for i in ids]
        offsets = []
        for i, token in zip(ids, tokens, strict=True):
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + (0 if self.names.renderer.is_special(i) else len(token))  # the text holds no special ones
        tops = [{self._name(i): logprob for i, logprob in (*place.top, (place.token_id, place.logprob))} for place in said.scores]
        return TextLogprobs(
            tokens=tokens,
            token_logprobs=[*(None for _ in first), *(place.logprob for place in said.scores)],
            top_logprobs=[*(None for _ in first), *tops],
            text_offset=offsets,
        )

    def _name(self, token_id: int) -> str:
        r"""A token as text; where it is no whole characters, as `bytes:\xe2\x82`, so that no two have one name."""
        said = self.names.bytes_of(token_id)
        try:
            return said.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in said)


class PlainForm(TextForm):
    """The reply of `/generate`, which is never streamed."""

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Reply:
        """See `Form`."""
        return Generated(generated_text=answers[0].text)


def _message(answer: Answer) -> AnswerMessage:
    if not answer.calls:
        return AnswerMessage(role="assistant", content=answer.text, refusal=None)
    calls = [
        MessageCall(id=call.id, type="function", function=CalledFunction(name=call.name, arguments=call.arguments)) for call in answer.calls
    ]
    return AnswerMessage(role="assistant", content=answer.text or None, refusal=None, tool_calls=calls)


def _delta_of(call: CallPiece) -> DeltaCall:
    if call.id is None or call.name is None:
        return DeltaCall(index=call.index, function=CalledFunction(arguments=call.arguments))
    return DeltaCall(index=call.index, id=call.id, type="function", function=CalledFunction(name=call.name, arguments=call.arguments))
