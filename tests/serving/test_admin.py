"""vLLM's load and unload: names of what is registered, never a path; only for keys that may administer."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.serving.grants import Grant
from lorimer.serving.keys import Keys
from lorimer.serving.worker import EngineWorker

LOAD, UNLOAD, CHAT = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/chat/completions"


def test_load_makes_resident_and_unload_frees(client: TestClient, worker: EngineWorker, helpdesk: AdapterVersion) -> None:
    reply = client.post(LOAD, json={"lora_name": "helpdesk"})
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'helpdesk@v1' added successfully.")
    assert worker.engine.adapters.digests == [helpdesk.digest]
    assert client.post(LOAD, json={"lora_name": "helpdesk@v1", "load_inplace": False}).status_code == 200
    reply = client.post(UNLOAD, json={"lora_name": "helpdesk@v1"})
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'helpdesk@v1' removed successfully.")
    assert worker.num_resident == 0
    assert client.post(UNLOAD, json={"lora_name": "helpdesk"}).status_code == 200


def test_what_was_unloaded_is_loaded_again_when_it_is_asked_for(client: TestClient, worker: EngineWorker) -> None:
    client.post(UNLOAD, json={"lora_name": "helpdesk"})
    body = {"model": "helpdesk", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    assert client.post(CHAT, json=body).status_code == 200
    assert worker.num_resident == 1


@pytest.mark.parametrize(
    ("body", "status", "param", "said"),
    [
        ({"lora_name": "helpdesk", "lora_path": "/etc/passwd"}, 400, "lora_path", "on the server's own machine"),
        ({"lora_name": "helpdesk", "lora_path": ""}, 400, "lora_path", "never taken"),
        ({"lora_name": "helpdesk", "lora_path": {"a": 1}}, 400, "lora_path", "never taken"),
        ({"lora_name": "helpdesk", "load_inplace": True}, 400, "load_inplace", "never changes"),
        ({"lora_name": "helpdesk", "force": True}, 400, "force", "unknown field"),
        ({"lora_name": "base"}, 400, "lora_name", "always loaded"),
        ({"lora_name": "helpdesk+billing"}, 400, "lora_name", "several adapters: name one adapter"),
        ({"lora_name": "helpdesk*0.5"}, 400, "lora_name", "'helpdesk@v1*0.5' is an adapter with a scale"),
        ({"lora_name": "auto"}, 404, "lora_name", "does not exist"),
        ({"lora_name": "nobody"}, 404, "lora_name", "does not exist"),
        ({"lora_name": "../../etc/passwd"}, 404, "lora_name", "does not exist"),
        ({"lora_name": ""}, 400, "lora_name", ""),
        ({"lora_name": 7}, 400, "lora_name", ""),
        ({}, 400, "lora_name", "missing"),
    ],
)
def test_what_is_not_a_registered_adapter_is_refused(
    client: TestClient, worker: EngineWorker, body: dict[str, Any], status: int, param: str, said: str
) -> None:
    for path in (LOAD,) if "lora_path" in body or "load_inplace" in body else (LOAD, UNLOAD):
        reply = client.post(path, json=body)
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (status, param)
        assert said in error["message"]
    assert worker.num_resident == 0


def test_adapter_of_another_base_is_refused(client: TestClient, register: Callable[..., AdapterVersion]) -> None:
    register("elsewhere", 5, base_digest="e" * 64)
    reply = client.post(LOAD, json={"lora_name": "elsewhere"})
    assert (reply.status_code, reply.json()["error"]["code"], reply.json()["error"]["param"]) == (400, "wrong_base", "lora_name")


def test_damaged_files_are_a_503_without_paths(client: TestClient, helpdesk: AdapterVersion, worker: EngineWorker) -> None:
    (helpdesk.path / "adapter_model.safetensors").write_bytes(b"damaged")
    reply = client.post(LOAD, json={"lora_name": "helpdesk"})
    assert reply.status_code == 503
    assert str(helpdesk.path) not in reply.text
    assert worker.num_resident == 0


def test_stopped_engine_is_a_503(client: TestClient, worker: EngineWorker) -> None:
    worker.stop()
    for path in (LOAD, UNLOAD):
        reply = client.post(path, json={"lora_name": "helpdesk"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_stopped")


def test_admin_key_administers_what_it_may_use(client: TestClient, registry: Registry) -> None:
    grant = Grant(adapters=("helpdesk",), is_admin=True)
    headers = {"authorization": f"Bearer {Keys(registry.engine).create('ops', tenant='ops', grant=grant).text}"}
    assert client.post(LOAD, json={"lora_name": "helpdesk"}, headers=headers).status_code == 200
    assert client.post(LOAD, json={"lora_name": "billing"}, headers=headers).status_code == 404
    assert client.post(LOAD, json={"lora_name": "helpdesk"}).status_code == 401
