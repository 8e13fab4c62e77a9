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

from lorimer.errors import ConfigError, UnavailableError

NUM_TRIES = 5
FIRST_WAIT_SECONDS = 0.5
MAX_WAIT_SECONDS = 30.0
MAX_REPLY_BYTES = 1 << 22
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Reply:
    """What an endpoint answered, and what it counted."""

    text: str
    num_tokens: int


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
            ConfigError: if the endpoint refuses the request or the key: asking again would not help.
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
                problem = f"{exc.code} {_explain(exc)}"
                if exc.code not in AGAIN:
                    raise ConfigError(
                        f"endpoint {self.url!r} refused a request for model {model!r}: {problem}: check model, key and URL"
                    ) from exc
                if (seconds := _retry_after(exc.headers)) and attempt + 1 < NUM_TRIES:
                    self.sleep(seconds)
            except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as exc:
                problem = f"{type(exc).__name__}: {exc}"
        raise UnavailableError(
            f"endpoint {self.url!r} gave no usable answer in {NUM_TRIES} tries (the last: {problem}): see that it runs, then "
            f"give the same command "
            "again; what was answered so far is kept"
        )

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        request = urllib.request.Request(self.url.rstrip("/") + path, json.dumps(body).encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=self.timeout_seconds) as response:
            return json.loads(response.read(MAX_REPLY_BYTES))


def _read_reply(value: Any) -> Reply:
    text = value["choices"][0]["message"]["content"]
    usage = value.get("usage") or {}
    # an endpoint that counts nothing must not get round the cap: four characters a token is the usual estimate
    return Reply(text=str(text or ""), num_tokens=int(usage.get("total_tokens") or len(str(text)) // 4 + 50))


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
