"""The routes: OpenAI's generation and model endpoints, health and metrics. What they do is in completions.py and resolve.py; who may use
them is in access.py.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from lorimer.errors import LorimerError
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.serving.access import Access, BodyLimit, error_response, require_admin
from lorimer.serving.admin import add_admin_routes
from lorimer.serving.backend import Backend
from lorimer.serving.candidates import Candidates
from lorimer.serving.completions import Completions
from lorimer.serving.dedicated import DedicatedModels
from lorimer.serving.document import ANSWERED, HEALTH, KEYED, READ_ERRORS, STREAMED, TEXT, describe, errors
from lorimer.serving.generate import GenerateRequest
from lorimer.serving.keys import Keys
from lorimer.serving.limits import MAX_WAITING, Limits, estimate_tokens, num_answers
from lorimer.serving.metrics import Metrics
from lorimer.serving.protocol import ChatCompletionRequest, CompletionRequest
from lorimer.serving.refusals import ApiError, describe_invalid, shown
from lorimer.serving.replies import ChatCompletion, Completion, Generated, Health, ModelCard, ModelList
from lorimer.serving.resolve import Models
from lorimer.serving.worker import EngineWorker

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 2 << 20
GRACE_SECONDS = 3.0  # for answers in flight when the server ends


def create_app(
    worker: Backend,
    registry: Registry,
    *,
    no_keys: bool = False,
    max_waiting: int = MAX_WAITING,
    merged: AdapterVersion | None = None,
) -> FastAPI:
    """The HTTP API over a backend and the adapters of a registry. The backend runs from the app's start to its end.

    Once the registry's database holds an API key, callers need one; with `no_keys` they never do. Beyond `max_waiting` answers that wait,
    requests are refused. Where a version is `merged` into the engine's base, it is all that is served.
    """
    base = worker.base
    if merged is None:
        models = Models(registry, base_name=base.name, base_digest=base.digest, max_len=worker.max_len)
    else:
        models = DedicatedModels(registry, merged, max_len=worker.max_len)
    metrics = Metrics(worker, names=registry.names_by_digest)
    keys = Keys(registry.engine)
    limits = Limits(max_running=worker.max_sequences, max_waiting=max_waiting, count=metrics.count_limited)
    metrics.watch("lorimer_answers_open", "Answers that were let in and have not ended", lambda: limits.num_sequences)
    # no pages of documentation, which load scripts from elsewhere, and no redirects, which say whatever `Host` a client sent
    app = FastAPI(title="Lorimer", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=_lifespan)
    app.state.worker, app.state.models, app.state.keys, app.state.no_keys = worker, models, keys, no_keys
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(Access, keys=keys, limits=limits, models=models, metrics=metrics, no_keys=no_keys)  # the outer one
    route = Candidates(worker, registry).decide if isinstance(worker, EngineWorker) else None  # it needs hidden states
    completions = Completions(worker, metrics, route=route)
    _add_generation_routes(app, completions, limits)
    _add_model_routes(app)
    add_admin_routes(app, worker)
    _add_state_routes(app, worker, metrics, asks_keys=not no_keys)
    _add_error_shapes(app, metrics)
    app.state.prepare = completions.prompts.grammars.prepare
    app.openapi = describe(app)  # type: ignore[method-assign]  # as FastAPI has it changed
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    worker: Backend = app.state.worker
    app.state.prepare()  # here, before anybody is answered: no other thread runs meanwhile, wherever it is done
    worker.start()
    yield
    await asyncio.to_thread(worker.stop, grace_seconds=GRACE_SECONDS)


def _add_generation_routes(app: FastAPI, completions: Completions, limits: Limits) -> None:
    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMED, dependencies=KEYED)
    async def chat(body: ChatCompletionRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await answer(body, request)

    @app.post("/v1/completions", response_model=Completion, responses=STREAMED, dependencies=KEYED)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        return await answer(body, request)

    @app.post("/generate", response_model=Generated, responses=ANSWERED, dependencies=KEYED)
    async def generate(body: GenerateRequest, request: Request) -> Response:
        """Continue a text, asked as text-generation-inference and LoRAX are."""
        return await answer(body.to_completion(), request)

    async def answer(body: ChatCompletionRequest | CompletionRequest, request: Request) -> Response:
        """Let a request in, and answer it; what it took is settled where its answers end."""
        num_tokens = estimate_tokens(body, body_len=request.state.body_len)
        admission = limits.admit(request.state.caller, num_sequences=num_answers(body), num_tokens=num_tokens)
        request.state.admission = admission
        try:
            return await completions.answer(body, request)
        except BaseException:
            admission.settle(0)
            raise


def _add_model_routes(app: FastAPI) -> None:
    @app.get("/v1/models", response_model=ModelList, responses=READ_ERRORS, dependencies=KEYED)
    def list_models(request: Request) -> Response:
        """Everything `model` may name: the base; adapters by name, alias and version. Where keys are in force, what the key may use."""
        return _json(ModelList(object="list", data=request.state.models.cards()).to_bytes())

    @app.get("/v1/models/{model:path}", response_model=ModelCard, responses=READ_ERRORS | errors(400, 404), dependencies=KEYED)
    def show_model(model: str, request: Request) -> Response:
        """One of them."""
        return _json(request.state.models.card(model).to_bytes())


def _add_state_routes(app: FastAPI, worker: Backend, metrics: Metrics, *, asks_keys: bool) -> None:
    @app.get("/healthz", response_model=Health, responses=HEALTH)
    def health() -> Response:
        """Whether requests are answered."""
        state = Health(
            status="ok" if worker.is_running else "stopped",
            base=worker.base.name,
            adapters_resident=worker.num_resident,
            running=worker.num_running,
            waiting=worker.num_waiting,
        )
        return _json(state.to_bytes(), status=200 if worker.is_running else 503)

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=TEXT | READ_ERRORS | errors(403),
        dependencies=[*KEYED, Depends(require_admin)] if asks_keys else [],
    )
    def show_metrics() -> Response:
        """Prometheus' text. It names tenants and adapters: where keys are in force, one that may administer is needed."""
        return Response(metrics.to_text(), media_type=CONTENT_TYPE_LATEST)


def _add_error_shapes(app: FastAPI, metrics: Metrics) -> None:
    """Every error in OpenAI's shape, the framework's own too."""

    @app.exception_handler(ApiError)
    async def refuse(request: Request, exc: ApiError) -> Response:
        return error_response(exc)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, exc: RequestValidationError) -> Response:
        metrics.count_invalid()
        return error_response(describe_invalid(exc.errors()))

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, exc: HTTPException) -> Response:
        said = {
            400: "the body cannot be read: send JSON, in UTF-8 and nested a few hundred levels deep at most",
            404: f"no route {request.method} {shown(request.url.path)}",
            405: f"{shown(request.url.path)} does not take {request.method}",
        }
        response = error_response(ApiError(exc.status_code, said.get(exc.status_code, str(exc.detail))))
        response.headers.update(exc.headers or {})
        return response

    @app.exception_handler(LorimerError)
    async def fail(request: Request, exc: LorimerError) -> Response:
        logger.error("%s %s failed: %s", request.method, request.url.path, exc)
        return error_response(ApiError(500, "the server could not do this; its log says why", kind="server_error", code="internal_error"))

    @app.exception_handler(Exception)
    async def fail_unexpectedly(request: Request, exc: Exception) -> Response:
        return error_response(ApiError(500, f"the request failed ({type(exc).__name__})", kind="server_error", code="internal_error"))


def _json(body: bytes, *, status: int = 200) -> Response:
    return Response(body, status_code=status, media_type="application/json")
