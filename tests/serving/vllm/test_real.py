"""The gateway before a real vLLM, started as `lorimer serve --backend vllm` starts it; LORIMER_VLLM names the Python of its environment.

LORIMER_VLLM=/opt/vllm/bin/python VLLM_CPU_KVCACHE_SPACE=1 pytest tests/serving/test_vllm_real.py
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fakes import IDS, byte_tokenizer, random_lora, write_sealed
from lorimer.database import open_database
from lorimer.inference.engine import Engine, EngineConfig
from lorimer.inference.fingerprint import FINGERPRINT_FILE, Prober, norms_of
from lorimer.model.adapter import CONFIG_FILE, WEIGHTS_FILE, Lock, save_adapter
from lorimer.model.base import Base, load_base
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry
from lorimer.serving.app import create_app
from lorimer.serving.server import background_server
from lorimer.serving.vllm.backend import VllmBackend
from lorimer.serving.vllm.launch import Launch, Supervisor, supervised
from lorimer.serving.vllm.plugin import STATUS_PATH
from lorimer.serving.vllm.server import is_answering, open_backend, open_base, plan_vllm
from lorimer.serving.worker import EngineWorker

PYTHON = os.environ.get("LORIMER_VLLM", "")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="needs a vLLM: name the Python of its environment in LORIMER_VLLM"),
]
WAIT_SECONDS = 900.0
CONFIG = EngineConfig(max_sequences=8, max_tokens_per_step=256, cache_bytes=8_000_000)
MAX_LEN = 1024
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}


@dataclass(frozen=True)
class World:
    """Two gateways over one registry, and the vLLM behind one of them."""

    home: Path
    base: Base
    registry: Registry
    launch: Launch
    supervisor: Supervisor
    backend: VllmBackend
    url: str
    """Before vLLM."""
    embedded_url: str

    @property
    def log(self) -> str:
        """vLLM's."""
        return self.supervisor.log.read_text(errors="replace")

    def register(
        self, name: str, seed: int, *, base_digest: str | None = None, changes: dict[str, Any] | None = None, **of: Any
    ) -> AdapterVersion:
        """A random adapter, with its fingerprint."""
        return _register(self.registry, self.base, self.home, name, seed, base_digest=base_digest, changes=changes, **of)


def _register(
    registry: Registry, base: Base, home: Path, name: str, seed: int, *, base_digest: str | None, changes: dict[str, Any] | None, **of: Any
) -> AdapterVersion:
    engine, lora, folder = Engine(base, CONFIG), random_lora(base, seed=seed, **of), home / "runs" / name
    digests = {"base_digest": base_digest or base.digest, "dataset_digest": "d" * 64, "template_digest": base.renderer.template_digest}
    save_adapter(lora, folder, base, Lock(base_name="tiny", run_id="r", **digests))
    if changes:
        file = folder / CONFIG_FILE
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    rank = max(own.a.shape[0] for own in lora.weights.values())
    sizes = {"rank": rank, "alpha": 2.0 * rank, "num_parameters": lora.num_parameters}
    version = registry.register(NewVersion(name=name, source=folder, base_name="tiny", dataset_name="t", run_id="r", **sizes, **digests))
    norms = norms_of(lora, engine.decoder.dense_weight)
    prober = Prober(base, engine.decoder)
    fingerprint = prober.take(version.digest, engine.adapters.prepare(lora), norms)
    write_sealed(version.path, {FINGERPRINT_FILE: fingerprint.to_bytes()})
    return version


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, home = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("home")
    os.environ["LORIMER_HOME"] = str(home)
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, **IDS, max_position_embeddings=MAX_LEN)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    base, registry = load_base(str(folder), dtype=torch.float32), Registry(open_database())
    for name, seed, of in (
        ("one", 1, {"rank": 4}),
        ("two", 2, {"rank": 16}),
        ("three", 3, {"rank": 7, "targets": tuple(name for name in base.layers if name.endswith(("q_proj", "down_proj")))}),
    ):
        _register(registry, base, home, name, seed, base_digest=None, changes=None, **of)
    served = open_base(str(folder), registry)
    options = ["--gpu-memory-utilization", "0.3", "--enforce-eager"]
    launch = plan_vllm(served, PYTHON, max_sequences=8, max_len=MAX_LEN, options=options)
    launch = _with_dtype(launch, "float32")
    supervisor = Supervisor(launch, log=home / "vllm" / "vllm.log", is_ready=is_answering(launch))
    with supervised(supervisor):
        backend = open_backend(served, launch.url, launch.key)
        embedded = EngineWorker(Engine(base, CONFIG))
        with background_server(create_app(backend, registry)) as url, background_server(create_app(embedded, registry)) as embedded_url:
            yield World(
                home=home,
                base=base,
                registry=registry,
                launch=launch,
                supervisor=supervisor,
                backend=backend,
                url=url,
                embedded_url=embedded_url,
            )


