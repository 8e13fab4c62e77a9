"""One question to an endpoint that speaks OpenAI's chat completions, asked again while asking again can help. Standard library only."""

import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from lorimer.errors import ConfigError, RefusedError, UnavailableError

NUM_TRIES = 5
FIRST_WAIT_SECONDS = 0.5
MAX_WAIT_SECONDS = 30.0
MAX_REPLY_BYTES = 1 << 22
MIN_KEY_CHARS = 8  # a shorter one is no secret, and a word of every message
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
THIS_QUESTION = frozenset({400, 413, 422})  # what may be wrong with one question and right with the next


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is refused: the key and the rows go to the endpoint that was named, not to whom it names."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True, slots=True)
class Reply:
    """What an endpoint answered, and what it counted."""

    text: str
    num_tokens: int
    finish_reason: str = ""
    """`length` where the answer was cut off; empty where the endpoint does not say."""
    model: str = ""
    """What the endpoint says answered, whatever name was asked for."""
    system_fingerprint: str = ""
    """What the endpoint calls its weights and settings; empty where it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatEndpoint:
    """Where to ask; `url` is the API's root, as `http://127.0.0.1:8000/v1`."""

    url: str
    key: str = field(default="", repr=False)
    timeout_seconds: float = 120.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"endpoint {self.url!r} is no URL: give the API's root, such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise ConfigError("the endpoint's URL holds a user or password, which would stand in the dataset's card: give a key instead")

    def ask(self, question: str, *, model: str, temperature: float, seed: int, max_tokens: int) -> Reply:
        """One answer to one question.

        Raises:
            RefusedError: if the endpoint refuses this question, which may be too long for it.
            ConfigError: if it refuses the model or the key: no other question would help.
            UnavailableError: if it gave no usable answer in `NUM_TRIES` tries.
        """
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "temperature": temperature,
            "seed": seed,
            "max_tokens": max_tokens,
        }
        problem = ""
        for attempt in range(NUM_TRIES):
            if attempt:
                self.sleep(min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt) * random.uniform(0.5, 1.0))
            try:
                return _read_reply(self._post("/chat/completions", body))
            except urllib.error.HTTPError as exc:
                problem = self._hide(f"{exc.code} {_explain(exc)}")
                if exc.code not in AGAIN:
                    raise (RefusedError if exc.code in THIS_QUESTION else ConfigError)(
                        f"endpoint {self.url!r} refused a request for model {model!r}: {problem}: check model, key and URL"
                    ) from exc
                if (seconds := _retry_after(exc.headers)) and attempt + 1 < NUM_TRIES:
                    self.sleep(seconds)
            except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
                problem = self._hide(f"{type(exc).__name__}: {exc}")
        raise UnavailableError(
            f"endpoint {self.url!r} gave no usable answer in {NUM_TRIES} tries (the last: {problem}): see that it runs, then "
            f"give the same command "
            "again; what was answered so far is kept"
        )

    def list_models(self) -> list[dict[str, Any]]:
        """The cards of what can be asked for, `root` being the digest where a server of ours answers; empty where there is no list.

        Raises:
            UnavailableError: if the endpoint does not answer for now.
        """
        try:
            return [card for card in self._send("/models", None)["data"] if isinstance(card, dict)]
        except urllib.error.HTTPError as exc:
            if exc.code in AGAIN:
                raise UnavailableError(f"endpoint {self.url!r} does not list its models for now ({exc.code}): try again") from exc
            return []
        except (OSError, http.client.HTTPException) as exc:
            raise UnavailableError(f"endpoint {self.url!r} does not list its models: {self._hide(str(exc))}: try again") from exc
        except (ValueError, KeyError, TypeError):
            return []

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._send(path, json.dumps(body).encode())

    def _send(self, path: str, data: bytes | None) -> Any:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers, method="GET" if data is None else "POST")
        with _OPENER.open(request, timeout=self.timeout_seconds) as response:
            return json.loads(response.read(MAX_REPLY_BYTES))

    def _hide(self, text: str) -> str:
        """An endpoint may repeat the key it refuses; a message must not."""
        return text.replace(self.key, "***") if len(self.key) >= MIN_KEY_CHARS else text


def _read_reply(value: Any) -> Reply:
    choice = value["choices"][0]
    text = choice["message"]["content"]
    usage = value.get("usage") or {}
    # an endpoint that counts nothing must not get round the cap: four characters a token is the usual estimate
    return Reply(
        text=str(text or ""),
        num_tokens=int(usage.get("total_tokens") or len(str(text)) // 4 + 50),
        finish_reason=str(choice.get("finish_reason") or ""),
        model=str(value.get("model") or ""),
        system_fingerprint=str(value.get("system_fingerprint") or ""),
    )


def _explain(exc: urllib.error.HTTPError) -> str:
    try:
        value = json.loads(exc.read(4096))
        return str(value["error"]["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(exc.reason)


def _retry_after(headers: Any) -> float:
    try:
        return max(0.0, min(MAX_WAIT_SECONDS, float(headers.get("Retry-After") or 0)))
    except ValueError:  # a date, which nobody's rate limit uses
        return 0.0
