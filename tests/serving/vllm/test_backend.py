"""The gateway before vLLM's HTTP shape: the same answers as before the embedded engine, and an error for everything that goes wrong."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from starlette.testclient import TestClient

from fake_vllm import FakeVllm
from fakes import random_lora, save_tiny_base, write_sealed
from lorimer.errors import EngineError, UnavailableError, UsageError
from lorimer.inference.engine import Engine, EngineConfig
from lorimer.inference.fingerprint import FINGERPRINT_FILE, Prober, norms_of, read_fingerprint
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.adapter import CONFIG_FILE, WEIGHTS_FILE, Lock, save_adapter
from lorimer.model.base import Base, load_base
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry
from lorimer.serving.app import create_app
from lorimer.serving.server import background_server
from lorimer.serving.vllm.backend import VllmBackend
from lorimer.serving.vllm.launch import free_port, manifest_path
from lorimer.serving.vllm.plugin import KEY_VARIABLE, MANIFEST_VARIABLE, Library
from lorimer.serving.vllm.server import Served, open_backend, open_base
from lorimer.serving.vllm.wire import SPACING, connect, part_of
from lorimer.serving.worker import EngineWorker

KEY = "secret-of-ours"
SMALL = EngineConfig(max_sequences=8, max_tokens_per_step=256, cache_bytes=8_000_000)
Make = Callable[..., AdapterVersion]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_tiny_base(folder)
    return folder


@pytest.fixture(scope="session")
def file_base(base_folder: Path) -> Base:
    """The base as its files have it, so that it has their digest."""
    return load_base(str(base_folder), dtype=torch.float32)


@pytest.fixture
def make(registry: Registry, file_base: Base, tmp_path: Path) -> Make:
    """Registers random adapters, with fingerprints."""
    engine = Engine(file_base, SMALL)
    prober = Prober(file_base, engine.decoder)

    def register(name: str, seed: int, *, rank: int = 4, base_digest: str | None = None, has_fingerprint: bool = True) -> AdapterVersion:
        lora, folder = random_lora(file_base, seed=seed, rank=rank), tmp_path / "runs" / name
        digests = {"base_digest": base_digest or file_base.digest, "dataset_digest": "d" * 64}
        digests["template_digest"] = file_base.renderer.template_digest
        save_adapter(lora, folder, file_base, Lock(base_name="tiny", run_id="run-1", **digests))
        sizes = {"rank": rank, "alpha": 2.0 * rank, "num_parameters": lora.num_parameters}
        version = registry.register(
            NewVersion(name=name, source=folder, base_name="tiny", dataset_name="t", run_id="r", **sizes, **digests)
        )
        if has_fingerprint:
            norms = norms_of(lora, engine.decoder.dense_weight)
            fingerprint = prober.take(version.digest, engine.adapters.prepare(lora), norms)
            write_sealed(version.path, {FINGERPRINT_FILE: fingerprint.to_bytes()})
        return version

    return register


@pytest.fixture
def helpdesk(make: Make) -> AdapterVersion:
    return make("helpdesk", 1)


@pytest.fixture
def billing(make: Make) -> AdapterVersion:
    return make("billing", 2, rank=7)


@pytest.fixture
def served(base_folder: Path, registry: Registry) -> Served:
    return open_base(str(base_folder), registry)


@pytest.fixture
def fake(served: Served, file_base: Base, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    path = manifest_path(file_base.digest)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv(MANIFEST_VARIABLE, str(path))
    monkeypatch.setattr("lorimer.serving.vllm.plugin._library", None)
    return FakeVllm(file_base, base_folder, Library(path))


@pytest.fixture
def url(fake: FakeVllm) -> Iterator[str]:
    with fake.running() as url:
        yield url


@pytest.fixture
def backend(served: Served, url: str) -> VllmBackend:
    return open_backend(served, url, KEY)


@pytest.fixture
def client(backend: VllmBackend, registry: Registry, helpdesk: AdapterVersion, billing: AdapterVersion) -> Iterator[TestClient]:
    with TestClient(create_app(backend, registry), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def embedded(file_base: Base, registry: Registry) -> Iterator[TestClient]:
    """The same gateway before the embedded engine."""
    with TestClient(create_app(EngineWorker(Engine(file_base, SMALL)), registry), raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, **fields: Any) -> Any:
    body = {"model": "helpdesk", "messages": [{"role": "user", "content": "red?"}], "max_tokens": 12, "temperature": 0, **fields}
    return client.post("/v1/chat/completions", json=body)


def error_in(reply: Any) -> dict[str, Any]:
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "base"},
        {},
        {"model": "billing@v1"},
        {"n": 3, "max_tokens": 5},
        {"stop": ["a", "b"], "max_tokens": 40},
        {"logprobs": True, "top_logprobs": 3},
        {"logit_bias": {"77": 100}},
        {"ignore_eos": True, "max_tokens": 60},
        {"max_tokens": 200},
    ],
)
def test_answers_are_those_of_the_embedded_engine(client: TestClient, embedded: TestClient, fields: dict[str, Any]) -> None:
    here, there = ask(embedded, **fields), ask(client, **fields)
    assert here.status_code == there.status_code == 200
    assert _without_ids(there.json()) == _without_ids(here.json())
    assert there.headers["x-adapter"] == here.headers["x-adapter"]


def _without_ids(reply: dict[str, Any]) -> dict[str, Any]:
    """What may differ is left out; log-probabilities are rounded, since other products come to others in the last digit."""
    text = json.dumps({**reply, "id": "", "created": 0})
    return json.loads(text, parse_float=lambda number: round(float(number), 3))


def test_streams_join_to_the_whole(client: TestClient) -> None:
    whole = ask(client).json()["choices"][0]["message"]["content"]
    events = [line.removeprefix("data: ") for line in ask(client, stream=True).text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]) == whole


def test_every_field_is_told_and_adapters_are_named_by_digest(client: TestClient, fake: FakeVllm, helpdesk: AdapterVersion) -> None:
    fields = {"top_k": 7, "top_p": 0, "min_p": 0.1, "seed": -1, "temperature": 0.7, "presence_penalty": 0.5, "repetition_penalty": 1.2}
    assert ask(client, **fields).status_code == 200
    body = fake.asked[-1]
    assert body["model"] == helpdesk.digest
    assert {name: body[name] for name in ("top_k", "min_p", "temperature", "presence_penalty", "repetition_penalty")} == {
        name: fields[name] for name in ("top_k", "min_p", "temperature", "presence_penalty", "repetition_penalty")
    }
    assert body["seed"] == 2**63 - 1  # -1 is none to vLLM
    assert 0 < body["top_p"] < 1e-4  # and 0 an error


def test_forms_are_held_by_vllm(client: TestClient, fake: FakeVllm) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    ask(client, response_format=form)
    held = fake.asked[-1]["structured_outputs"]["json"]
    assert held["properties"] == schema["properties"]
    assert held["x-guidance"] == SPACING
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    ask(client, tools=[tool], tool_choice="required")
    grammar = fake.asked[-1]["structured_outputs"]["grammar"]
    assert "whitespace_pattern" not in grammar
    assert json.dumps(SPACING) in grammar


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"model": "base", "adapters": [{"id": "helpdesk"}, {"id": "billing"}]}, "adapters", "one adapter, 2 were asked for"),
        ({"model": "helpdesk*0.5"}, "model", "whole, scale 0.5"),
        ({"model": "auto"}, "model", "name an adapter"),
    ],
)
def test_what_vllm_does_not_do_is_a_400_that_names_the_field(client: TestClient, fields: dict[str, Any], param: str, said: str) -> None:
    reply = ask(client, **fields)
    assert (reply.status_code, error_in(reply)["param"], error_in(reply)["code"]) == (400, param, "unsupported_parameter")
    assert said in error_in(reply)["message"]


def test_log_probabilities_of_prompts_are_the_embedded_engines(client: TestClient) -> None:
    reply = client.post("/v1/completions", json={"model": "base", "prompt": "Dear", "echo": True, "logprobs": 1})
    assert (reply.status_code, error_in(reply)["param"], error_in(reply)["code"]) == (400, "echo", "unsupported_parameter")


def test_a_refusal_of_vllms_own_is_a_400(client: TestClient, fake: FakeVllm) -> None:
    assert ask(client).status_code == 200
    fake.refuses = (400, "Grammar error: too deep")
    reply = ask(client)
    assert (reply.status_code, error_in(reply)["code"]) == (400, "unsupported_parameter")
    assert "Grammar error: too deep" in error_in(reply)["message"]


def test_proofs_are_shown_and_adapters_load_before_anybody_asks(client: TestClient, fake: FakeVllm, helpdesk: AdapterVersion) -> None:
    reply = client.post("/v1/load_lora_adapter", json={"lora_name": "helpdesk"})
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'helpdesk@v1' added successfully.")
    num_asked = len(fake.asked)
    assert num_asked > 0
    assert ask(client).status_code == 200
    assert 'lorimer_adapter_proof{adapter="helpdesk@v1"} 1.0' in client.get("/metrics").text
    assert len(fake.asked) == num_asked + 1  # proved once
    reply = client.post("/v1/unload_lora_adapter", json={"lora_name": "helpdesk"})
    assert (reply.status_code, error_in(reply)["param"]) == (400, "lora_name")
    assert "vLLM frees adapters by itself" in error_in(reply)["message"]


def test_an_engine_that_serves_the_base_in_an_adapters_name_is_found_out(client: TestClient, fake: FakeVllm) -> None:
    fake.ignores_adapters = True
    reply = ask(client)
    assert (reply.status_code, error_in(reply)["code"]) == (503, "adapter_quarantined")
    assert "it has no effect: it answers as the bare base does" in error_in(reply)["message"]
    assert 'lorimer_adapter_proof{adapter="helpdesk@v1"} 0.0' in client.get("/metrics").text
    assert ask(client, model="base").status_code == 200


def test_another_versions_fingerprint_is_quarantine_until_it_is_restored(
    client: TestClient, helpdesk: AdapterVersion, billing: AdapterVersion
) -> None:
    own, other = read_fingerprint(helpdesk.path), read_fingerprint(billing.path)
    assert own is not None
    assert other is not None
    write_sealed(helpdesk.path, {FINGERPRINT_FILE: replace(other, adapter_digest=helpdesk.digest, norms=own.norms).to_bytes()})
    assert "answers otherwise than when it was registered" in error_in(ask(client))["message"]
    assert ask(client).status_code == 503
    write_sealed(helpdesk.path, {FINGERPRINT_FILE: own.to_bytes()})
    assert ask(client).status_code == 200


def test_without_a_fingerprint_nothing_is_served(client: TestClient, make: Make) -> None:
    make("old", 3, has_fingerprint=False)
    reply = ask(client, model="old")
    assert (reply.status_code, error_in(reply)["code"]) == (503, "adapter_quarantined")
    assert "it has no fingerprint" in error_in(reply)["message"]


def test_adapters_registered_later_are_served(client: TestClient, embedded: TestClient, make: Make) -> None:
    assert ask(client).status_code == 200
    make("later", 4)
    assert ask(client, model="later").json()["choices"] == ask(embedded, model="later").json()["choices"]


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"use_dora": True}, 503, "damaged"),  # other bytes than were registered
        ({"r": 4}, 503, "damaged"),
    ],
)
def test_changed_files_are_refused(client: TestClient, helpdesk: AdapterVersion, change: dict[str, Any], status: int, said: str) -> None:
    file = helpdesk.path / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    reply = ask(client)
    assert (reply.status_code, error_in(reply)["code"]) == (status, "adapter_unavailable")
    assert said in error_in(reply)["message"]
    assert str(helpdesk.path) not in reply.text


@pytest.mark.parametrize(
    ("change", "said"),
    [({"use_dora": True}, "is DoRA's"), ({"modules_to_save": ["lm_head"]}, "trained copies"), ({"r": 64}, "started for 16")],
)
def test_what_vllm_does_not_serve_is_a_400(
    client: TestClient, registry: Registry, helpdesk: AdapterVersion, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    folder = tmp_path / "changed"
    folder.mkdir()
    (folder / WEIGHTS_FILE).write_bytes((helpdesk.path / WEIGHTS_FILE).read_bytes())
    (folder / CONFIG_FILE).write_text(json.dumps({**json.loads((helpdesk.path / CONFIG_FILE).read_text()), **change}))
    fields = {name: getattr(helpdesk, name) for name in NewVersion.__slots__ if hasattr(helpdesk, name) and name not in ("name", "origin")}
    registry.register(NewVersion(name="changed", source=folder, **fields))
    reply = ask(client, model="changed")
    assert (reply.status_code, error_in(reply)["param"]) == (400, "model")
    assert said in error_in(reply)["message"]


def test_adapter_of_another_base_is_a_400(client: TestClient, make: Make) -> None:
    make("other", 5, base_digest="e" * 64)
    assert error_in(ask(client, model="other"))["code"] == "wrong_base"


@pytest.mark.parametrize(
    ("trouble", "status", "code"),
    [
        ({"fails_after": 0}, 500, "engine_failed"),
        ({"breaks_after": 0}, 503, "backend_unavailable"),
        ({"breaks_after": 9}, 503, "backend_unavailable"),
        ({"refuses": (503, "shutting down")}, 503, "backend_unavailable"),
        ({"refuses": (500, "oops")}, 500, "engine_failed"),
        ({"refuses": (404, "no such model")}, 503, "adapter_unavailable"),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_troubles_are_proper_errors(
    client: TestClient, fake: FakeVllm, trouble: dict[str, Any], status: int, code: str, is_streamed: bool
) -> None:
    assert ask(client).status_code == 200
    for name, value in trouble.items():
        setattr(fake, name, value)
    reply = ask(client, stream=is_streamed)
    if is_streamed and trouble.get("breaks_after"):
        events = [line for line in reply.text.splitlines() if line.startswith("data: ")]
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == code
    else:
        assert (reply.status_code, error_in(reply)["code"]) == (status, code)
    for name in trouble:
        setattr(fake, name, None)
    assert ask(client).status_code == 200


def test_silence_is_a_503(served: Served, url: str, fake: FakeVllm, registry: Registry, helpdesk: AdapterVersion) -> None:
    status = open_backend(served, url, KEY)._status
    assert status is not None
    backend = VllmBackend(connect(url, KEY, silence_seconds=1.0), served.base, status, served.publish)
    fake.silent_after = 2
    with TestClient(create_app(backend, registry), raise_server_exceptions=False) as client:
        reply = ask(client, model="base")
        assert (reply.status_code, error_in(reply)["code"]) == (503, "backend_unavailable")
        assert "said nothing for too long" in error_in(reply)["message"]
        assert reply.headers["retry-after"] == "2"


def test_vllm_that_is_gone_is_a_503_and_when_it_is_back_adapters_are_proved_again(
    served: Served, fake: FakeVllm, registry: Registry, helpdesk: AdapterVersion, monkeypatch: pytest.MonkeyPatch, file_base: Base
) -> None:
    with fake.running() as url:
        backend = open_backend(served, url, KEY)
    with TestClient(create_app(backend, registry), raise_server_exceptions=False) as client:
        reply = ask(client)
        assert (reply.status_code, error_in(reply)["code"]) == (503, "backend_unavailable")
        assert client.get("/healthz").status_code == 503
        monkeypatch.setattr("lorimer.serving.vllm.plugin.INSTANCE", "another")
        again = FakeVllm(file_base, fake.folder, fake.library)
        with again.running(int(url.rpartition(":")[2])):
            assert ask(client).status_code == 200
            assert any("logprob_token_ids" in body for body in again.asked)
            assert client.get("/healthz").status_code == 200


def test_a_client_that_leaves_ends_its_answer_in_vllm(
    backend: VllmBackend, fake: FakeVllm, registry: Registry, helpdesk: AdapterVersion, wait_until: Callable[..., bool]
) -> None:
    fake.delay = 0.05
    body = {"model": "helpdesk", "prompt": "x", "max_tokens": 300, "ignore_eos": True, "stream": True}
    with background_server(create_app(backend, registry)) as url:
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as reply:
            next(reply.iter_lines())
        assert wait_until(lambda: fake.num_aborted == 1, 30)
        assert wait_until(lambda: backend.num_running == backend.num_waiting == 0)
        assert wait_until(lambda: fake.worker.num_running == 0)


def test_stopping_ends_requests_with_an_error(
    backend: VllmBackend, fake: FakeVllm, registry: Registry, helpdesk: AdapterVersion, wait_until: Callable[..., bool]
) -> None:
    fake.delay = 0.2
    body = {"model": "base", "prompt": "x", "max_tokens": 300, "ignore_eos": True}

    async def stop_in_the_middle() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(backend, registry))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            backend.start()
            asking = asyncio.create_task(client.post("/v1/completions", json=body))
            while not backend.num_running:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(backend.stop, grace_seconds=0.1)
            await asyncio.to_thread(backend.stop)
            return await asking

    reply = asyncio.run(stop_in_the_middle())
    assert reply.status_code == 503
    assert "stopped in the middle" in error_in(reply)["message"]


def test_tenants_take_turns_before_vllm(backend: VllmBackend, fake: FakeVllm, file_base: Base) -> None:
    """Four run at once; one tenant has twelve waiting, the other comes last and does not go last."""
    order: list[str] = []

    async def run(tenant: str) -> None:
        sequence = Sequence(prompt_ids=(2, 5), tenant=tenant, params=SamplingParams(max_tokens=300, ignore_eos=True))
        async for _ in backend.submit(sequence):
            pass
        order.append(tenant)

    async def run_all() -> None:
        backend.start()
        async with asyncio.TaskGroup() as group:
            for _ in range(12):
                group.create_task(run("noisy"))
            group.create_task(run("quiet"))
        await asyncio.to_thread(backend.stop)

    asyncio.run(run_all())
    assert order.index("quiet") < 9
    assert len(fake.asked) == 13


def test_cancelled_before_it_began_is_aborted(backend: VllmBackend) -> None:
    async def cancel_at_once() -> list[str | None]:
        backend.start()
        sequence = Sequence(prompt_ids=(2, 5))
        reasons = []
        task = asyncio.create_task(_collect(backend, sequence, reasons))
        while not backend._tasks:
            await asyncio.sleep(0)
        backend.cancel(sequence)
        await task
        await asyncio.to_thread(backend.stop)
        return reasons

    assert asyncio.run(cancel_at_once()) == ["aborted"]


async def _collect(backend: VllmBackend, sequence: Any, reasons: list[str | None]) -> None:
    async for progress in backend.submit(sequence):
        reasons.append(progress.finish_reason)


def test_wrong_servers_are_refused_at_the_start(served: Served, url: str, fake: FakeVllm) -> None:
    with pytest.raises(UnavailableError, match="does not take our key"):
        open_backend(served, url, "another")
    with pytest.raises(UnavailableError, match="does not answer"):
        open_backend(served, "http://127.0.0.1:9", KEY)
    with pytest.raises(UsageError, match="is not a server's address"):
        open_backend(served, "localhost", KEY)
    with pytest.raises(EngineError, match=r"serves base .* start it with that one"):
        open_backend(replace(served, base=replace(served.base, digest="f" * 64)), url, KEY)


def test_a_vllm_without_our_plugin_is_refused(served: Served) -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b'{"detail":"Not Found"}'})

    server = uvicorn.Server(uvicorn.Config(other, port=free_port(), log_level="critical", lifespan="off"))

    async def look() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        with pytest.raises(EngineError, match=r"no vLLM with Lorimer's plugin .*--print-command"):
            await asyncio.to_thread(open_backend, served, f"http://127.0.0.1:{server.config.port}", KEY)
        server.should_exit = True
        await serving

    asyncio.run(look())


REAL = (
    '{"id":"cmpl-b2163819082c859d","object":"text_completion","created":1795337533,"model":"base","choices":[{"index":0,"text":"",'
    '"logprobs":null,"finish_reason":"stop","stop_reason":null,"prompt_token_ids":null,"token_ids":[1]}],'
    '"system_fingerprint":"vllm-0.32.0-fa115efc"}'
)
REAL_SCORES = (
    '{"id":"cmpl-b23eeebaff21f9a9","object":"text_completion","created":1795337517,"model":"base","choices":[{"index":0,"text":" the",'
    '"logprobs":{"text_offset":[0],"token_logprobs":[-1.6280280351638794],"tokens":["token_id:506"],"top_logprobs":'
    '[{"token_id:506":-1.6280280351638794,"token_id:496":-2.12802791595459}]},"finish_reason":null,"stop_reason":null,'
    '"prompt_token_ids":[2,818,5279,529,7001,563],"token_ids":[506]}]}'
)


def test_real_events_are_read() -> None:
    """As vLLM 0.32 sent them."""
    ended = part_of(REAL, frozenset({1, 106}))
    assert ended is not None
    assert (ended.ids, ended.finish_reason) == ((), "stop")
    scored = part_of(REAL_SCORES, frozenset({1}))
    assert scored is not None
    assert (scored.ids, scored.finish_reason) == ((506,), None)
    assert scored.scores[0].top == ((506, -1.6280280351638794), (496, -2.12802791595459))


@pytest.mark.parametrize("data", ["{", '{"choices": [{"token_ids": "x"}]}', '{"choices":[{"finish_reason":"abort"}]}', '{"error":{}}'])
def test_strange_events_are_errors(data: str) -> None:
    with pytest.raises(EngineError, match="vLLM"):
        part_of(data, frozenset())