def _with_dtype(launch: Launch, dtype: str) -> Launch:
    """The tiny base's own, whatever this machine would choose."""
    arguments = list(launch.arguments)
    arguments[arguments.index("--dtype") + 1] = dtype
    return Launch(
        python=launch.python,
        port=launch.port,
        arguments=tuple(arguments),
        environment={**launch.environment, "VLLM_CPU_KVCACHE_SPACE": "1"},
    )


@pytest.fixture(autouse=True)
def home(world: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One home for all tests here: vLLM takes long to start."""
    monkeypatch.setenv("LORIMER_HOME", str(world.home))
    return world.home


def ask(url: str, model: str = "one", path: str = "/v1/completions", **fields: Any) -> httpx.Response:
    prompt = {"prompt": "red, blue"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "red?"}]}
    body = {"model": model, "max_tokens": 24, "temperature": 0, **prompt, **fields}
    return httpx.post(url + path, json=body, timeout=WAIT_SECONDS)


def test_vllm_has_the_flags_of_the_registry(world: World) -> None:
    line = " ".join(world.launch.command)
    assert "--max-lora-rank 16 --max-loras 3 --max-cpu-loras 3" in line
    assert world.launch.key not in line


SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "boolean"}}, "required": ["a", "b"]}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": {**SCHEMA, "additionalProperties": False}}}
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("model", ["base", "one", "two@v1", "three"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"path": CHAT},
        {"prompt": ["a", "longer prompt, which says this and that", "c"], "n": 2, "max_tokens": 6},
        {"stop": ["e", "f"], "max_tokens": 80},
        {"logprobs": 3},
        {"frequency_penalty": 1.5, "repetition_penalty": 1.3, "presence_penalty": -0.5},
        {"logit_bias": {"77": 3, "99": -100}},
        {"top_k": 1, "temperature": 1.5, "seed": 7},
        {"ignore_eos": True, "max_tokens": 40},
        {"prompt": "x" * 300, "max_tokens": 8},
    ],
    ids=lambda fields: "-".join(fields) or "plain",
)
def test_both_backends_answer_alike(world: World, model: str, fields: dict[str, Any]) -> None:
    here, there = ask(world.embedded_url, model, **fields), ask(world.url, model, **fields)
    assert there.status_code == here.status_code == 200, there.text
    assert there.headers["x-adapter"] == here.headers["x-adapter"]
    assert _rounded(there)["choices"] == _rounded(here)["choices"]
    assert there.json()["usage"] == here.json()["usage"]


def _rounded(reply: httpx.Response) -> Any:
    return json.loads(reply.text, parse_float=lambda number: round(float(number), 2))


def test_adapters_answer_otherwise_than_the_base_and_each_other(world: World) -> None:
    assert len({ask(world.url, model).json()["choices"][0]["text"] for model in ("base", "one", "two", "three")}) == 4


def test_adapters_share_batches_and_answer_as_alone(world: World) -> None:
    models = ["base", "one", "two", "three"] * 4

    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(base_url=world.url, timeout=WAIT_SECONDS) as client:
            bodies = [{"model": model, "prompt": f"{at // 4} red", "max_tokens": 16, "temperature": 0} for at, model in enumerate(models)]
            replies = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
            return [reply.json()["choices"][0]["text"] for reply in replies]

    alone = [ask(world.embedded_url, m, prompt=f"{at // 4} red", max_tokens=16).json()["choices"][0]["text"] for at, m in enumerate(models)]
    assert asyncio.run(ask_all()) == alone


@pytest.mark.parametrize("model", ["base", "one", "two"])
def test_forms_are_kept(world: World, model: str) -> None:
    """Not letter by letter the embedded engine's: vLLM's llguidance is an older one, and is told of whitespace in other words."""
    choice = ask(world.url, model, response_format=FORM, max_tokens=200).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    said = json.loads(choice["text"])
    assert (set(said), said["a"] in ("x", "yy"), isinstance(said["b"], bool)) == ({"a", "b"}, True, True)
    refused = ask(world.url, model, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")


def test_tools_are_called(world: World) -> None:
    """A byte is a token here: the description of a tool takes most of the room."""
    parameters = {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    reply = ask(world.url, "one", path=CHAT, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=None)
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], call["function"]["name"]) == ("tool_calls", "f")
    assert set(json.loads(call["function"]["arguments"])) == {"b"}


def test_proofs_are_shown(world: World) -> None:
    assert ask(world.url, "one").status_code == 200
    assert 'lorimer_adapter_proof{adapter="one@v1"} 1.0' in httpx.get(f"{world.url}/metrics").text


def directly(world: World, model: str) -> httpx.Response:
    """Past the gateway, with its key: what somebody who has the key would get."""
    body = {"model": model, "prompt": [2, 5], "max_tokens": 1}
    return httpx.post(
        f"{world.launch.url}/v1/completions", json=body, headers={"authorization": f"Bearer {world.launch.key}"}, timeout=WAIT_SECONDS
    )


def test_nobody_goes_round_the_gateway(world: World) -> None:
    key = {"authorization": f"Bearer {world.launch.key}"}
    path = str(next(iter(world.registry.list_versions())).path)
    load = {"lora_name": "mine", "lora_path": path}
    with httpx.Client(base_url=world.launch.url, timeout=WAIT_SECONDS) as client:
        assert client.post("/v1/completions", json={"model": world.base.digest, "prompt": "x"}).status_code == 401
        assert client.get(STATUS_PATH).status_code == 401
        for route in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/v1/chat/completions", "/tokenize", "/invocations"):
            assert client.post(route, json=load, headers=key).status_code == 404
        assert client.get("/v1/models", headers=key).status_code == 404


def test_only_registered_digests_are_served(world: World) -> None:
    version = world.registry.resolve("one")
    assert directly(world, version.digest).status_code == 200
    for name in ("one", "one@v1", str(version.path), f"../{version.path.name}", "f" * 64, version.digest.upper(), version.digest[:16]):
        assert directly(world, name).status_code == 404, name
    for name in (str(version.path), f"../../{version.path.name}", "f" * 64):
        assert ask(world.url, name).status_code == 404


def test_adapter_of_another_base_is_refused(world: World) -> None:
    other = world.register("other", 4, base_digest="e" * 64)
    assert ask(world.url, "other").json()["error"]["code"] == "wrong_base"
    world.backend.publish()
    assert directly(world, other.digest).status_code == 404
    assert f"adapter {other.digest[:12]} was made for base eeeeeeeeeeee" in world.log


def test_changed_files_are_refused(world: World) -> None:
    version = world.register("changed", 5)
    file = version.path / WEIGHTS_FILE
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    reply = ask(world.url, "changed")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "adapter_unavailable")
    world.backend.publish()
    assert directly(world, version.digest).status_code == 404
    file.write_bytes(good)
    assert ask(world.url, "changed").json()["choices"] == ask(world.embedded_url, "changed").json()["choices"]


def test_what_was_verified_is_what_is_read_again(world: World) -> None:
    """Three have room: one is read again after others have pushed it out, from vLLM's own copy, though its files were changed meanwhile."""
    version = world.register("lasting", 6)
    before = ask(world.url, "lasting").json()["choices"]
    file = version.path / WEIGHTS_FILE
    file.write_bytes(b"\0" * len(file.read_bytes()))
    for model in ("one", "two", "three"):
        assert ask(world.url, model).status_code == 200
    assert ask(world.url, "lasting").json()["choices"] == before


def test_another_fingerprint_is_quarantine(world: World) -> None:
    version, other = world.register("mixed", 7), world.registry.resolve("one")
    own = (version.path / "fingerprint.json").read_bytes()
    swapped = json.loads((other.path / "fingerprint.json").read_text())
    write_sealed(version.path, {"fingerprint.json": json.dumps({**swapped, "adapter_digest": version.digest}).encode()})
    reply = ask(world.url, "mixed")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "adapter_quarantined")
    assert "answers otherwise than when it was registered" in reply.json()["error"]["message"]
    write_sealed(version.path, {"fingerprint.json": own})
    assert ask(world.url, "mixed").status_code == 200


