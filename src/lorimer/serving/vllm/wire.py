"""vLLM's HTTP API as far as it is asked: token ids out, token ids and log-probabilities in. It knows nothing of text or registries."""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from lorimer.errors import AdapterError, EngineError, UnavailableError, UnsupportedError, UsageError
from lorimer.inference.constraint import WHITESPACE, GrammarConstraint, GrammarSource, with_whitespace
from lorimer.inference.sampling import MIN_TEMPERATURE, TokenScores
from lorimer.inference.sequence import FinishReason
from lorimer.inference.sequence import Sequence as EngineSequence
from lorimer.serving.vllm.plugin import STATUS_PATH

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 300.0  # between two pieces of an answer: a long prompt behind other long prompts takes its time
STATUS_SECONDS = 60.0  # the first status hashes the base
MIN_TOP_P = 1e-6  # vLLM takes none of 0; so little leaves the likeliest token, as 0 does here
MIN_TEMPERATURE_SAMPLED = 0.01  # vLLM raises what is lower to this
SPACING = {
    "whitespace_flexible": False,
    "item_separator": f"{WHITESPACE},{WHITESPACE}",
    "key_separator": f"{WHITESPACE}:{WHITESPACE}",
}
"""vLLM 0.32 has llguidance 1.7, which does not know `whitespace_pattern` as 1.9 does: a model that is unsure would go on with spaces to the
end of its room. So the space around commas and colons is bounded, and there is none elsewhere."""
MAX_SHOWN = 300
TOKEN = "token_id:"
MAX_CHOSEN = 128  # log-probabilities of chosen tokens in one request (vllm 0.32, sampling_params.py, MAX_LOGPROB_TOKEN_IDS)


class Status(BaseModel):
    """What our plugin says of a vLLM."""

    instance: str
    base_digest: str
    max_len: int
    max_sequences: int
    max_rank: int
    dtype: str


class Part(NamedTuple):
    """A piece of an answer, as it comes."""

    ids: tuple[int, ...]
    scores: tuple[TokenScores, ...]
    finish_reason: FinishReason | None


class _Logprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]  # none where it is not a number
    top_logprobs: list[dict[str, float | None]]


class _Choice(BaseModel):
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Chunk(BaseModel):
    choices: list[_Choice] = []
    error: dict[str, Any] | None = None


_CHUNK = TypeAdapter(_Chunk)
REASONS: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}


