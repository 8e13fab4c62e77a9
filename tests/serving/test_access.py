"""Who may ask what, over the routes: every key sees its own adapters and nothing of the others'."""

import asyncio
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from lorimer.errors import LorimerError
from lorimer.registry.compositions import compose
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.serving.access import Access
from lorimer.serving.app import create_app
from lorimer.serving.grants import Grant, Quota
from lorimer.serving.keys import Keys, NewKey
from lorimer.serving.records import requests_file
from lorimer.serving.worker import EngineWorker
from lorimer.storage import read_jsonl

MakeKey = Callable[..., NewKey]
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/helpdesk"),
    ("POST", CHAT),
    ("POST", "/v1/completions"),
    ("POST", "/generate"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("GET", "/v1/nowhere"),
    ("GET", "/metrics"),
]


@pytest.fixture
def make_key(registry: Registry) -> MakeKey:
    """Keys in the server's database; `helpdesk, sql@v3` names what they may use."""

    def make(adapters: str = "*", *, tenant: str = "acme", quota: Quota | None = None, days: int | None = None, **rights: Any) -> NewKey:
        names = tuple(name for name in adapters.split(", ") if name)
        grant = Grant(**{"adapters": names, "may_use_base": adapters == "*", **rights})
        return Keys(registry.engine).create(tenant, tenant=tenant, grant=grant, quota=quota, days=days)

    return make


def bearer(key: NewKey | str) -> dict[str, str]:
    return {"authorization": f"Bearer {key if isinstance(key, str) else key.text}"}


def ask(client: TestClient, key: NewKey, model: str = "helpdesk", **fields: Any) -> Any:
    body = {"model": model, "messages": MESSAGES, "max_tokens": 3, "ignore_eos": True, **fields}
    return client.post(CHAT, json=body, headers=bearer(key))


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_with_keys_every_route_wants_one(client: TestClient, make_key: MakeKey, method: str, path: str) -> None:
    make_key()
    reply = client.request(method, path)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], reply.headers["www-authenticate"]) == (401, "invalid_api_key", "Bearer")
    assert "Authorization: Bearer" in error["message"]


@pytest.mark.parametrize("path", ["/healthz", "/openapi.json"])
def test_health_and_the_document_of_the_api_want_none(client: TestClient, make_key: MakeKey, path: str) -> None:
    make_key()
    assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Basic {}")],
        [("authorization", "{}")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer {} {}")],
        [("authorization", "Bearer \xe9\xff")],
        [("x-api-key", "{}")],
        [("authorization", "Bearer {}"), ("authorization", "Bearer {}")],
    ],
)
def test_only_one_whole_bearer_is_a_key(client: TestClient, make_key: MakeKey, headers: list[tuple[str, str]]) -> None:
    text = make_key().text
    reply = client.get("/v1/models", headers=[(name, value.replace("{}", text).encode("latin-1")) for name, value in headers])
    assert reply.status_code == 401
    assert text not in reply.text


def test_a_key_opens_whatever_the_case_of_its_scheme(client: TestClient, make_key: MakeKey) -> None:
    key = make_key()
    assert client.get("/v1/models", headers={"authorization": f"bearer  {key.text}"}).status_code == 200


@pytest.mark.parametrize("end", ["revoke", "expire"])
def test_ended_keys_open_nothing_at_once(client: TestClient, make_key: MakeKey, registry: Registry, app: FastAPI, end: str) -> None:
    make_key(tenant="other")
    key = make_key(days=1)
    assert client.get("/v1/models", headers=bearer(key)).status_code == 200
    if end == "revoke":
        Keys(registry.engine).revoke(key.key.prefix)
    else:
        app.state.keys.clock = lambda: datetime(2099, 1, 1, tzinfo=UTC)
    reply = client.get("/v1/models", headers=bearer(key))
    assert reply.status_code == 401
    assert end in reply.json()["error"]["message"]


def test_keys_come_into_force_while_the_server_runs(app: FastAPI, client: TestClient, make_key: MakeKey, monkeypatch: Any) -> None:
    monkeypatch.setattr("lorimer.serving.access.RECHECK_SECONDS", 0.0)
    assert client.get("/v1/models", headers=bearer("none")).status_code == 200
    key = make_key()
    assert client.get("/v1/models", headers=bearer("none")).status_code == 401
    app.state.keys.revoke(key.key.prefix)
    assert client.get("/v1/models").status_code == 401  # the last key's end does not open the doors


