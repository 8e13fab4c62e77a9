"""The routes: OpenAI's generation and model endpoints, health and metrics. What they do is in completions.py and resolve.py."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorimer.errors import LorimerError
from lorimer.registry.registry import Registry
from lorimer.serving.completions import Completions
from lorimer.serving.metrics import Metrics
from lorimer.serving.protocol import ChatCompletionRequest, CompletionRequest
from lorimer.serving.refusals import ApiError, describe_invalid, shown
from lorimer.serving.replies import ChatCompletion, Completion, ErrorReply, ModelCard, ModelList
from lorimer.serving.resolve import Models
from lorimer.serving.worker import EngineWorker
from lorimer.storage import canonical_json

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 2 << 20
GRACE_SECONDS = 3.0  # for answers in flight when the server ends


def create_app(worker: EngineWorker, registry: Registry) -> FastAPI:
    """The HTTP API over an engine and the adapters of a registry. The worker runs from the app's start to its end."""
    base = worker.engine.base
    models = Models(registry, base_name=base.name, base_digest=base.digest, max_len=worker.engine.max_len)
    metrics = Metrics(worker)
    completions = Completions(worker, models, metrics)
    app = FastAPI(title="Lorimer", docs_url=None, redoc_url=None, lifespan=_lifespan)  # their pages load scripts from elsewhere
    app.state.worker, app.state.models = worker, models
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    _add_generation_routes(app, completions)
    _add_model_routes(app, models)
    _add_state_routes(app, worker, metrics)
    _add_error_shapes(app, metrics)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    worker: EngineWorker = app.state.worker
    worker.start()
    yield
    await asyncio.to_thread(worker.stop, grace_seconds=GRACE_SECONDS)


def _add_generation_routes(app: FastAPI, completions: Completions) -> None:
    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=ERRORS)
    async def chat(body: ChatCompletionRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await completions.answer(body, request)

    @app.post("/v1/completions", response_model=Completion, responses=ERRORS)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        return await completions.answer(body, request)


def _add_model_routes(app: FastAPI, models: Models) -> None:
    @app.get("/v1/models", response_model=ModelList)
    def list_models() -> Response:
        """Everything `model` may name: the base; adapters by name, alias and version."""
        return _json(ModelList(object="list", data=models.cards()).to_bytes())

    @app.get("/v1/models/{model:path}", response_model=ModelCard, responses=ERRORS)
    def show_model(model: str) -> Response:
        """One of them."""
        return _json(models.card(model).to_bytes())


def _add_state_routes(app: FastAPI, worker: EngineWorker, metrics: Metrics) -> None:
    @app.get("/healthz")
    def health() -> Response:
        """Whether requests are answered."""
        state = {
            "status": "ok" if worker.is_running else "stopped",
            "base": worker.engine.base.name,
            "adapters_resident": worker.num_resident,
            "running": worker.num_running,
            "waiting": worker.num_waiting,
        }
        return _json(canonical_json(state), status=200 if worker.is_running else 503)

    @app.get("/metrics")
    def show_metrics() -> Response:
        """Prometheus' text."""
        return Response(metrics.to_text(), media_type=CONTENT_TYPE_LATEST)


def _add_error_shapes(app: FastAPI, metrics: Metrics) -> None:
    """Every error in OpenAI's shape, the framework's own too."""

    @app.exception_handler(ApiError)
    async def refuse(request: Request, exc: ApiError) -> Response:
        return _error(exc)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, exc: RequestValidationError) -> Response:
        metrics.count_invalid()
        return _error(describe_invalid(exc.errors()))

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, exc: HTTPException) -> Response:
        said = {
            404: f"no route {request.method} {shown(request.url.path)}",
            405: f"{shown(request.url.path)} does not take {request.method}",
        }
        response = _error(ApiError(exc.status_code, said.get(exc.status_code, str(exc.detail))))
        response.headers.update(exc.headers or {})
        return response

    @app.exception_handler(LorimerError)
    async def fail(request: Request, exc: LorimerError) -> Response:
        logger.error("%s %s failed: %s", request.method, request.url.path, exc)
        return _error(ApiError(500, "the server could not do this; its log says why", kind="server_error", code="internal_error"))

    @app.exception_handler(Exception)
    async def fail_unexpectedly(request: Request, exc: Exception) -> Response:
        return _error(ApiError(500, f"the request failed ({type(exc).__name__})", kind="server_error", code="internal_error"))


class BodyLimit:
    """Refuses bodies that are too large, and lets no request through before its body is whole."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                response = _error(ApiError(413, f"the body is larger than {self.max_bytes} bytes: send less", code="body_too_large"))
                response.headers["connection"] = "close"  # what is left of the body is not read
                await response(scope, receive, send)
                return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)


def _error(error: ApiError) -> Response:
    return _json(canonical_json(error.to_json()), status=error.status)


def _json(body: bytes, *, status: int = 200) -> Response:
    return Response(body, status_code=status, media_type="application/json")


ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorReply} for status in (400, 404, 413, 500, 503)}
