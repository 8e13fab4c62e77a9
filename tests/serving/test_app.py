"""The routes: models, health, metrics, and every error in OpenAI's shape."""

import json
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.serving.app import MAX_BODY_BYTES
from lorimer.serving.worker import EngineWorker

ROUTES = ("/v1/chat/completions", "/v1/completions")
MESSAGES = [{"role": "user", "content": "hi"}]


def error_in(reply: Any) -> dict[str, Any]:
    """The error of a reply, checked for its shape."""
    body = reply.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


def test_models_lists_the_base_and_every_name(client: TestClient, helpdesk: AdapterVersion, worker: EngineWorker) -> None:
    cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
    assert set(cards) == {"tiny-gemma3", "billing", "billing@v1", "helpdesk", "helpdesk@v1"}
    assert cards["helpdesk"] == {**cards["helpdesk@v1"], "id": "helpdesk"}
    card = cards["helpdesk@v1"]
    assert (card["object"], card["root"], card["parent"], card["max_model_len"]) == ("model", helpdesk.digest, "tiny-gemma3", 512)
    assert cards["tiny-gemma3"]["parent"] is None


@pytest.mark.parametrize("model", ["tiny-gemma3", "base", "helpdesk", "helpdesk@v1"])
def test_model_is_shown_by_each_of_its_names(client: TestClient, model: str) -> None:
    assert client.get(f"/v1/models/{model}").json()["object"] == "model"