def test_many_who_come_first_and_at_once_all_need_a_key(app: FastAPI, make_key: MakeKey) -> None:
    make_key()

    async def ask_all() -> set[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            replies = await asyncio.gather(*(client.get("/v1/models") for _ in range(8)))
        return {reply.status_code for reply in replies}

    assert asyncio.run(ask_all()) == {401}


def test_no_keys_answers_everybody_but_lets_nobody_administer(worker: EngineWorker, registry: Registry, make_key: MakeKey) -> None:
    make_key()
    with TestClient(create_app(worker, registry, no_keys=True)) as client:
        assert client.get("/v1/models").status_code == client.get("/metrics").status_code == 200
        reply = client.post("/v1/unload_lora_adapter", json={"lora_name": "helpdesk"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "admin_key_required")


def test_database_that_fails_opens_nothing(client: TestClient, make_key: MakeKey, monkeypatch: Any, caplog: Any) -> None:
    key = make_key()

    def fail(*_: Any) -> None:
        raise LorimerError("database 'x.db' is busy")

    for name in ("exist", "authenticate"):
        monkeypatch.setattr(Keys, name, fail)
        reply = client.get("/v1/models", headers=bearer(key))
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "keys_unavailable")
    assert "is busy" in caplog.text
    assert "x.db" not in reply.text


ALLOWED = [
    # adapters of the key, base allowed, what is asked for, what answers
    ("*", True, "helpdesk", "helpdesk@v2"),
    ("*", True, "base", "tiny-gemma3"),
    ("*", False, "base", None),
    ("*", False, "tiny-gemma3", None),
    ("*", False, "billing", "billing@v1"),
    ("helpdesk", False, "helpdesk", "helpdesk@v2"),
    ("helpdesk", False, "helpdesk@v1", "helpdesk@v1"),
    ("helpdesk", False, "helpdesk@sha256:{helpdesk}", "helpdesk@v1"),
    ("helpdesk", False, "billing", None),
    ("helpdesk", False, "billing@v1", None),
    ("helpdesk", False, "billing@sha256:{billing}", None),
    ("helpdesk", True, "base", "tiny-gemma3"),
    ("helpdesk", False, "base", None),
    ("helpdesk@v1", False, "helpdesk@v1", "helpdesk@v1"),
    ("helpdesk@v1", False, "helpdesk", "helpdesk@v1"),
    ("helpdesk@v1", False, "helpdesk@v2", None),
    ("helpdesk@v1, billing", False, "billing", "billing@v1"),
    ("", True, "helpdesk", None),
    ("", True, "base", "tiny-gemma3"),
]


@pytest.fixture
def second(register: Callable[..., AdapterVersion], helpdesk: AdapterVersion) -> AdapterVersion:
    """Version 2 of the help desk."""
    return register("helpdesk", 3)


@pytest.mark.parametrize(("adapters", "may_use_base", "model", "answers"), ALLOWED)
def test_a_key_uses_what_it_may(
    client: TestClient, make_key: MakeKey, helpdesk: AdapterVersion, second: AdapterVersion, billing: AdapterVersion,
    adapters: str, may_use_base: bool, model: str, answers: str | None,
) -> None:  # fmt: skip
    key = make_key(adapters, may_use_base=may_use_base)
    model = model.format(helpdesk=helpdesk.digest[:12], billing=billing.digest[:12])
    reply, card = ask(client, key, model), client.get(f"/v1/models/{model}", headers=bearer(key))
    if answers is None:
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
        assert card.status_code == 404
    else:
        assert (reply.status_code, reply.json()["model"]) == (200, answers)
        assert card.json()["id"] == (model if model != "base" else "tiny-gemma3")


@pytest.mark.parametrize(
    ("adapters", "may_use_base", "listed"),
    [
        ("*", True, ["tiny-gemma3", "billing", "billing@v1", "helpdesk", "helpdesk@v1", "helpdesk@v2"]),
        ("*", False, ["billing", "billing@v1", "helpdesk", "helpdesk@v1", "helpdesk@v2"]),
        ("helpdesk", True, ["tiny-gemma3", "helpdesk", "helpdesk@v1", "helpdesk@v2"]),
        ("helpdesk@v1", False, ["helpdesk", "helpdesk@v1"]),
        ("nobody", False, []),
    ],
)
def test_models_lists_what_the_key_may_use(
    client: TestClient, make_key: MakeKey, second: AdapterVersion, adapters: str, may_use_base: bool, listed: list[str]
) -> None:
    key = make_key(adapters, may_use_base=may_use_base)
    assert [card["id"] for card in client.get("/v1/models", headers=bearer(key)).json()["data"]] == listed


def test_what_is_not_allowed_is_refused_as_what_does_not_exist(
    client: TestClient, make_key: MakeKey, register: Callable[..., AdapterVersion], billing: AdapterVersion
) -> None:
    """The same words: no hint names what belongs to others, whatever its base or digest."""
    register("billing", 4, base_digest="e" * 64)
    key = make_key("helpdesk")
    for model in ("billing", "billing@v1", "billing@v2", f"billing@sha256:{billing.digest[:6]}", "bill"):
        refused, missing = ask(client, key, model), ask(client, key, model.replace("bill", "xill"))
        assert refused.status_code == missing.status_code == 404
        assert refused.json()["error"]["message"].replace("bill", "xill") == missing.json()["error"]["message"]
        assert set(refused.headers) == set(missing.headers)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/load_lora_adapter", {"lora_name": "helpdesk"}),
        ("/v1/unload_lora_adapter", {"lora_name": "helpdesk"}),
        ("/v1/load_lora_adapter", {"wrong": 1}),
        ("/v1/load_lora_adapter%0A", {"lora_name": "helpdesk"}),
    ],
)
def test_chat_key_on_an_admin_route_is_a_403(client: TestClient, worker: EngineWorker, make_key: MakeKey, path: str, body: Any) -> None:
    reply = client.post(path, json=body, headers=bearer(make_key()))
    assert (reply.status_code, reply.json()["error"]["type"]) == (403, "permission_error")
    assert worker.num_resident == 0


