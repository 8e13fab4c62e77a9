"""vLLM's routes that load and unload adapters, for keys that may administer. They take names of registered adapters, never paths.

Loading makes a version resident before the first request needs it; unloading frees its memory once nobody uses it. Either way what may be
asked for stays what is registered: a version that is not resident is loaded when it is asked for.
"""

import asyncio
import logging
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import Field

from lorimer.errors import AdapterError, EngineError, IntegrityError, QuarantineError, UnavailableError, UnsupportedError
from lorimer.registry.roles import actor_of_key
from lorimer.serving.access import require_admin
from lorimer.serving.backend import Backend
from lorimer.serving.body import RequestPart, Text
from lorimer.serving.document import ADMIN_ERRORS, KEYED, TEXT
from lorimer.serving.refusals import ApiError
from lorimer.serving.resolve import Models, TargetPart

logger = logging.getLogger(__name__)

ADMIN = [*KEYED, Depends(require_admin)]


class LoadRequest(RequestPart):
    """`POST /v1/load_lora_adapter`"""

    lora_name: Text = Field(min_length=1, max_length=1000)
    """A registered adapter, by any of its names."""
    lora_path: Any = None
    """vLLM's; refused, since a client does not say which files are read."""
    load_inplace: bool = False
    """vLLM's; refused where it is true, since a version never changes."""


class UnloadRequest(RequestPart):
    """`POST /v1/unload_lora_adapter`"""

    lora_name: Text = Field(min_length=1, max_length=1000)


def add_admin_routes(app: FastAPI, worker: Backend) -> None:
    """The two routes."""

    @app.post("/v1/load_lora_adapter", responses=TEXT | ADMIN_ERRORS, response_class=PlainTextResponse, dependencies=ADMIN)
    async def load_adapter(body: LoadRequest, request: Request) -> Response:
        """Make a registered adapter resident."""
        _check_files_are_ours(body)
        adapter = await asyncio.to_thread(_find_adapter, request.state.models, body.lora_name)
        try:
            await worker.load(adapter.digest, adapter.folder)
        except (AdapterError, IntegrityError, EngineError) as exc:
            raise _explain(exc, adapter, worker) from exc
        logger.info("%s loaded %s", actor_of_key(request.state.key_prefix), adapter.id)
        return PlainTextResponse(f"Success: LoRA adapter '{adapter.id}' added successfully.")

    @app.post("/v1/unload_lora_adapter", responses=TEXT | ADMIN_ERRORS, response_class=PlainTextResponse, dependencies=ADMIN)
    async def unload_adapter(body: UnloadRequest, request: Request) -> Response:
        """Free an adapter's memory once the requests that use it have ended."""
        adapter = await asyncio.to_thread(_find_adapter, request.state.models, body.lora_name)
        try:
            is_free = await worker.unload(adapter.digest)
        except EngineError as exc:
            raise _explain(exc, adapter, worker) from exc
        logger.info("%s unloaded %s", actor_of_key(request.state.key_prefix), adapter.id)
        when = "removed successfully" if is_free else "is removed when the requests that use it have ended"
        return PlainTextResponse(f"Success: LoRA adapter '{adapter.id}' {when}.")


def _check_files_are_ours(body: LoadRequest) -> None:
    if body.lora_path is not None:
        raise ApiError(
            400,
            "`lora_path` is never taken from a client: adapters are registered on the server's own machine, and named here by "
            "`lora_name` alone",
            param="lora_path",
            code="path_not_allowed",
        )
    if body.load_inplace:
        raise ApiError(
            400,
            "`load_inplace` is not supported: a version never changes; register the new files, which makes a new version",
            param="load_inplace",
            code="unsupported_parameter",
        )


def _find_adapter(models: Models, name: str) -> TargetPart:
    try:
        target = models.resolve(name)
    except ApiError as exc:
        exc.param = exc.param and "lora_name"
        raise
    if len(target.parts) != 1 or target.is_composed:
        if len(target.parts) > 1:
            what = "several adapters"
        elif target.parts:
            what = "an adapter with a scale, which is a request's"
        else:
            what = "part of the base here" if target.merged_digest else "the base, which is always loaded"
        raise ApiError(400, f"{target.id!r} is {what}: name one adapter", param="lora_name", code="invalid_value")
    return target.parts[0]


def _explain(exc: Exception, adapter: TargetPart, worker: Backend) -> ApiError:
    """What the client is told; paths go to the log instead."""
    logger.error("adapter %s: %s", adapter.id, exc)
    match exc:
        case UnsupportedError():
            return ApiError(400, str(exc), param="lora_name", code="unsupported_parameter")
        case UnavailableError():
            return ApiError(503, str(exc), kind="server_error", code="backend_unavailable", headers={"retry-after": "2"})
        case QuarantineError():
            return ApiError(503, str(exc), kind="server_error", code="adapter_quarantined")
        case EngineError() if worker.is_running:
            return ApiError(500, str(exc), kind="server_error", code="engine_failed")
        case EngineError():
            return ApiError(503, str(exc), kind="server_error", code="engine_stopped")
    message = f"the adapter {adapter.id!r} cannot be served: its files are damaged or do not fit the base"
    return ApiError(503, message, kind="server_error", code="adapter_unavailable")
