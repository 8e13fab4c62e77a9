"""From a request to its answer: prompts to sequences, tokens to text, whole or streamed; every request ends in the log."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from collections.abc import Sequence as ListOf
from dataclasses import dataclass, field
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from lorimer.errors import AdapterError, DataError, EngineError, IntegrityError
from lorimer.inference.sequence import Sequence
from lorimer.inference.text import TextStream
from lorimer.serving.metrics import Metrics
from lorimer.serving.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest
from lorimer.serving.records import CANCELLED, RequestRecord, log_request, now
from lorimer.serving.refusals import ApiError, shown
from lorimer.serving.replies import DONE, Answer, ChatShape, Finish, Heading, Shape, TextShape, Usage
from lorimer.serving.resolve import Models, Target
from lorimer.serving.worker import EngineWorker
from lorimer.storage import canonical_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of one answer."""

    index: int
    text: str
    finish_reason: Finish | None


Pieces = asyncio.Queue[Piece | ApiError | None]  # None ends it


@dataclass(slots=True, kw_only=True)
class Call:
    """One request while it is answered: what its record and its replies will say."""

    id: str
    body: GenerationRequest
    target: Target | None = None
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    answers: dict[int, Answer] = field(default_factory=dict)
    """Those that are finished, by index."""
    started_at: float = field(default_factory=time.perf_counter)
    first_token_at: float | None = None
    came_at: str = field(default_factory=now)

    @property
    def usage(self) -> Usage:
        """The token counts so far."""
        num_prompt, num_generated = self.num_prompt_tokens, self.num_generated_tokens
        return Usage(prompt_tokens=num_prompt, completion_tokens=num_generated, total_tokens=num_prompt + num_generated)

    def record(self, base_digest: str, status: int) -> RequestRecord:
        """What the log keeps of it."""
        ttft = None if self.first_token_at is None else round(self.first_token_at - self.started_at, 6)
        return RequestRecord(
            id=self.id,
            at=self.came_at,
            model=shown(self.body.model),
            adapter=self.target.id if self.target else None,
            adapter_digest=self.target.digest if self.target else None,
            base_digest=base_digest,
            user=self.body.user,
            num_prompt_tokens=self.num_prompt_tokens,
            num_generated_tokens=self.num_generated_tokens,
            finish_reasons=tuple(self.answers[index].finish_reason for index in sorted(self.answers)),
            latency_seconds=round(time.perf_counter() - self.started_at, 6),
            ttft_seconds=ttft,
            status=status,
        )