def test_metrics_name_tenants_and_want_an_admin_key(client: TestClient, make_key: MakeKey) -> None:
    chat, admin = make_key(), make_key(tenant="ops", is_admin=True)
    assert client.get("/metrics", headers=bearer(chat)).status_code == 403
    assert client.get("/metrics", headers=bearer(admin)).status_code == 200


def test_requests_per_minute_are_a_429_with_openais_headers(client: TestClient, make_key: MakeKey) -> None:
    key = make_key(quota=Quota(requests_per_minute=2, tokens_per_minute=10_000))
    first = ask(client, key)
    assert first.status_code == 200
    assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    total = first.json()["usage"]["total_tokens"]
    assert 10_000 - total <= int(first.headers["x-ratelimit-remaining-tokens"]) <= 10_000
    assert client.post(CHAT, content=b"{", headers=bearer(key)).status_code == 400  # what is malformed counts too
    reply = ask(client, key)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["code"], error["param"]) == (429, "requests", "rate_limit_exceeded", None)
    assert 0 < int(reply.headers["retry-after"]) <= 30
    assert reply.headers["x-ratelimit-remaining-requests"] == "0"
    assert client.get("/v1/models", headers=bearer(key)).status_code == 200
    assert ask(client, make_key(tenant="other")).status_code == 200


def test_tokens_per_minute_are_a_429(client: TestClient, make_key: MakeKey) -> None:
    key = make_key(quota=Quota(tokens_per_minute=50))
    assert ask(client, key, max_tokens=40).status_code == 200
    reply = ask(client, key)
    assert (reply.status_code, reply.json()["error"]["type"]) == (429, "tokens")


def test_a_streams_tokens_are_counted_at_its_end(client: TestClient, make_key: MakeKey) -> None:
    key = make_key(quota=Quota(tokens_per_minute=5000))
    with client.stream("POST", CHAT, json={"model": "base", "messages": MESSAGES, "max_tokens": 30, "stream": True,
                                           "stream_options": {"include_usage": True}}, headers=bearer(key)) as reply:  # fmt: skip
        lines = [line for line in reply.iter_lines() if line.startswith("data: {")]
    total = json.loads(lines[-1].removeprefix("data: "))["usage"]["total_tokens"]
    left = int(client.get("/v1/models", headers=bearer(key)).headers["x-ratelimit-remaining-tokens"])
    assert 5000 - total <= left <= 5000 - total + 60  # some have come back since


def test_refused_requests_give_back_their_tokens(client: TestClient, make_key: MakeKey) -> None:
    key = make_key(quota=Quota(tokens_per_minute=5000))
    for fields in ({"max_tokens": 4000}, {"model": "nobody"}, {"max_tokens": 2**62}):
        assert ask(client, key, **fields).status_code in (400, 404)
    assert client.get("/v1/models", headers=bearer(key)).headers["x-ratelimit-remaining-tokens"] == "5000"


def test_context_and_body_limits_of_a_key(client: TestClient, make_key: MakeKey) -> None:
    key, free = make_key(max_context=40, max_body_bytes=400), make_key()
    reply = ask(client, key, max_tokens=50)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "takes 40 together" in reply.json()["error"]["message"]
    assert ask(client, free, max_tokens=50).status_code == ask(client, key).status_code == 200
    assert {card["max_model_len"] for card in client.get("/v1/models", headers=bearer(key)).json()["data"]} == {40}
    large = ask(client, key, user="x" * 200, stop=["y" * 200])
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
    assert ask(client, free, user="x" * 200, stop=["y" * 200]).status_code == 200


def test_a_body_is_not_read_before_its_sender_is_known(client: TestClient, make_key: MakeKey) -> None:
    make_key()
    assert client.post(CHAT, content=b"x" * 4_000_000).status_code == 401