def test_unknown_model_is_a_404(client: TestClient) -> None:
    for reply in (client.get("/v1/models/helpdsk"), client.post(ROUTES[0], json={"model": "helpdsk", "messages": MESSAGES})):
        error = error_in(reply)
        assert (reply.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert "did you mean 'helpdesk'" in error["message"]


def test_health_says_how_much_is_going_on(client: TestClient) -> None:
    client.post(ROUTES[0], json={"model": "helpdesk", "messages": MESSAGES, "max_tokens": 2})
    wanted = {"status": "ok", "base": "tiny-gemma3", "adapters_resident": 1, "running": 0, "waiting": 0}
    assert client.get("/healthz").json() == wanted


def test_health_and_requests_are_503_when_the_engine_is_gone(client: TestClient, worker: EngineWorker) -> None:
    worker.stop()
    reply = client.get("/healthz")
    assert (reply.status_code, reply.json()["status"]) == (503, "stopped")
    reply = client.post(ROUTES[0], json={"model": "base", "messages": MESSAGES})
    assert (reply.status_code, error_in(reply)["code"]) == (503, "engine_stopped")


@pytest.mark.parametrize(
    ("content", "content_type", "said"),
    [
        (b"{", "application/json", "not valid JSON"),
        (b"", "application/json", "must be a JSON object"),
        (b"[]", "application/json", "must be a JSON object"),
        (b'{"model": "base"}', "text/plain", "content-type: application/json"),
        (b"[" * 100_000, "application/json", ""),
        (b'{"model": "base", "messages": [{"role": "user", "content": "\\ud800"}]}', "application/json", "messages[0].content"),
        (b'{"model": "\xff"}', "application/json", ""),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", ""),
    ],
)
def test_malformed_body_is_a_400(client: TestClient, content: bytes, content_type: str, said: str) -> None:
    reply = client.post(ROUTES[0], content=content, headers={"content-type": content_type})
    assert reply.status_code == 400
    assert said in error_in(reply)["message"]


def test_unknown_field_is_a_400_that_names_it(client: TestClient) -> None:
    reply = client.post(ROUTES[0], json={"model": "base", "messages": MESSAGES, "best_effort": True})
    error = error_in(reply)
    assert (reply.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "best_effort")


def test_wrong_route_and_method(client: TestClient) -> None:
    missing, wrong = client.get("/v1/embeddings"), client.get(ROUTES[0])
    assert (missing.status_code, wrong.status_code, wrong.headers["allow"]) == (404, 405, "POST")
    assert "/v1/embeddings" in error_in(missing)["message"]
    assert "GET" in error_in(wrong)["message"]
    assert client.get("/docs").status_code == 404


def test_large_body_is_a_413(client: TestClient) -> None:
    reply = client.post(ROUTES[0], content=b" " * (MAX_BODY_BYTES + 1), headers={"content-type": "application/json"})
    assert (reply.status_code, error_in(reply)["code"]) == (413, "body_too_large")
    pieces = (b" " * 65536 for _ in range(MAX_BODY_BYTES // 65536 + 1))  # of unstated length
    assert client.post(ROUTES[0], content=pieces).status_code == 413


def test_no_origin_may_ask_through_a_browser(client: TestClient) -> None:
    headers = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
    assert client.options(ROUTES[0], headers=headers).status_code == 405
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=headers).headers


def test_failing_registry_is_a_500_in_shape(client: TestClient, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "resolve", lambda name: 1 / 0)
    monkeypatch.setattr(registry, "list_versions", lambda: 1 / 0)
    for reply in (client.post(ROUTES[0], json={"model": "helpdesk", "messages": MESSAGES}), client.get("/v1/models")):
        assert (reply.status_code, error_in(reply)["type"]) == (500, "server_error")


def test_metrics_count_by_version_and_outcome(client: TestClient) -> None:
    for model in ("helpdesk", "helpdesk@v1", "nobody"):
        client.post(ROUTES[0], json={"model": model, "messages": MESSAGES, "max_tokens": 3, "ignore_eos": True})
    client.post(ROUTES[0], json={"nonsense": 1})
    lines = client.get("/metrics").text.splitlines()
    assert 'lorimer_requests_total{adapter="helpdesk@v1",outcome="ok"} 2.0' in lines
    assert 'lorimer_requests_total{adapter="none",outcome="refused"} 2.0' in lines
    assert 'lorimer_generated_tokens_total{adapter="helpdesk@v1"} 6.0' in lines
    assert 'lorimer_ttft_seconds_count{adapter="helpdesk@v1"} 2.0' in lines
    assert 'lorimer_latency_seconds_count{adapter="helpdesk@v1"} 2.0' in lines
    assert {"vllm:num_requests_running 0.0", "vllm:num_requests_waiting 0.0", "vllm:kv_cache_usage_perc 0.0"} <= set(lines)
    assert "lorimer_adapters_resident 1.0" in lines
    assert not [line for line in lines if '"nobody"' in line]


def test_openapi_document_describes_what_is_taken(app: FastAPI) -> None:
    document = app.openapi()
    admin = {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}
    assert set(document["paths"]) == {*ROUTES, *admin, "/generate", "/v1/models", "/v1/models/{model}", "/healthz", "/metrics"}
    assert document["components"]["schemas"]["ChatCompletionRequest"]["additionalProperties"] == {"type": "null"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream",
    "stream_options", "user", "ignore_eos", "n", "logprobs", "tools", "echo", "response_format",
]  # fmt: skip
NEARLY_RIGHT = st.fixed_dictionaries(
    {"model": st.sampled_from(["base", "helpdesk", "billing@v1"]) | st.text(max_size=30)},
    optional={
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant"]), "content": st.text(max_size=40)})
        ),
        "prompt": st.text(max_size=40) | st.lists(st.integers(-1, 300), max_size=5) | st.lists(st.text(max_size=5), max_size=3),
        "max_tokens": st.integers(-1, 6) | st.integers(),
        "temperature": st.floats(-0.1, 2.1),
        "top_p": st.floats(-0.1, 1.1),
        "seed": st.integers(),
        "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=5),
        "stream": st.booleans(),
        "ignore_eos": st.booleans(),
    },
)
BODIES = JSON | st.dictionaries(st.sampled_from(FIELDS), JSON) | NEARLY_RIGHT


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES, route=st.sampled_from(ROUTES))
def test_no_body_is_a_server_error(client: TestClient, body: Any, route: str) -> None:
    if isinstance(body, dict):
        body.setdefault("max_tokens", 3)
    reply = client.post(route, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
    assert reply.status_code in (200, 400, 404), reply.text
    if reply.status_code != 200:
        error_in(reply)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=st.text(min_size=1, max_size=40) | st.from_regex(r"(helpdesk|billing)@[a-z0-9:]{0,12}", fullmatch=True))
def test_no_model_name_is_a_server_error(client: TestClient, model: str) -> None:
    reply = client.post(ROUTES[1], json={"model": model, "prompt": "a", "max_tokens": 1})
    assert reply.status_code in (200, 400, 404), reply.text


def test_a_server_has_read_the_bases_tokens_before_its_first_request(app: FastAPI) -> None:
    grammars = app.state.prepare.__self__
    assert grammars._tokens is None
    with TestClient(app):
        assert grammars._tokens is not None


def test_tokens_that_cannot_be_read_leave_all_but_forms_to_be_asked(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **fields: Any) -> None:
        raise ValueError("unknown kind of tokenizer")

    monkeypatch.setattr("lorimer.inference.constraint.LLTokenizer", refuse)
    body = {"model": "helpdesk", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        reply = client.post("/v1/chat/completions", json={**body, "response_format": {"type": "json_object"}})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "response_format")
        assert "its tokens cannot be read (unknown kind of tokenizer)" in reply.json()["error"]["message"]