@dataclass(frozen=True, slots=True)
class VllmWire:
    """One vLLM with our plugin."""

    client: httpx.AsyncClient

    async def close(self) -> None:
        """Let go of its connections."""
        await self.client.aclose()

    async def status(self) -> Status:
        """What it serves.

        Raises:
            UnavailableError: if it does not answer, or not with our key.
            EngineError: if it is another server, or was started without our plugin.
        """
        with self._explained():
            reply = await self.client.get(STATUS_PATH, timeout=httpx.Timeout(STATUS_SECONDS, connect=CONNECT_SECONDS))
        return read_status(reply)

    async def metric(self, name: str) -> float:
        """One of its gauges, summed; not a number if it cannot be had."""
        try:
            reply = await self.client.get("/metrics", timeout=CONNECT_SECONDS)
            found = [line.rsplit(" ", 1)[1] for line in reply.text.splitlines() if line.startswith(f"{name}{{")]
            return sum(map(float, found)) if found else math.nan
        except (httpx.HTTPError, ValueError, LookupError):
            return math.nan

    async def stream(self, body: Mapping[str, Any], stop_ids: frozenset[int]) -> AsyncGenerator[Part, None]:
        """The pieces of one answer. A token that ends it is no part of it. Whoever stops reading ends it in vLLM too.

        Raises:
            UnavailableError: if vLLM cannot be reached, goes away, or is silent for too long.
            UnsupportedError: if it refuses the request.
            EngineError: if it fails in the middle.
        """
        with self._explained():
            async with self.client.stream("POST", "/v1/completions", json=dict(body)) as reply:
                if reply.status_code != 200:
                    await reply.aread()
                    raise refusal_of(reply)
                async for line in reply.aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    part = part_of(line.removeprefix("data: "), stop_ids)
                    if part is not None:
                        yield part
                    if part is not None and part.finish_reason is not None:
                        return
        raise UnavailableError("vLLM ended the answer in its middle: try again")

    async def chosen_logprobs(self, model: str, prompt_ids: Sequence[int], chosen: Sequence[int]) -> dict[int, float]:
        """Log-probabilities of chosen tokens after a prompt.

        Raises:
            As `stream`.
        """
        body = {
            "model": model, "prompt": list(prompt_ids), "max_tokens": 1, "temperature": 0, "logprobs": len(chosen),
            "logprob_token_ids": list(chosen), "return_tokens_as_token_ids": True, "ignore_eos": True,
        }  # fmt: skip
        with self._explained():
            reply = await self.client.post("/v1/completions", json=body)
        if reply.status_code != 200:
            raise refusal_of(reply)
        try:
            logprobs = _CHUNK.validate_json(reply.content).choices[0].logprobs
        except (ValidationError, LookupError):
            logprobs = None
        if logprobs is None:
            raise EngineError("vLLM gave no log-probabilities: it is another version than those that are known here (0.32)")
        found = {_id_of(name): _number(logprob) for name, logprob in logprobs.top_logprobs[0].items()}
        return {i: found.get(i, math.nan) for i in chosen}

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the network says into one sentence."""
        try:
            yield
        except httpx.ConnectError as exc:
            raise UnavailableError("vLLM does not answer: it is starting, or has ended; try again") from exc
        except httpx.TimeoutException as exc:
            raise UnavailableError("vLLM has said nothing for too long: it is overloaded or stuck; try again") from exc
        except (httpx.TransportError, httpx.StreamError) as exc:
            raise UnavailableError(f"the connection to vLLM broke ({type(exc).__name__}): try again") from exc


def connect(url: str, key: str, *, silence_seconds: float = SILENCE_SECONDS) -> VllmWire:
    """Nothing is asked yet.

    Raises:
        UsageError: if `url` is not an address.
    """
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise UsageError(f"{url!r} is not a server's address: write it as 'http://127.0.0.1:8001'") from exc
    if address.scheme not in ("http", "https") or not address.host:
        raise UsageError(f"{url!r} is not a server's address: write it as 'http://127.0.0.1:8001'")
    return VllmWire(
        httpx.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"),
            headers={"authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(silence_seconds, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=4.0),  # vLLM closes after five
            trust_env=False,  # proxies are for other machines
        )
    )


def look(url: str, key: str) -> Status:
    """What a vLLM serves, asked before there is an event loop.

    Raises:
        As `VllmWire.status`.
    """

    async def ask() -> Status:
        wire = connect(url, key)
        try:
            return await wire.status()
        finally:
            await wire.close()

    return asyncio.run(ask())


def body_of(sequence: EngineSequence, model: str, stop_ids: frozenset[int]) -> dict[str, Any]:
    """A request for one sequence, every field said: what is left out would be vLLM's, or its model's, to choose."""
    params = sequence.params
    sampled = params.temperature >= MIN_TEMPERATURE
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(sequence.prompt_ids),
        "max_tokens": params.max_tokens,
        "stream": True,
        "return_token_ids": True,
        "temperature": max(params.temperature, MIN_TEMPERATURE_SAMPLED) if sampled else 0.0,
        "top_p": max(params.top_p, MIN_TOP_P),
        "top_k": params.top_k,
        "min_p": params.min_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "ignore_eos": params.ignore_eos,
        "stop_token_ids": [] if params.ignore_eos else sorted(stop_ids),
    }
    if params.logit_bias:
        body["logit_bias"] = {str(i): bias for i, bias in params.logit_bias.items()}
    if params.seed is not None:
        body["seed"] = params.seed % 2**63  # vLLM takes -1 for none
    if params.num_logprobs is not None:
        body |= {"logprobs": params.num_logprobs, "return_tokens_as_token_ids": True}
    if isinstance(sequence.constraint, GrammarConstraint):
        body["structured_outputs"] = form_of(sequence.constraint.source)
    elif sequence.constraint is not None:
        raise UnsupportedError("vLLM holds answers to JSON schemas and grammars alone", field="constraint")
    return body


def form_of(source: GrammarSource) -> dict[str, Any]:
    """What an answer is held to, with whitespace as vLLM's llguidance can bound it."""
    if source.lark is not None:
        return {"grammar": source.lark.replace(_spelled(with_whitespace({})), _spelled({"x-guidance": SPACING}))}
    return {"json": {**(source.schema or {}), "x-guidance": SPACING}}


