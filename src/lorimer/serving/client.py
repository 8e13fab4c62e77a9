"""A client of any OpenAI-compatible chat endpoint, with nothing but the standard library: what `lorimer chat` talks through."""

import json
from collections.abc import Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from lorimer.data.example import Message
from lorimer.errors import EngineError, LorimerError, NotFoundError, UsageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def stream_chat(
    url: str, model: str, messages: Sequence[Message], *, temperature: float = 0.0, api_key: str | None = None
) -> Iterator[str]:
    """Ask the server at `url`; yields the answer's pieces as they come.

    Raises:
        UsageError: if `url` is not one, or the server refuses the request.
        NotFoundError: if the server has no such model.
        EngineError: if it fails.
        LorimerError: if no server answers.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    body = {"model": model, "messages": turns, "temperature": temperature, "stream": True}
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {api_key}"} if api_key else {})}
    request = Request(_endpoint(url), data=json.dumps(body).encode(), headers=headers)
    try:
        with _opener(url).open(request) as response:
            yield from _pieces(response)
    except HTTPError as exc:
        raise _explain(exc) from exc
    except (URLError, HTTPException, OSError) as exc:
        raise LorimerError(f"no server answers at {url!r} ({getattr(exc, 'reason', exc)}): start one with `lorimer serve`") from exc


def _endpoint(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UsageError(f"{url!r} is not a server's address: write it as 'http://127.0.0.1:8000'")
    return f"{url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"


def _opener(url: str) -> OpenerDirector:
    """Proxies are for other machines."""
    return build_opener(ProxyHandler({})) if urlsplit(url).hostname in LOOPBACK else build_opener()


def _pieces(response: HTTPResponse) -> Iterator[str]:
    """The text of a stream of server-sent events."""
    for line in response:
        data = line.decode().strip().removeprefix("data:").strip()
        if not data or data.startswith(":") or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise EngineError(event["error"]["message"])
        for choice in event["choices"]:
            if text := choice["delta"].get("content"):
                yield text


def _explain(exc: HTTPError) -> LorimerError:
    """The server's own sentence, as the error its status stands for."""
    try:
        message = str(json.loads(exc.read())["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = f"the server answered {exc.code} {exc.reason}"
    if exc.code == 404:
        return NotFoundError(message)
    return UsageError(message) if exc.code < 500 else EngineError(message)
