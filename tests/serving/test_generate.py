"""`/generate`: the same answers as `/v1/completions`, asked in other words."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from lorimer.serving.generate import GenerateRequest


def asked(**parameters: Any) -> Any:
    return GenerateRequest.model_validate({"inputs": "Dear", "parameters": parameters}).to_completion()


@pytest.mark.parametrize(
    ("parameters", "field", "value"),
    [
        ({}, "model", "base"),
        ({"adapter_id": "helpdesk"}, "model", "helpdesk"),
        ({}, "temperature", 0.0),
        ({"do_sample": True}, "temperature", 1.0),
        ({"temperature": 0.5}, "temperature", 0.5),
        ({"top_k": 5}, "temperature", 1.0),
        ({"top_k": 5}, "top_k", 5),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"max_new_tokens": 7}, "max_tokens", 7),
        ({"repetition_penalty": 1.2}, "repetition_penalty", 1.2),
        ({"frequency_penalty": 0.2}, "frequency_penalty", 0.2),
        ({"seed": 7}, "seed", 7),
        ({"stop": ["a", "b"]}, "stops", ("a", "b")),
        ({"return_full_text": True}, "echo", True),
        ({"ignore_eos_token": True}, "ignore_eos", True),
        ({"details": False, "best_of": 1, "watermark": False, "typical_p": 1.0}, "model", "base"),
    ],
)
def test_parameters_mean_what_completions_call_otherwise(parameters: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(asked(**parameters), field) == value


@pytest.mark.parametrize("parameters", [{}, {"adapter_id": "helpdesk"}, {"adapter_id": "billing", "top_k": 3, "seed": 1}])
def test_text_is_that_of_completions(client: TestClient, parameters: dict[str, Any]) -> None:
    reply = client.post("/generate", json={"inputs": "Dear", "parameters": {**parameters, "max_new_tokens": 12}})
    fields = {key: value for key, value in parameters.items() if key != "adapter_id"}
    body = {"model": parameters.get("adapter_id", "base"), "prompt": "Dear", "max_tokens": 12, "temperature": float("top_k" in parameters)}
    wanted = client.post("/v1/completions", json={**body, **fields}).json()
    assert reply.json() == {"generated_text": wanted["choices"][0]["text"]}
    assert reply.headers["x-adapter"] == wanted["model"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"inputs": "a", "parameters": {"details": True}}, "parameters.details"),
        ({"inputs": "a", "parameters": {"merged_adapters": {"ids": ["a"]}}}, "parameters.merged_adapters"),
        ({"inputs": "a", "parameters": {"temperature": 0}}, "parameters.temperature"),
        ({"inputs": "a", "parameters": {"stop": [""]}}, "stop"),
        ({"inputs": "a", "stream": True}, "stream"),
        ({"parameters": {}}, "inputs"),
        ({"inputs": "a", "parameters": {"adapter_id": "nobody"}}, "nobody"),
        ({"inputs": "a" * 600}, "inputs"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(client: TestClient, body: dict[str, Any], param: str) -> None:
    reply = client.post("/generate", json=body)
    assert reply.status_code in (400, 404)
    assert param in reply.json()["error"]["message"] or param == reply.json()["error"]["param"]