class Completions:
    """Answers generation requests with one engine."""

    def __init__(self, worker: EngineWorker, models: Models, metrics: Metrics) -> None:
        self.worker, self.models, self.metrics = worker, models, metrics
        self.base = worker.engine.base
        self._tasks: set[asyncio.Task[None]] = set()  # a loop keeps only weak references

    async def answer(self, body: ChatCompletionRequest | CompletionRequest, request: Request) -> Response:
        """Answer a request, whole or as a stream.

        Raises:
            ApiError: if it cannot be answered; a stream that has begun says so as its last event instead.
        """
        call = Call(id=body.id_prefix + uuid.uuid4().hex, body=body)
        try:
            target = call.target = await asyncio.to_thread(self.models.resolve, body.model)
            sequences = await asyncio.to_thread(self._sequences, body, target)
        except Exception as exc:
            error = self._explain(exc, call)
            self._close(call, error.status)
            raise error from exc
        call.num_prompt_tokens = sum(len(sequence.prompt_ids) for sequence in sequences)
        pieces = self._start(call, sequences, target, request)
        heading = Heading(
            id=call.id,
            model=target.id,
            system_fingerprint=f"fp_{self.base.digest[:12]}",
            created=int(time.time()),
            ends_with_usage=body.wants_usage_chunk,
        )
        shape = ChatShape(heading) if isinstance(body, ChatCompletionRequest) else TextShape(heading)
        return await (_stream(call, shape, pieces) if body.stream else _whole(call, shape, pieces))

    def _sequences(self, body: ChatCompletionRequest | CompletionRequest, target: Target) -> list[Sequence]:
        """One sequence a prompt, each with room for its answer."""
        renderer = self.base.renderer
        if isinstance(body, ChatCompletionRequest):
            prompts = [renderer.render_prompt(body.conversation())]
        else:
            prompts = [renderer.tokenise_prompt(prompt) if isinstance(prompt, str) else self._check_ids(prompt) for prompt in body.prompts]
        return [Sequence(prompt_ids=ids, params=body.sampling(self._answer_len(body, len(ids))), adapter=target.digest) for ids in prompts]

    def _check_ids(self, ids: ListOf[int]) -> tuple[int, ...]:
        """Token ids from a client, refused here if the base has no such token: one wrong id would fail a whole step."""
        vocabulary = int(self.base.model.get_input_embeddings().weight.shape[0])
        if wrong := [i for i in ids if i >= vocabulary]:
            raise ApiError(400, f"token id {wrong[0]} is not in the vocabulary of {vocabulary}", param="prompt", code="invalid_value")
        return tuple(ids)

    def _answer_len(self, body: GenerationRequest, prompt_len: int) -> int:
        """Tokens the answer may take."""
        if prompt_len == 0:
            raise ApiError(400, "the prompt has no tokens: say something", param=body.prompt_field, code="invalid_value")
        room = self.worker.engine.max_len - prompt_len
        wanted = body.num_tokens_asked or min(room, body.default_answer_len)
        if not 1 <= wanted <= room:
            raise ApiError(
                400,
                f"the prompt has {prompt_len} tokens and {max(wanted, 1)} more were asked for, but this model takes "
                f"{self.worker.engine.max_len} together: shorten the prompt or ask for fewer tokens",
                param=body.prompt_field,
                code="context_length_exceeded",
            )
        return wanted

    def _start(self, call: Call, sequences: ListOf[Sequence], target: Target, request: Request) -> Pieces:
        """Generate in a task of its own, so that a request ends properly whether or not anybody still listens."""
        pieces: Pieces = asyncio.Queue()
        task = asyncio.create_task(self._run(call, sequences, target, request, pieces))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return pieces

    async def _run(self, call: Call, sequences: ListOf[Sequence], target: Target, request: Request, pieces: Pieces) -> None:
        watcher = asyncio.create_task(self._cancel_when_gone(request, sequences))
        try:
            async for piece in self._generate(call, sequences, target):
                pieces.put_nowait(piece)
            status = 200 if len(call.answers) == len(sequences) else CANCELLED
        except Exception as exc:
            error = self._explain(exc, call)
            status = error.status
            pieces.put_nowait(error)
        finally:
            watcher.cancel()
            pieces.put_nowait(None)
        self._close(call, status)

    async def _generate(self, call: Call, sequences: ListOf[Sequence], target: Target) -> AsyncIterator[Piece]:
        """Text as it comes; an answer that meets a stop string ends there."""
        streams = {sequence.id: TextStream(self.base.renderer, call.body.stops) for sequence in sequences}
        places = {sequence.id: index for index, sequence in enumerate(sequences)}
        is_watched = call.body.stream or bool(call.body.stops)  # else nobody looks at the text before its end
        ids: dict[int, list[int]] = {sequence.id: [] for sequence in sequences}
        async for sequence, new_ids, finish_reason, at in self.worker.submit(*sequences, folder=target.folder):
            index, stream = places[sequence.id], streams[sequence.id]
            if index in call.answers or finish_reason == "aborted":
                continue
            call.first_token_at = call.first_token_at or at
            call.num_generated_tokens += len(new_ids)
            ids[sequence.id] += new_ids
            if not is_watched and finish_reason is None:
                continue
            text = stream.push(ids[sequence.id], is_last=finish_reason is not None)
            if stream.is_stopped:
                self.worker.cancel(sequence)
            reason: Finish | None = "stop" if stream.is_stopped else finish_reason
            if reason is not None:
                call.answers[index] = Answer(stream.text, reason)
            if text or reason is not None:
                yield Piece(index, text, reason)

    async def _cancel_when_gone(self, request: Request, sequences: ListOf[Sequence]) -> None:
        """Wait for the client to leave; then its sequences need not go on."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.worker.cancel(*sequences)

    def _explain(self, exc: Exception, call: Call) -> ApiError:
        """What the client is told; paths and stacks go to the log instead."""
        match exc:
            case ApiError():
                return exc
            case DataError():
                return ApiError(400, str(exc), param=call.body.prompt_field, code="invalid_value")
            case AdapterError() | IntegrityError():
                logger.error("request %s: %s", call.id, exc)
                message = f"the adapter {call.target and call.target.id!r} cannot be served: its files are damaged or do not fit the base"
                return ApiError(503, message, kind="server_error", code="adapter_unavailable")
            case EngineError() if not self.worker.is_running:
                return ApiError(503, str(exc), kind="server_error", code="engine_stopped")
            case EngineError():
                return ApiError(500, str(exc), kind="server_error", code="engine_failed")
        logger.error("request %s failed", call.id, exc_info=exc)
        return ApiError(500, f"the request failed ({type(exc).__name__}): try again", kind="server_error", code="internal_error")

    def _close(self, call: Call, status: int) -> None:
        """Every request that was understood ends here, once."""
        record = call.record(self.base.digest, status)
        self.metrics.observe(record)
        log_request(record)


async def _whole(call: Call, shape: Shape, pieces: Pieces) -> Response:
    """All answers in one reply."""
    while (piece := await pieces.get()) is not None:
        if isinstance(piece, ApiError):
            raise piece
    answers = [call.answers[index] for index in sorted(call.answers)]
    return Response(shape.whole(answers, call.usage).to_bytes(), media_type="application/json", headers=_headers(call))


async def _stream(call: Call, shape: Shape, pieces: Pieces) -> Response:
    """Answers piece by piece; the reply begins with the first, so that an error before it keeps its own status."""
    first = await pieces.get()
    if isinstance(first, ApiError):
        raise first
    headers = {**_headers(call), "cache-control": "no-cache", "x-accel-buffering": "no"}  # the second: nginx must not gather pieces
    return StreamingResponse(_events(call, shape, first, pieces), media_type="text/event-stream", headers=headers)


async def _events(call: Call, shape: Shape, piece: Piece | ApiError | None, pieces: Pieces) -> AsyncIterator[bytes]:
    opened: set[int] = set()
    while piece is not None:
        if isinstance(piece, ApiError):
            yield b"data: " + canonical_json(piece.to_json()) + b"\n\n"
            yield DONE
            return
        if piece.index not in opened:
            opened.add(piece.index)
            for reply in shape.opening(piece.index):
                yield reply.to_event()
        if piece.text:
            yield shape.piece(piece.index, piece.text).to_event()
        if piece.finish_reason is not None:
            yield shape.closing(piece.index, piece.finish_reason).to_event()
        piece = await pieces.get()
    if call.body.wants_usage_chunk:
        yield shape.counts(call.usage).to_event()
    yield DONE


def _headers(call: Call) -> dict[str, str]:
    """Who answered; quoted, since a base's name may be a path in any script."""
    assert call.target is not None
    named = {"x-adapter": quote(call.target.id, safe="@/.")}
    return named if call.target.digest is None else {**named, "x-adapter-digest": call.target.digest}
