"""Over a real socket: the stock `openai` client, many adapters at once, clients that leave, servers that end."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import urlopen

import openai
import pytest
from fastapi import FastAPI

from lorimer.data.example import Message
from lorimer.errors import EngineError, LorimerError, NotFoundError, UsageError
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.serving.client import stream_chat
from lorimer.serving.grants import Grant, Quota
from lorimer.serving.keys import Keys
from lorimer.serving.records import CANCELLED, requests_file
from lorimer.serving.server import background_server, check_address, run_server
from lorimer.serving.worker import EngineWorker
from lorimer.storage import read_jsonl

TextOf = Callable[..., str]
MESSAGES: Any = [{"role": "user", "content": "My invoice is wrong"}]


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    """A running server."""
    with background_server(app) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    """The stock client."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_chat(client: openai.OpenAI, text_of: TextOf, helpdesk: AdapterVersion) -> None:
    reply = client.chat.completions.create(model="helpdesk", messages=MESSAGES, temperature=0, max_tokens=12)
    assert reply.choices[0].message.content == text_of(MESSAGES[0]["content"], helpdesk)
    assert (reply.object, reply.model, reply.choices[0].finish_reason) == ("chat.completion", "helpdesk@v1", "length")
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 12


@pytest.mark.parametrize("has_usage", [False, True])
def test_openai_stream(client: openai.OpenAI, text_of: TextOf, billing: AdapterVersion, has_usage: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if has_usage else {}
    stream = client.chat.completions.create(model="billing", messages=MESSAGES, temperature=0, max_tokens=12, stream=True, **options)
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == text_of(MESSAGES[0]["content"], billing)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == ([12] if has_usage else [])


def test_openai_completions(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="helpdesk@v1", prompt=["Dear", "Yours"], temperature=0, max_tokens=6)
    assert [choice.index for choice in whole.choices] == [0, 1]
    stream = client.completions.create(model="helpdesk@v1", prompt="Dear", temperature=0, max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_openai_models(client: openai.OpenAI, helpdesk: AdapterVersion) -> None:
    assert {model.id for model in client.models.list()} == {"tiny-gemma3", "billing", "billing@v1", "helpdesk", "helpdesk@v1"}
    assert client.models.retrieve("helpdesk@v1").model_extra["root"] == helpdesk.digest


def test_openai_errors(client: openai.OpenAI, app: FastAPI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="base", messages=MESSAGES, store=True)
    assert refused.value.param == "store"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="base", messages=MESSAGES, max_tokens=5000)
    assert long.value.code == "context_length_exceeded"
    app.state.worker.stop()
    with pytest.raises(openai.InternalServerError) as stopped:
        client.chat.completions.create(model="base", messages=MESSAGES)
    assert stopped.value.code == "engine_stopped"


def test_openai_sees_an_error_in_the_middle_of_a_stream(client: openai.OpenAI, worker: EngineWorker) -> None:
    stream = client.chat.completions.create(model="base", messages=MESSAGES, stream=True, extra_body={"ignore_eos": True}, max_tokens=400)
    next(stream)
    worker.engine._take = None
    with pytest.raises(openai.APIError, match="the engine failed"):
        list(stream)


def test_adapters_in_one_batch_answer_as_alone(
    url: str, worker: EngineWorker, text_of: TextOf, helpdesk: AdapterVersion, billing: AdapterVersion
) -> None:
    versions = {"helpdesk": helpdesk, "billing@v1": billing, "base": None}
    asked = [(model, f"question number {i}") for i in range(6) for model in versions]
    together, step = [], worker.engine.step

    def watch_step() -> Any:
        advanced = step()
        together.append(len({sequence.composition.digest for sequence in advanced}))
        return advanced

    worker.engine.step = watch_step

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            await asyncio.gather(*(_ask(client, model, "warm up") for model in versions))  # now all adapters are resident
            return await asyncio.gather(*(_ask(client, model, question) for model, question in asked))

    assert asyncio.run(ask_all()) == [text_of(question, versions[model], max_tokens=16) for model, question in asked]
    assert max(together) == 3


async def _ask(client: openai.AsyncOpenAI, model: str, question: str) -> str:
    messages: Any = [{"role": "user", "content": question}]
    stream = await client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=16, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def send(url: str, **fields: Any) -> socket.socket:
    """A request on a socket of its own, nothing read yet."""
    body = json.dumps({"model": "helpdesk", "messages": MESSAGES, "max_tokens": 400, "ignore_eos": True, **fields}).encode()
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_leaves_frees_its_blocks(url: str, worker: EngineWorker, wait_until: Callable[..., bool], is_streamed: bool) -> None:
    step = worker.engine.step
    worker.engine.step = lambda: (time.sleep(0.02), step())[1]
    with send(url, stream=is_streamed) as connection:
        if is_streamed:
            connection.recv(100)
        assert wait_until(lambda: worker.num_running == 1 and worker.cache_usage > 0)
    assert wait_until(lambda: worker.num_running == worker.num_waiting == 0 and worker.cache_usage == 0, 5)
    folder = requests_file("2026-01-01").parent  # the record is written after the blocks are free
    assert wait_until(lambda: [len(list(read_jsonl(file))) for file in folder.glob("*.jsonl")] == [1])
    (record,) = read_jsonl(next(folder.glob("*.jsonl")))
    assert record["status"] == CANCELLED
    assert record["num_generated_tokens"] < 300
    assert wait_until(lambda: 'outcome="cancelled"} 1.0' in urlopen(f"{url}/metrics").read().decode())


def test_a_client_that_leaves_before_its_turn(url: str, worker: EngineWorker, wait_until: Callable[..., bool]) -> None:
    worker.engine.scheduler.max_sequences = 1
    step = worker.engine.step
    worker.engine.step = lambda: (time.sleep(0.02), step())[1]
    with send(url):
        assert wait_until(lambda: worker.num_running == 1)
        with send(url, stream=True):
            assert wait_until(lambda: worker.num_waiting == 1)
        assert wait_until(lambda: worker.num_waiting == 0, 5)
        assert worker.num_running == 1


def test_ending_does_not_wait_for_long_answers(app: FastAPI, worker: EngineWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorimer.serving.server.GRACE_SECONDS", 0.2)
    step = worker.engine.step
    worker.engine.step = lambda: (time.sleep(0.1), step())[1]
    with background_server(app) as url:
        connection = send(url)
        while not worker.num_running:
            time.sleep(0.01)
        start = time.monotonic()
    assert time.monotonic() - start < 3
    with connection:
        assert b"engine_stopped" in connection.recv(10_000)
    assert not [thread for thread in threading.enumerate() if thread.name in ("engine", "http")]


def test_a_taken_port_is_one_sentence(url: str, app: FastAPI) -> None:
    port = int(url.rpartition(":")[2])
    with (
        pytest.raises(UsageError, match=rf"cannot listen on 127.0.0.1:{port} \(Address already in use\)"),
        background_server(app, port=port),
    ):
        pass


def test_a_server_that_cannot_start_says_so(app: FastAPI, worker: EngineWorker) -> None:
    worker.start = lambda: 1 / 0
    with pytest.raises(LorimerError, match="did not start"), background_server(app):
        pass


def test_our_own_client(url: str, text_of: TextOf, helpdesk: AdapterVersion, worker: EngineWorker) -> None:
    question = [Message(role="user", content="My invoice is wrong")]
    pieces = list(stream_chat(url, "helpdesk", question))
    assert "".join(pieces).startswith(text_of(question[0].content, helpdesk))
    assert "".join(stream_chat(f"{url}/v1/", "helpdesk", question)) == "".join(pieces)
    with pytest.raises(NotFoundError, match="did you mean 'helpdesk'"):
        list(stream_chat(url, "helpdsk", question))
    with pytest.raises(UsageError, match="together"):
        list(stream_chat(url, "helpdesk", [Message(role="user", content="x" * 600)]))
    worker.engine._take = None
    with pytest.raises(EngineError, match="the engine failed"):
        list(stream_chat(url, "helpdesk", question))


@pytest.mark.parametrize(
    ("host", "is_from_here"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("", False),
     ("192.168.0.2", False), ("localhost.example.com", False), ("fe80::1%eth0", False)],
)  # fmt: skip
def test_address_others_reach_wants_a_key_or_the_operators_word(registry: Registry, host: str, is_from_here: bool) -> None:
    keys = Keys(registry.engine)
    with contextlib.nullcontext() if is_from_here else pytest.raises(UsageError, match="can be reached from other machines"):
        check_address(host, keys)
    check_address(host, keys, no_keys=True)
    keys.create("acme", tenant="acme", grant=Grant())
    check_address(host, keys)


def test_server_others_reach_does_not_start_without_keys(app: FastAPI) -> None:
    with pytest.raises(UsageError, match="--no-keys"), background_server(app, host="0.0.0.0"):
        pass
    with pytest.raises(UsageError, match="--no-keys"):
        run_server(app, host="0.0.0.0", port=0)


def test_openai_sees_keys_and_limits(url: str, registry: Registry) -> None:
    quota = Quota(requests_per_minute=1)
    new = Keys(registry.engine).create("acme", tenant="acme", grant=Grant(adapters=("helpdesk",), may_use_base=False), quota=quota)
    asked: Any = {"messages": MESSAGES, "max_tokens": 2}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        client.api_key = new.text
        assert [model.id for model in client.models.list()] == ["helpdesk", "helpdesk@v1"]
        assert client.chat.completions.create(model="helpdesk", **asked).model == "helpdesk@v1"
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="helpdesk", **asked)
        assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
        with pytest.raises(openai.RateLimitError):
            client.post("/load_lora_adapter", body={"lora_name": "helpdesk"}, cast_to=str)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:8000", "ftp://host", "http://"])
def test_our_own_client_takes_only_addresses(url: str) -> None:
    with pytest.raises(UsageError, match="is not a server's address"):
        list(stream_chat(url, "base", []))


def test_our_own_client_says_that_nobody_answers() -> None:
    with pytest.raises(LorimerError, match="no server answers at"):
        list(stream_chat("http://127.0.0.1:9", "base", []))


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_a_client_that_leaves_is_no_error(url: str, worker: EngineWorker, wait_until: Callable[..., bool], path: str, caplog: Any) -> None:
    step = worker.engine.step
    worker.engine.step = lambda: (time.sleep(0.05), step())[1]
    asked = {
        "/generate": {"inputs": "Dear", "parameters": {"max_new_tokens": 300, "ignore_eos_token": True}},
        "/v1/completions": {"model": "base", "prompt": "Dear", "max_tokens": 300, "ignore_eos": True},
    }.get(path, {"model": "base", "messages": MESSAGES, "max_tokens": 300, "ignore_eos": True})
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(asked).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert wait_until(lambda: worker.num_running == 1)
    assert wait_until(lambda: worker.num_running == 0)
    assert "cancelled" in urlopen(f"{url}/metrics").read().decode()
    assert not [record for record in caplog.records if record.exc_info]
