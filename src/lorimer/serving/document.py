"""The API's description of itself, `/openapi.json`: what every route takes and answers, refusals and streams with the rest."""

from collections.abc import Callable
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer

from lorimer.serving.replies import ErrorReply, Health

Responses = dict[int | str, dict[str, Any]]

KEYED = [Depends(HTTPBearer(auto_error=False, description="An API key, where the server asks for one"))]
"""For the document alone: keys are looked at before any route."""
WHY = {
    400: "The request cannot be answered as it is; `param` names the field",
    401: "No API key, or none that opens",
    403: "The key may not administer",
    404: "Nothing of that name, or nothing that this key may use",
    413: "The body is too large",
    415: "The body is compressed",
    429: "The tenant has had enough for now; `retry-after` says how long",
    500: "The server failed; its log says why",
    503: "The adapter is not what was registered, too many wait, or the server is ending; `retry-after` says how long, where it is known",
}
WAIT = {"retry-after": {"description": "Seconds", "schema": {"type": "string"}}}
WHO = {
    "x-adapter": {"description": "The version that answered, or the base", "schema": {"type": "string"}},
    "x-adapter-digest": {"description": "Its digest; not of the base", "schema": {"type": "string"}},
}
EVENTS = (
    "With `stream`: of every server-sent event. A chunk as JSON, at last `[DONE]`; "
    "an error after the first event is an event itself, in the shape of `ErrorReply`"
)
LEFT_OUT = ("HTTPValidationError", "ValidationError")
"""FastAPI's own findings on a body; here they are a 400 like any other."""


def errors(*statuses: int) -> Responses:
    """The refusals of a route, in OpenAI's shape."""
    waits = {429, 503}
    return {s: {"model": ErrorReply, "description": WHY[s], **({"headers": WAIT} if s in waits else {})} for s in statuses}


READ_ERRORS = errors(401, 413, 415, 500, 503)
ASK_ERRORS = errors(400, 401, 404, 413, 415, 429, 500, 503)
ADMIN_ERRORS = errors(400, 401, 403, 404, 413, 415, 429, 500, 503)
ANSWERED: Responses = {200: {"headers": WHO}, **ASK_ERRORS}
EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string", "description": EVENTS}}}
STREAM: dict[str, Any] = {"text/event-stream": {"schema": EVENT}}
STREAMED: Responses = {200: {"headers": WHO, "content": STREAM}, **ASK_ERRORS}
HEALTH: Responses = {503: {"model": Health, "description": "The engine has stopped"}, **errors(413, 415)}
TEXT: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


def describe(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """What makes an app's document, once; for `app.openapi`."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, routes=app.routes, description=__doc__.split(":")[0])
            for operation in (operation for route in found["paths"].values() for operation in route.values()):
                operation["responses"].pop("422", None)
                for status, response in operation["responses"].items():
                    if status >= "400":  # JSON, whatever the route answers otherwise
                        response["content"] = {"application/json": next(iter(response["content"].values()))}
            for name in LEFT_OUT:
                found["components"]["schemas"].pop(name, None)
            app.openapi_schema = found
        return app.openapi_schema

    return document