def _spelled(members: Mapping[str, Any]) -> str:
    """As it stands in the middle of a JSON object."""
    return json.dumps(members)[1:-1]


def part_of(data: str, stop_ids: frozenset[int]) -> Part | None:
    """One event of a stream; None if it says nothing of the answer.

    Raises:
        EngineError: if it tells of a failure.
    """
    try:
        chunk = _CHUNK.validate_json(data)
    except ValidationError as exc:
        raise EngineError("vLLM's answer cannot be read: it is another version than those that are known here (0.32)") from exc
    if chunk.error is not None:
        raise EngineError(f"vLLM failed in the middle of the request ({_shown(chunk.error.get('message'))}): try again")
    if not chunk.choices:
        return None
    choice = chunk.choices[0]
    reason = None if choice.finish_reason is None else REASONS.get(choice.finish_reason)
    if choice.finish_reason is not None and reason is None:
        raise EngineError(f"vLLM ended the answer itself ({_shown(choice.finish_reason)}): try again")
    ids = choice.token_ids or []
    if reason == "stop" and ids and ids[-1] in stop_ids:
        ids = ids[:-1]
    return Part(tuple(ids), _scores_of(choice.logprobs, ids), reason)


def read_status(reply: httpx.Response) -> Status:
    """What a vLLM said to the question what it serves; see `VllmWire.status`."""
    if reply.status_code == 401:
        raise UnavailableError("vLLM does not take our key: start both with the same one")
    if reply.status_code == 500:
        raise EngineError(f"vLLM cannot say which base it serves: {_message_of(reply)}")
    try:
        return Status.model_validate_json(reply.content)
    except ValidationError as exc:
        raise EngineError(
            f"{reply.url.copy_with(raw_path=b'/')} is no vLLM with Lorimer's plugin (status {reply.status_code}): "
            "start it by the command that `lorimer serve --backend vllm --print-command` prints"
        ) from exc


def refusal_of(reply: httpx.Response) -> EngineError | AdapterError:
    """Why vLLM did not begin an answer."""
    message = _message_of(reply)
    match reply.status_code:
        case 404:
            return AdapterError(f"vLLM does not serve this adapter; its log says why ({message})")
        case 400 | 422:
            return UnsupportedError(f"vLLM refuses the request: {message}")
        case 401:
            return UnavailableError("vLLM does not take our key: start both with the same one")
        case 429 | 502 | 503 | 504:
            return UnavailableError(f"vLLM takes no requests now ({message}): try again")
    return EngineError(f"vLLM failed ({reply.status_code}: {message}): try again")


def _scores_of(logprobs: _Logprobs | None, ids: Sequence[int]) -> tuple[TokenScores, ...]:
    if logprobs is None:
        return ()
    places = zip(ids, logprobs.token_logprobs, logprobs.top_logprobs, strict=False)  # the token that ended it has one too
    scores = []
    for token_id, logprob, top in places:
        ordered = sorted(((_id_of(name), _number(value)) for name, value in top.items()), key=lambda pair: -pair[1])
        scores.append(TokenScores(token_id=token_id, logprob=_number(logprob), top=tuple(ordered)))
    return tuple(scores)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _id_of(name: str) -> int:
    return int(name.removeprefix(TOKEN))


def _message_of(reply: httpx.Response) -> str:
    try:
        error = json.loads(reply.content)["error"]
        return _shown(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return f"{reply.status_code} {reply.reason_phrase}"


def _shown(text: Any) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= MAX_SHOWN else f"{words[:MAX_SHOWN]}..."
