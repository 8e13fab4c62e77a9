"""From a request to its answer: who answers, tokens as they come, whole or streamed; every request ends in the log."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Collection
from collections.abc import Sequence as ListOf
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from fastapi import Request, Response

from lorimer.errors import (
    AdapterError,
    CompositionError,
    DataError,
    EngineError,
    IntegrityError,
    QuarantineError,
    UnavailableError,
    UnsupportedError,
)
from lorimer.inference.constraint import GrammarConstraint
from lorimer.inference.routing import RoutingDecision
from lorimer.inference.sequence import Sequence
from lorimer.inference.text import TextStream, TokenNames
from lorimer.serving.answers import AnswerStream, Piece
from lorimer.serving.backend import Backend, Progress
from lorimer.serving.delivery import Call, Pieces, send_stream, send_whole
from lorimer.serving.forms import ChatForm, Heading, PlainForm, TextForm
from lorimer.serving.generate import GenerateCompletion
from lorimer.serving.metrics import Metrics
from lorimer.serving.prompts import Prompts
from lorimer.serving.protocol import ChatCompletionRequest, CompletionRequest
from lorimer.serving.records import CANCELLED, log_request
from lorimer.serving.refusals import ApiError
from lorimer.serving.resolve import AUTO, Target

logger = logging.getLogger(__name__)

FORMS: dict[type, type[ChatForm] | type[TextForm]] = {
    ChatCompletionRequest: ChatForm,
    CompletionRequest: TextForm,
    GenerateCompletion: PlainForm,
}

NUM_ROUTED = 8  # requests whose adapter is being chosen, at once


class RouteOfTenant(Protocol):
    """Decides which adapter a prompt is nearest to, at the cost of a prefill, which is its tenant's."""

    def __call__(self, ids: tuple[int, ...], allowed: Collection[str], *, tenant: str) -> RoutingDecision:
        """Of the adapters of these digests."""