@pytest.mark.parametrize(("changes", "said"), [({"use_dora": True}, "is DoRA's"), ({"modules_to_save": ["lm_head"]}, "trained copies")])
def test_what_vllm_does_not_serve_is_a_400(world: World, changes: dict[str, Any], said: str) -> None:
    world.register(f"odd-{len(said)}", 8, changes=changes)
    reply = ask(world.url, f"odd-{len(said)}")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "model")
    assert said in reply.json()["error"]["message"]


def test_larger_ranks_than_it_was_started_for_are_refused(world: World) -> None:
    world.register("large", 9, rank=24)
    reply = ask(world.url, "large")
    assert reply.status_code == 400
    assert "has rank 24, this vLLM was started for 16" in reply.json()["error"]["message"]


def num_running(world: World) -> float:
    """What vLLM says it computes."""
    return asyncio.run(_metric(world))


async def _metric(world: World) -> float:
    headers = {"authorization": f"Bearer {world.launch.key}"}
    async with httpx.AsyncClient(base_url=world.launch.url, headers=headers, timeout=WAIT_SECONDS) as client:
        lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_requests_running{"))


LONG = {"model": "one", "prompt": "x", "max_tokens": 480, "ignore_eos": True, "temperature": 0, "stream": True}


def test_a_client_that_leaves_ends_its_answer(world: World, wait_until: Callable[..., bool]) -> None:
    with httpx.stream("POST", f"{world.url}/v1/completions", json=LONG, timeout=WAIT_SECONDS) as reply:
        lines = reply.iter_lines()
        next(lines)
        assert wait_until(lambda: num_running(world) == 1, 30)
    assert wait_until(lambda: num_running(world) == 0, 30)
    assert wait_until(lambda: world.backend.num_running == 0)


def test_vllm_that_dies_in_the_middle_is_an_error_and_comes_back(world: World, wait_until: Callable[..., bool]) -> None:
    """The last test: it takes as long as a start."""
    before = ask(world.url, "two").json()["choices"]
    pid = world.supervisor.pid
    assert pid is not None
    events = []
    with httpx.stream("POST", f"{world.url}/v1/completions", json=LONG, timeout=WAIT_SECONDS) as reply:
        for line in reply.iter_lines():
            events += [line.removeprefix("data: ")] if line.startswith("data: ") else []
            if len(events) == 5:
                os.killpg(pid, signal.SIGKILL)
    error = json.loads(events[-2])["error"]
    assert (events[-1], error["code"], error["type"]) == ("[DONE]", "backend_unavailable", "server_error")
    at_once = ask(world.url, "two")
    assert (at_once.status_code, at_once.json()["error"]["code"]) == (503, "backend_unavailable")
    assert httpx.get(f"{world.url}/healthz").status_code == 503
    deadline = time.monotonic() + WAIT_SECONDS
    while httpx.get(f"{world.url}/healthz").status_code != 200 and time.monotonic() < deadline:
        time.sleep(1)
    assert world.supervisor.pid != pid
    assert ask(world.url, "two").json()["choices"] == before
    assert 'lorimer_adapter_proof{adapter="two@v1"} 1.0' in httpx.get(f"{world.url}/metrics").text