def test_overloaded_is_a_503_that_says_when_to_come_back(worker: EngineWorker, registry: Registry) -> None:
    """Eight run and one waits: nobody else comes in."""
    app = create_app(worker, registry, max_waiting=1)
    body = {"model": "base", "prompt": ["x"] * 9, "max_tokens": 60, "ignore_eos": True}

    async def ask_thrice() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(3)))

    worker.start()
    try:
        replies = asyncio.run(ask_thrice())
    finally:
        worker.stop()
    assert sorted(reply.status_code for reply in replies) == [200, 503, 503]
    refused = next(reply for reply in replies if reply.status_code == 503)
    assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("overloaded", "1")


def test_who_asked_is_in_the_log_and_the_metrics(client: TestClient, make_key: MakeKey) -> None:
    key, admin = make_key("helpdesk", quota=Quota(tokens_per_minute=100_000)), make_key(tenant="ops", is_admin=True)
    ask(client, key)
    ask(client, key, "billing")
    (file,) = requests_file("2026-01-01").parent.iterdir()
    records = list(read_jsonl(file))
    assert {(record["tenant"], record["key_prefix"]) for record in records} == {("acme", key.key.prefix)}
    assert [record["status"] for record in records] == [200, 404]
    client.get("/v1/models")
    lines = client.get("/metrics", headers=bearer(admin)).text.splitlines()
    assert 'lorimer_tenant_requests_total{outcome="ok",tenant="acme"} 1.0' in lines
    assert 'lorimer_tenant_requests_total{outcome="refused",tenant="acme"} 1.0' in lines
    assert "lorimer_unauthenticated_requests_total 1.0" in lines


def test_limited_requests_are_counted_by_tenant(client: TestClient, make_key: MakeKey) -> None:
    key, admin = make_key(quota=Quota(requests_per_minute=1)), make_key(tenant="ops", is_admin=True)
    for _ in range(3):
        ask(client, key)
    lines = client.get("/metrics", headers=bearer(admin)).text.splitlines()
    assert 'lorimer_limited_requests_total{limit="requests",tenant="acme"} 2.0' in lines


def test_without_keys_nothing_is_said_of_tenants(client: TestClient) -> None:
    client.post(CHAT, json={"model": "base", "messages": MESSAGES, "max_tokens": 2})
    (file,) = requests_file("2026-01-01").parent.iterdir()
    assert [(record["tenant"], record["key_prefix"]) for record in read_jsonl(file)] == [("", "")]
    assert "tenant=" not in client.get("/metrics").text


def test_secrets_are_in_no_log_file_or_reply(client: TestClient, make_key: MakeKey, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key, revoked = make_key("helpdesk", quota=Quota(requests_per_minute=5)), make_key()
    Keys(client.app.state.keys.engine).revoke(revoked.key.prefix)
    said = ""
    for each in (key, revoked, key.text[:-1], f"{key.text}0"):
        for _ in range(3):
            reply = client.post(CHAT, json={"model": "helpdesk", "messages": MESSAGES, "max_tokens": 2, "top_kk": 1}, headers=bearer(each))
            said += reply.text + str(reply.headers)
    said += ask(client, key).text + str(ask(client, key, "nobody").text) + caplog.text
    kept = b"".join(file.read_bytes() for file in home.rglob("*") if file.is_file())
    for secret in (key.text.rpartition("_")[2], revoked.text.rpartition("_")[2]):
        assert secret[:16] not in said
        assert secret[:16].encode() not in kept


def test_last_use_is_noted_without_holding_up_the_request(client: TestClient, make_key: MakeKey, app: FastAPI, wait_until: Any) -> None:
    key = make_key()
    assert client.get("/v1/models", headers=bearer(key)).status_code == 200
    assert wait_until(lambda: app.state.keys.find(key.key.prefix).last_used_at is not None)


def test_the_engine_is_told_whose_turn_it_is(client: TestClient, make_key: MakeKey, worker: EngineWorker, monkeypatch: Any) -> None:
    tenants, add = [], worker.engine.add
    monkeypatch.setattr(worker.engine, "add", lambda sequence: (tenants.append(sequence.tenant), add(sequence)))
    ask(client, make_key())
    assert tenants == ["acme"]


def test_access_stands_before_everything(app: FastAPI) -> None:
    assert app.user_middleware[0].cls is Access


def test_a_key_for_a_composition_needs_none_for_its_parts(client: TestClient, make_key: MakeKey, registry: Registry) -> None:
    compose(registry, "desk", ["helpdesk*0.7", "billing"])
    key = make_key("desk")
    assert ask(client, key, "desk").json()["model"] == "desk@v1"
    assert ask(client, key, "helpdesk").status_code == 404
    assert [card["id"] for card in client.get("/v1/models", headers=bearer(key)).json()["data"]] == ["desk", "desk@v1"]
    assert ask(client, make_key("helpdesk, billing", tenant="other"), "desk").status_code == 404