class Completions:
    """Answers generation requests with one backend; `route` decides where a request leaves open which adapter is to answer."""

    def __init__(self, worker: Backend, metrics: Metrics, *, route: RouteOfTenant | None = None) -> None:
        self.worker, self.metrics, self.route = worker, metrics, route
        self.base = worker.base
        self.prompts, self.names = Prompts(self.base), TokenNames(self.base.renderer)
        self._tasks: set[asyncio.Task[None]] = set()  # a loop keeps only weak references
        self._routing_threads = ThreadPoolExecutor(NUM_ROUTED, thread_name_prefix="routed")  # each waits for a prefill, others must not

    async def answer(self, body: ChatCompletionRequest | CompletionRequest, request: Request) -> Response:
        """Answer a request, whole or as a stream.

        Raises:
            ApiError: if it cannot be answered; a stream that has begun says so as its last event instead.
        """
        state = request.state
        call = Call(
            id=body.id_prefix + uuid.uuid4().hex,
            body=body,
            models=state.models,
            admission=state.admission,
            tenant=state.tenant,
            key_prefix=state.key_prefix,
        )
        try:
            threads = self._routing_threads if body.model == AUTO else None
            target, streams = await asyncio.get_running_loop().run_in_executor(threads, self._prepare, call, body)
        except Exception as exc:
            error = self._explain(exc, call)
            self._close(call, error.status)
            raise error from exc
        pieces = self._start(call, streams, target, request)
        heading = Heading(
            id=call.id,
            model=target.id,
            system_fingerprint=f"fp_{self.base.digest[:12]}",
            created=int(time.time()),
            ends_with_usage=body.wants_usage_chunk,
            has_logprobs=body.num_logprobs is not None,
        )
        form = FORMS[type(body)](heading, self.names)
        return await (send_stream if body.stream else send_whole)(call, form, pieces)

    def _prepare(self, call: Call, body: ChatCompletionRequest | CompletionRequest) -> tuple[Target, list[AnswerStream]]:
        """Who answers, and a stream for each answer."""
        ids = self.prompts.ids_of(body)
        if body.model == AUTO and self.route is None:
            message = f"`model`: {AUTO!r} looks into the base while it reads, which {self.worker.name} does not allow: name an adapter"
            raise ApiError(400, message, param="model", code="unsupported_parameter")
        if body.model == AUTO and len(ids) > 1:
            raise ApiError(400, f"{AUTO!r} decides for one prompt: send one, or name an adapter", param="prompt", code="invalid_value")
        route = None if self.route is None else partial(self.route, tenant=call.tenant)
        target = call.target = call.models.resolve(body.model, adapters=body.adapters, prompt_ids=ids[0], route=route)
        sequences = self.prompts.sequences(body, ids, target, tenant=call.tenant, max_len=call.models.max_len)
        call.num_prompt_tokens = sum(map(len, ids))
        return target, [
            AnswerStream(index, sequence, TextStream(self.base.renderer, body.stops), reader=self.prompts.reader_of(body), prefix=prefix)
            for index, (sequence, prefix) in enumerate(zip(sequences, self.prompts.echoes(body, ids), strict=True))
        ]

    def _start(self, call: Call, streams: ListOf[AnswerStream], target: Target, request: Request) -> Pieces:
        """Generate in a task of its own, so that a request ends properly whether or not anybody still listens."""
        pieces: Pieces = asyncio.Queue()
        task = asyncio.create_task(self._run(call, streams, target, request, pieces))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return pieces

    async def _run(self, call: Call, streams: ListOf[AnswerStream], target: Target, request: Request, pieces: Pieces) -> None:
        watcher = asyncio.create_task(self._cancel_when_gone(call, request, [stream.sequence for stream in streams]))
        try:
            async for piece in self._generate(call, streams, target):
                pieces.put_nowait(piece)
            status = 200 if len(call.answers) == len(streams) else CANCELLED
        except Exception as exc:
            error = self._explain(exc, call)
            status = error.status
            pieces.put_nowait(error)
        finally:
            watcher.cancel()
            pieces.put_nowait(None)
        self._close(call, status)

    async def _generate(self, call: Call, streams: ListOf[AnswerStream], target: Target) -> AsyncIterator[Piece]:
        """Text as it comes; an answer that meets a stop string ends there."""
        by_sequence = {stream.sequence.id: stream for stream in streams}
        is_watched = call.body.stream or bool(call.body.stops)  # else nobody looks at the text before its end
        async for sequence, new_ids, finish_reason, at in self._progress(call, [stream.sequence for stream in streams], target):
            stream = by_sequence[sequence.id]
            if stream.index in call.answers or finish_reason == "aborted":
                continue
            call.first_token_at = call.first_token_at or at
            call.num_generated_tokens += len(new_ids)
            stream.take(new_ids)
            if not is_watched and finish_reason is None:
                continue
            piece = stream.read(finish_reason)
            if stream.is_stopped:
                self.worker.cancel(sequence)
            if piece.finish_reason is not None:
                _check_held(sequence)
                call.answers[stream.index] = stream.answer()
            if piece.says_something or piece.finish_reason is not None:
                yield piece

    async def _progress(self, call: Call, sequences: ListOf[Sequence], target: Target) -> AsyncIterator[Progress]:
        """What the engine does for all sequences. The first to a prompt goes ahead of the others, so that they find it computed."""
        if call.body.n == 1:
            async for progress in self.worker.submit(*sequences, folders=target.folders):
                yield progress
            return
        firsts = sequences[:: call.body.n]
        others = {first.id: sequences[at * call.body.n + 1 : (at + 1) * call.body.n] for at, first in enumerate(firsts)}
        events: asyncio.Queue[Progress | Exception] = asyncio.Queue()

        async def follow(together: ListOf[Sequence]) -> None:
            try:
                async for progress in self.worker.submit(*together, folders=target.folders):
                    events.put_nowait(progress)
            except Exception as exc:
                events.put_nowait(exc)

        tasks, num_left = [asyncio.create_task(follow(firsts))], len(sequences)
        try:
            while num_left:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                if call.is_gone and event.finish_reason is None:
                    self.worker.cancel(event.sequence)  # it may have begun after all were cancelled
                waiting = others.pop(event.sequence.id, ())
                if event.finish_reason == "aborted" or call.is_gone:
                    num_left -= len(waiting)
                elif waiting:
                    tasks.append(asyncio.create_task(follow(waiting)))
                num_left -= event.finish_reason is not None
                yield event
        finally:
            for task in tasks:
                task.cancel()

    async def _cancel_when_gone(self, call: Call, request: Request, sequences: ListOf[Sequence]) -> None:
        """Wait for the client to leave; then its sequences need not go on."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        call.is_gone = True
        self.worker.cancel(*sequences)

    def _explain(self, exc: Exception, call: Call) -> ApiError:
        """What the client is told; paths and stacks go to the log instead."""
        match exc:
            case ApiError():
                return exc
            case DataError():
                return ApiError(400, str(exc), param=call.body.prompt_field, code="invalid_value")
            case CompositionError():
                return ApiError(400, str(exc), param="adapters" if call.body.adapters else "model", code="invalid_value")
            case UnsupportedError():
                return ApiError(400, str(exc), param=self._param_of(exc, call), code="unsupported_parameter")
            case UnavailableError():
                logger.error("request %s: %s", call.id, exc)
                return ApiError(503, str(exc), kind="server_error", code="backend_unavailable", headers={"retry-after": "2"})
            case QuarantineError():  # the log was told when it was found out
                return ApiError(503, str(exc), kind="server_error", code="adapter_quarantined")
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

    def _param_of(self, exc: UnsupportedError, call: Call) -> str | None:
        """The field of the body that asked for what is not done; sequences know only what came of it."""
        body = call.body
        match exc.field:
            case "composition":
                return "adapters" if body.adapters else "model"
            case "constraint":
                return "response_format" if body.response_format is not None else "tools"
        return exc.field

    def _close(self, call: Call, status: int) -> None:
        """Every request that was understood ends here, once."""
        call.admission.settle(call.num_prompt_tokens + call.num_generated_tokens)
        record = call.record(self.base.digest, status)
        self.metrics.observe(record)
        log_request(record)


def _check_held(sequence: Sequence) -> None:
    """See that an answer that was to have a certain form has it.

    Raises:
        ApiError: if llguidance gave up in the middle.
    """
    constraint = sequence.constraint
    if isinstance(constraint, GrammarConstraint) and constraint.failure is not None:
        message = f"the answer could not be held to its JSON schema to the end ({constraint.failure}): ask for a simpler one"
        raise ApiError(400, message, code="invalid_json_schema")
