"""vLLM 0.32's HTTP shape, written down from the real one, over our own engine and behind our own gate; it can be told to misbehave."""

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from lorimer.errors import LorimerError
from lorimer.inference.composition import alone
from lorimer.inference.engine import Engine, EngineConfig
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.attention import PackedSegments, whole
from lorimer.model.base import Base
from lorimer.model.lora import AdapterRows
from lorimer.serving.vllm.launch import free_port
from lorimer.serving.vllm.plugin import Gate, Library
from lorimer.serving.worker import EngineWorker

KNOWN = {
    "model", "prompt", "max_tokens", "stream", "return_token_ids", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "ignore_eos", "stop_token_ids", "logit_bias", "seed", "logprobs", "logprob_token_ids",
    "return_tokens_as_token_ids", "structured_outputs",
}  # fmt: skip


@dataclass
class FakeVllm:
    """One server; the fields are what a test changes while it runs."""

    base: Base
    folder: Path
    library: Library
    max_rank: int = 16
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Every body that came."""
    num_aborted: int = 0
    ignores_adapters: bool = False
    """Serves the base for every name, with status 200."""
    refuses: tuple[int, str] | None = None
    fails_after: int | None = None
    """Tokens, then an error event, as vLLM sends it."""
    breaks_after: int | None = None
    """Tokens, then the connection is gone."""
    silent_after: int | None = None
    delay: float = 0.0
    """Seconds before each token."""

    def __post_init__(self) -> None:
        self.worker = EngineWorker(Engine(self.base, EngineConfig(max_sequences=8, max_tokens_per_step=256, cache_bytes=8_000_000)))
        self.folders: dict[str, Path] = {}
        self.app = FastAPI()
        self.app.state.args = SimpleNamespace(model=str(self.folder))
        self.app.state.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=self.base.max_len, dtype=torch.float32),
            scheduler_config=SimpleNamespace(max_num_seqs=4),
            lora_config=SimpleNamespace(max_lora_rank=self.max_rank),
        )
        self.app.add_middleware(Gate)
        self.app.post("/v1/completions")(self.complete)
        self.app.get("/metrics")(self.metrics)
        self.app.post("/v1/load_lora_adapter")(self.complete)  # vLLM opens it beside resolvers: the gate has to close it

    async def metrics(self) -> Response:
        return Response('vllm:kv_cache_usage_perc{engine="0",model_name="x"} 0.25\n', media_type="text/plain")

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        unknown = body.keys() - KNOWN
        assert not unknown, unknown
        if self.refuses is not None:
            return _error(*self.refuses)
        if not await self._resolve(body["model"]):
            return _error(404, f"The model `{body['model']}` does not exist. Valid aliases: {self.base.digest}.")
        if body.get("logprob_token_ids"):
            return self._chosen(body)
        return StreamingResponse(self._stream(body), media_type="text/event-stream")

    async def _resolve(self, name: str) -> bool:
        if name == self.base.digest or name in self.folders:
            return True
        try:
            found = await asyncio.to_thread(self.library.find, name, str(self.folder))
        except LorimerError:
            return False
        if found is not None:
            self.folders[name] = found
        return found is not None

    def _chosen(self, body: dict[str, Any]) -> Response:
        """Log-probabilities of chosen tokens after a prompt."""
        name, ids = body["model"], torch.tensor(body["prompt"])
        lora = None if name == self.base.digest or self.ignores_adapters else self.worker.engine.adapters.read(self.folders[name])
        rows = [AdapterRows(start=0, stop=len(ids), adapter=lora)]
        with torch.inference_mode():
            hidden = self.base.hidden_states(ids, torch.arange(len(ids)), PackedSegments(whole([len(ids)])), rows)
            logprobs = self.base.head.logits(hidden[-1:])[0].float().log_softmax(-1)
        top = {f"token_id:{i}": _finite(float(logprobs[i])) for i in body["logprob_token_ids"]}
        best = int(logprobs.argmax())
        scores = {
            "text_offset": [0], "token_logprobs": [_finite(float(logprobs[best]))], "tokens": [f"token_id:{best}"], "top_logprobs": [top],
        }  # fmt: skip
        choice = {"index": 0, "text": "", "logprobs": scores, "finish_reason": "length", "stop_reason": None, "token_ids": None}
        return JSONResponse({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": name, "choices": [choice]})

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        wants = body.get("logprobs")
        adapter = None if body["model"] == self.base.digest or self.ignores_adapters else body["model"]
        sequence = Sequence(
            prompt_ids=tuple(body["prompt"]),
            composition=alone(adapter),
            params=SamplingParams(
                max_tokens=body["max_tokens"], temperature=body["temperature"], top_p=body["top_p"], top_k=body["top_k"],
                seed=body.get("seed"), ignore_eos=body["ignore_eos"], num_logprobs=wants,
                logit_bias={int(i): bias for i, bias in body.get("logit_bias", {}).items()},
            ),
        )  # fmt: skip
        num_sent, is_whole = 0, False
        try:
            async for _, new_ids, reason, _ in self.worker.submit(sequence, folders=self.folders):
                await asyncio.sleep(self.delay)
                if self.silent_after is not None and num_sent >= self.silent_after:
                    await asyncio.sleep(3600)
                if self.breaks_after is not None and num_sent >= self.breaks_after:
                    raise ConnectionAbortedError
                if self.fails_after is not None and num_sent >= self.fails_after:
                    yield _event({"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}})
                    break
                stop_ids = [min(body["stop_token_ids"])] if reason == "stop" else []
                choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": reason, "stop_reason": None, "prompt_token_ids": None}
                if wants is not None:
                    choice["logprobs"] = _scores(sequence, num_sent, num_sent + len(new_ids), stop_ids)
                choice["token_ids"] = [*new_ids, *stop_ids]  # the token that ends an answer is among them
                num_sent += len(new_ids)
                yield _event({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"], "choices": [choice]})
            yield b"data: [DONE]\n\n"
            is_whole = True
        finally:
            self.num_aborted += not is_whole

    @contextmanager
    def running(self, port: int = 0) -> Iterator[str]:
        """Served on a real socket; yields the address."""
        port = port or free_port()
        config = uvicorn.Config(self.app, port=port, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        self.worker.start()
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            threading.Event().wait(0.01)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()
            self.worker.stop()


def _scores(sequence: Sequence, start: int, stop: int, stop_ids: list[int]) -> dict[str, Any]:
    """vLLM's: the token itself and the likeliest in one mapping."""
    places = sequence.scores[start:stop]  # the engine may be ahead
    names = [f"token_id:{i}" for i in (*(place.token_id for place in places), *stop_ids)]
    tops = [{f"token_id:{i}": p for i, p in ((place.token_id, place.logprob), *place.top)} for place in places]
    return {
        "text_offset": [0] * len(names),
        "token_logprobs": [place.logprob for place in places] + [-0.5 for _ in stop_ids],
        "tokens": names,
        "top_logprobs": tops + [{f"token_id:{i}": -0.5} for i in stop_ids],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}, status_code=status)
