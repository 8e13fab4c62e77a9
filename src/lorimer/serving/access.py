"""What stands before the routes: who asks, whether that tenant still may, and how large a body may be. Routes find the answer in the state.

`request.state` then holds `caller`, `tenant` and `key_prefix` (both empty where no keys are in force), `models` (what this caller may
name) and `body_len`. A key's secret goes no further than `Keys.authenticate`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from fastapi import Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorimer.errors import AccessError, LorimerError
from lorimer.serving.grants import Caller, Grant
from lorimer.serving.keys import ApiKey, Keys
from lorimer.serving.limits import Limits
from lorimer.serving.metrics import Metrics
from lorimer.serving.refusals import ApiError, shown
from lorimer.serving.resolve import Models
from lorimer.serving.visible import models_for
from lorimer.storage import canonical_json

logger = logging.getLogger(__name__)

OPEN_PATHS = ("/healthz", "/openapi.json")
"""Answered without a key; every other path, known or not, wants one."""
OPERATOR = Caller(grant=Grant(is_admin=True))
"""Everybody, where no key was made yet: the server listens on this machine alone then."""
ANYONE = Caller()
"""Everybody, where the operator wants no keys asked for: who may do all but administer."""
RECHECK_SECONDS = 1.0  # after which the first key that is made while the server runs is noticed


class Access:
    """Finds out who asks and counts the request; refuses those without a key, and those who have had enough."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        limits: Limits,
        models: Models,
        metrics: Metrics,
        no_keys: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app, self.keys, self.limits, self.models, self.metrics = app, keys, limits, models, metrics
        self.no_keys, self.clock = no_keys, clock
        self._is_keyed = False  # once so, for good
        self._check_again_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        with contextlib.ExitStack() as held:
            try:
                caller = await self._identify(Headers(scope=scope))
                send = self._with_headers(send, caller)
                if scope["method"] == "POST":
                    held.enter_context(self.limits.request(caller))
            except ApiError as exc:
                await error_response(exc)(scope, receive, send)
                return
            state = scope.setdefault("state", {})
            state.update(caller=caller, tenant=caller.tenant, key_prefix=caller.key_prefix, models=models_for(self.models, caller.grant))
            await self.app(scope, receive, send)

    async def _identify(self, headers: Headers) -> Caller:
        """Who shows which key.

        Raises:
            ApiError: 401 without a key that opens; 503 if keys cannot be looked up.
        """
        if self.no_keys:
            return ANYONE
        try:
            if not await self._is_key_needed():
                return OPERATOR
            key = await asyncio.to_thread(self.keys.authenticate, _bearer(headers))
        except AccessError as exc:
            self.metrics.count_unauthenticated()
            raise ApiError(401, str(exc), code="invalid_api_key", headers={"www-authenticate": "Bearer"}) from exc
        except LorimerError as exc:
            logger.error("keys cannot be looked up: %s", exc)
            raise ApiError(503, "the key cannot be checked at present: try again", kind="server_error", code="keys_unavailable") from exc
        if self.keys.is_use_new(key):
            asyncio.get_running_loop().run_in_executor(None, self._note_use, key)  # nobody waits for it
        return key.caller

    async def _is_key_needed(self) -> bool:
        """Whether there are keys; from the first on, it stays so."""
        if not self._is_keyed and self.clock() >= self._check_again_at:
            found = await asyncio.to_thread(self.keys.exist)  # until it is known, nobody who asks meanwhile is let in on a guess
            self._is_keyed = self._is_keyed or found
            self._check_again_at = self.clock() + RECHECK_SECONDS
        return self._is_keyed

    def _note_use(self, key: ApiKey) -> None:
        try:
            self.keys.note_use(key)
        except LorimerError as exc:
            logger.warning("the use of key %s was not noted: %s", key.prefix, exc)

    def _with_headers(self, send: Send, caller: Caller) -> Send:
        """`send`, telling what is left of the caller's rates."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.limits.headers(caller))
            await send(message)

        return send_with_headers


class BodyLimit:
    """Refuses bodies that are too large, and lets no request through before its body is whole."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        encoding = Headers(scope=scope).get("content-encoding", "identity")
        if encoding.lower() != "identity":
            refusal = f"bodies are read as they are, not {shown(encoding)!r}: send it without `content-encoding`"
            headers = {"accept-encoding": "identity", "connection": "close"}  # what is left of the body is not read
            await error_response(ApiError(415, refusal, code="unsupported_encoding", headers=headers))(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        own = state["caller"].grant.max_body_bytes if "caller" in state else None
        max_bytes = self.max_bytes if own is None else min(own, self.max_bytes)
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > max_bytes:
                response = error_response(ApiError(413, f"the body is larger than {max_bytes} bytes: send less", code="body_too_large"))
                response.headers["connection"] = "close"  # what is left of the body is not read
                await response(scope, receive, send)
                return
        state["body_len"] = len(body)
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)


async def require_admin(request: Request) -> None:
    """Let through whom the routes that administer are for. It stands at the routes themselves: nothing here compares their paths.

    Raises:
        ApiError: 403 for everybody else.
    """
    caller: Caller = request.state.caller
    if not caller.grant.is_admin:
        raise ApiError(
            403,
            "this route needs a key that may administer: `lorimer keys create NAME --admin` makes one",
            kind="permission_error",
            code="admin_key_required",
        )


def error_response(error: ApiError) -> Response:
    """An error in OpenAI's shape."""
    return Response(canonical_json(error.to_json()), status_code=error.status, media_type="application/json", headers=error.headers)


def _bearer(headers: Headers) -> str:
    """The key of an `Authorization` header.

    Raises:
        AccessError: if there is not exactly one, or it is of another kind.
    """
    shown = headers.getlist("authorization")
    scheme, _, text = shown[0].partition(" ") if len(shown) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not text.strip():
        raise AccessError("no API key was shown: send it as `Authorization: Bearer KEY`")
    return text.strip()
