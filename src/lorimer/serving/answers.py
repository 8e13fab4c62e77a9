"""One answer while it grows: text, log-probabilities and calls from an engine's tokens, whole or in pieces."""

from collections.abc import Sequence as ListOf
from dataclasses import dataclass

from lorimer.inference.sampling import TokenScores
from lorimer.inference.sequence import FinishReason, Sequence
from lorimer.inference.text import TextStream
from lorimer.serving.replies import Finish
from lorimer.serving.tools import CallPiece, CallReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What is new of one answer."""

    index: int
    text: str = ""
    calls: tuple[CallPiece, ...] = ()
    scores: tuple[TokenScores, ...] = ()
    first_id: int | None = None
    """The prompt's first token, where `scores` begin with the prompt's: nothing stands before it, so that it has none."""
    finish_reason: Finish | None = None

    @property
    def says_something(self) -> bool:
        """Whether it is more than an answer's end."""
        return bool(self.text or self.calls or self.scores or self.first_id is not None)


@dataclass(slots=True, kw_only=True)
class AnsweredCall:
    """A call of a tool in an answer."""

    id: str
    name: str
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One finished answer, before it is put into a form."""

    text: str
    finish_reason: Finish
    scores: tuple[TokenScores, ...] = ()
    first_id: int | None = None
    """As a piece's."""
    calls: tuple[AnsweredCall, ...] = ()


class AnswerStream:
    """What one sequence says, as its client is to see it."""

    def __init__(self, index: int, sequence: Sequence, text: TextStream, *, reader: CallReader | None = None, prefix: str = "") -> None:
        self.index, self.sequence, self.reader = index, sequence, reader
        self._stream, self._prefix = text, prefix
        self._ids: list[int] = []
        self._num_scored = 0
        self._pieces: list[Piece] = []

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string ended it, whatever the engine says."""
        return self._stream.is_stopped

    def take(self, new_ids: ListOf[int]) -> None:
        """More tokens, which nobody looks at yet."""
        self._ids += new_ids

    def read(self, finish_reason: FinishReason | None) -> Piece:
        """What is new since the last time."""
        text = self._stream.push(self._ids, is_last=finish_reason is not None)
        reason: Finish | None = "stop" if self._stream.is_stopped else finish_reason if finish_reason != "aborted" else None
        calls: list[CallPiece] = []
        if self.reader is not None:
            text, calls = self.reader.push(text, is_last=reason is not None)
            reason = "tool_calls" if reason == "stop" and self.reader.num_calls else reason
        echoes = self.sequence.wants_prompt_scores and not self._pieces
        piece = Piece(
            index=self.index,
            text=self._prefix + text,
            calls=tuple(calls),
            scores=(*(self.sequence.prompt_scores if echoes else ()), *self._new_scores(), *self._score_of_end(finish_reason)),
            first_id=self.sequence.prompt_ids[0] if echoes else None,
            finish_reason=reason,
        )
        self._prefix = ""
        self._pieces.append(piece)
        return piece

    def answer(self) -> Answer:
        """All of it, once it has ended."""
        reason = self._pieces[-1].finish_reason
        assert reason is not None, "an answer is whole when it has ended"
        return Answer(
            text="".join(piece.text for piece in self._pieces),
            finish_reason=reason,
            scores=tuple(scores for piece in self._pieces for scores in piece.scores),
            first_id=self._pieces[0].first_id,
            calls=self._calls(),
        )

    def _new_scores(self) -> tuple[TokenScores, ...]:
        """Of the tokens whose text was given out."""
        if self.sequence.params.num_logprobs is None:
            return ()
        start, self._num_scored = self._num_scored, self._stream.num_shown
        return tuple(self.sequence.scores[start : self._num_scored])

    def _score_of_end(self, finish_reason: FinishReason | None) -> ListOf[TokenScores]:
        """Of the stop token, beside a prompt's: clients count one place for every token that was asked for (lm-eval cuts off the last)."""
        if not self.sequence.wants_prompt_scores or finish_reason != "stop" or self._stream.is_stopped:
            return ()
        return self.sequence.scores[len(self.sequence.output_ids) :]

    def _calls(self) -> tuple[AnsweredCall, ...]:
        calls: list[AnsweredCall] = []
        for new in (call for piece in self._pieces for call in piece.calls):
            if new.id is not None and new.name is not None:
                calls.append(AnsweredCall(id=new.id, name=new.name))
            calls[new.index].arguments += new.arguments
        return tuple(calls)
