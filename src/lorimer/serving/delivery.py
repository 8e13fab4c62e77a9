"""A request while it is answered, and how its answers reach the client: in one reply, or as events of a stream."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import quote

from fastapi import Response
from fastapi.responses import StreamingResponse

from lorimer.serving.answers import Answer, Piece
from lorimer.serving.forms import Form
from lorimer.serving.generation import GenerationRequest
from lorimer.serving.limits import Admission
from lorimer.serving.records import CANCELLED, RequestRecord, now
from lorimer.serving.refusals import ApiError, shown
from lorimer.serving.replies import DONE, Usage
from lorimer.serving.resolve import AUTO, Models, Target
from lorimer.storage import canonical_json

Pieces = asyncio.Queue[Piece | ApiError | None]  # None ends it


@dataclass(slots=True, kw_only=True)
class Call:
    """One request while it is answered: what its record and its replies will say."""

    id: str
    body: GenerationRequest
    models: Models
    """What the caller may name."""
    admission: Admission
    tenant: str
    key_prefix: str
    target: Target | None = None
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    is_gone: bool = False
    """Whether the client has left."""
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
            is_composed=self.target is not None and self.target.is_composed,
            route_score=self.target.route.score if self.target and self.target.route else None,
            base_digest=base_digest,
            user=self.body.user,
            tenant=self.tenant,
            key_prefix=self.key_prefix,
            num_prompt_tokens=self.num_prompt_tokens,
            num_generated_tokens=self.num_generated_tokens,
            finish_reasons=tuple(self.answers[index].finish_reason for index in sorted(self.answers)),
            latency_seconds=round(time.perf_counter() - self.started_at, 6),
            ttft_seconds=ttft,
            status=status,
        )


async def send_whole(call: Call, form: Form, pieces: Pieces) -> Response:
    """All answers in one reply."""
    while (piece := await pieces.get()) is not None:
        if isinstance(piece, ApiError):
            raise piece
    answers = [call.answers[index] for index in sorted(call.answers)]
    if not answers:
        return Response(status_code=CANCELLED)  # the client has gone: nobody reads it
    return Response(form.whole(answers, call.usage).to_bytes(), media_type="application/json", headers=_headers(call))


async def send_stream(call: Call, form: Form, pieces: Pieces) -> Response:
    """Answers piece by piece; the reply begins with the first, so that an error before it keeps its own status."""
    first = await pieces.get()
    if isinstance(first, ApiError):
        raise first
    headers = {**_headers(call), "cache-control": "no-cache", "x-accel-buffering": "no"}  # the second: nginx must not gather pieces
    return StreamingResponse(_events(call, form, first, pieces), media_type="text/event-stream", headers=headers)


async def _events(call: Call, form: Form, piece: Piece | ApiError | None, pieces: Pieces) -> AsyncIterator[bytes]:
    opened: set[int] = set()
    while piece is not None:
        if isinstance(piece, ApiError):
            yield b"data: " + canonical_json(piece.to_json()) + b"\n\n"
            yield DONE
            return
        if piece.index not in opened:
            opened.add(piece.index)
            for reply in form.opening(piece.index):
                yield reply.to_event()
        if piece.says_something:
            yield form.piece(piece).to_event()
        if piece.finish_reason is not None:
            yield form.closing(piece.index, piece.finish_reason).to_event()
        piece = await pieces.get()
    if call.body.wants_usage_chunk:
        yield form.counts(call.usage).to_event()
    yield DONE


def _headers(call: Call) -> dict[str, str]:
    """Who answered; quoted, since a base's name may be a path in any script."""
    target = call.target
    assert target is not None
    headers = {"x-adapter": quote(target.id, safe="@/.*+")}
    if target.digest is not None:
        headers["x-adapter-digest"] = target.digest
    if target.route is not None:
        headers |= {"x-lorimer-route": AUTO, "x-lorimer-route-score": f"{target.route.score:.4f}"}
    return headers
