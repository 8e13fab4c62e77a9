"""From a request to its answer: served text is the engine's text, whole or streamed, cut where the client says."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from lorimer.inference.engine import Engine, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.base import Base
from lorimer.registry.records import AdapterVersion
from lorimer.serving.records import requests_file
from lorimer.serving.worker import EngineWorker
from lorimer.storage import read_jsonl

TextOf = Callable[..., str]
ASK: dict[str, Any] = {
    "model": "helpdesk",
    "messages": [{"role": "user", "content": "My invoice is wrong"}],
    "max_tokens": 24,
    "temperature": 0,
}


def ask(client: TestClient, **fields: Any) -> dict[str, Any]:
    """A whole chat reply."""
    reply = client.post("/v1/chat/completions", json={**ASK, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def text_in(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["message"]["content"])


def stream(client: TestClient, path: str = "/v1/chat/completions", **fields: Any) -> list[dict[str, Any]]:
    """The events of a streamed reply, without the last."""
    reply = client.post(path, json={**ASK, "stream": True, **fields})
    assert reply.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = reply.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def joined(events: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])


@pytest.mark.parametrize("model", ["helpdesk", "billing", "base"])
def test_served_text_is_the_engines_text(
    client: TestClient, text_of: TextOf, model: str, helpdesk: AdapterVersion, billing: AdapterVersion
) -> None:
    version = {"helpdesk": helpdesk, "billing": billing}.get(model)
    for question in ("My invoice is wrong", "Où est ma commande ?", "x"):
        messages = [{"role": "user", "content": question}]
        wanted = text_of(question, version, max_tokens=24)
        assert text_in(ask(client, model=model, messages=messages)) == wanted
        assert joined(stream(client, model=model, messages=messages)) == wanted


def test_adapters_differ(client: TestClient) -> None:
    assert len({text_in(ask(client, model=model)) for model in ("helpdesk", "billing", "base")}) == 3


def test_whole_reply_names_the_version(client: TestClient, helpdesk: AdapterVersion, base: Base) -> None:
    reply = client.post("/v1/chat/completions", json=ASK)
    body = reply.json()
    assert (body["object"], body["model"], body["id"][:9]) == ("chat.completion", "helpdesk@v1", "chatcmpl-")
    assert body["system_fingerprint"] == f"fp_{base.digest[:12]}"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 24
    assert (reply.headers["x-adapter"], reply.headers["x-adapter-digest"]) == ("helpdesk@v1", helpdesk.digest)


def test_stream_has_openais_events(client: TestClient) -> None:
    first, *middle, last = stream(client)
    assert {event["object"] for event in (first, *middle, last)} == {"chat.completion.chunk"}
    assert len({event["id"] for event in (first, *middle, last)}) == 1
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(event["choices"][0]["finish_reason"] is None and "usage" not in event for event in (first, *middle))
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]


def test_stream_ends_with_usage_if_asked(client: TestClient) -> None:
    *events, last = stream(client, stream_options={"include_usage": True})
    assert all(event["usage"] is None for event in events)
    assert last["choices"] == []
    assert last["usage"] == ask(client)["usage"]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_stop_string_ends_the_answer_before_it(client: TestClient, text_of: TextOf, helpdesk: AdapterVersion, is_streamed: bool) -> None:
    whole = text_of("My invoice is wrong", helpdesk, max_tokens=24)
    start = next(i for i, character in enumerate(whole) if i and character != "\N{REPLACEMENT CHARACTER}")
    stop = whole[start : start + 2].rstrip("\N{REPLACEMENT CHARACTER}")
    if is_streamed:
        events = stream(client, stop=[stop, "never said"])
        text, reason = joined(events), events[-1]["choices"][0]["finish_reason"]
    else:
        reply = ask(client, stop=[stop, "never said"])
        text, reason = text_in(reply), reply["choices"][0]["finish_reason"]
        assert reply["usage"]["completion_tokens"] < 24
    assert (text, reason) == (whole[: whole.index(stop)], "stop")


def test_the_bases_own_end_is_a_stop(client: TestClient) -> None:
    reply = ask(client, model="base", messages=[{"role": "user", "content": "hi"}], max_tokens=60)
    assert reply["choices"][0]["finish_reason"] == "stop"
    longer = ask(client, model="base", messages=[{"role": "user", "content": "hi"}], max_tokens=60, ignore_eos=True)
    assert (longer["choices"][0]["finish_reason"], longer["usage"]["completion_tokens"]) == ("length", 60)


def test_a_seed_repeats_an_answer(client: TestClient) -> None:
    texts = [text_in(ask(client, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_without_a_limit_a_chat_answer_takes_the_room_there_is(client: TestClient, worker: EngineWorker) -> None:
    fields = {**ASK, "ignore_eos": True}
    del fields["max_tokens"]
    usage = client.post("/v1/chat/completions", json=fields).json()["usage"]
    assert usage["total_tokens"] == worker.engine.max_len


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 600}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 510}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2**62}),
        ("/v1/completions", {"prompt": ["x", "x" * 600]}),
    ],
)
def test_too_long_is_refused(client: TestClient, path: str, body: dict[str, Any]) -> None:
    reply = client.post(path, json={"model": "helpdesk", **body})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "takes 512 together" in error["message"]


def complete(client: TestClient, **fields: Any) -> dict[str, Any]:
    reply = client.post("/v1/completions", json={"model": "billing", "temperature": 0, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_completions_take_every_kind_of_prompt(client: TestClient, base: Base) -> None:
    ids = list(base.renderer.tokenise_prompt("Dear"))
    for prompt in ("Dear", ["Dear"], ids, [ids]):
        reply = complete(client, prompt=prompt)
        assert reply["choices"] == complete(client, prompt="Dear")["choices"]
        assert (reply["object"], reply["id"][:5]) == ("text_completion", "cmpl-")
        assert reply["usage"]["completion_tokens"] == 16  # OpenAI's default


def test_several_prompts_are_answered_in_order(client: TestClient) -> None:
    prompts = ["Dear", "Yours", "Hello there"]
    reply = complete(client, prompt=prompts)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert [choice["text"] for choice in reply["choices"]] == [complete(client, prompt=p)["choices"][0]["text"] for p in prompts]


def test_streamed_completions_join_to_the_whole(client: TestClient) -> None:
    prompts = ["Dear", "Yours"]
    whole = complete(client, prompt=prompts)
    reply = client.post("/v1/completions", json={"model": "billing", "temperature": 0, "prompt": prompts, "stream": True})
    texts, reasons = ["", ""], {}
    for line in reply.text.split("\n\n")[:-2]:
        (choice,) = json.loads(line.removeprefix("data: "))["choices"]
        texts[choice["index"]] += choice["text"]
        reasons[choice["index"]] = choice["finish_reason"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert reasons == {0: "length", 1: "length"}


@pytest.mark.parametrize("prompt", [[264], [1, 2**62], [[]], [[1], []]])
def test_token_ids_the_base_does_not_have_are_refused(client: TestClient, prompt: list[Any]) -> None:
    reply = client.post("/v1/completions", json={"model": "base", "prompt": prompt})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")


def test_completion_text_is_the_engines_text(client: TestClient, base: Base) -> None:
    engine = Engine(base)
    sequence = Sequence(prompt_ids=base.renderer.tokenise_prompt("Dear"), params=SamplingParams(max_tokens=16))
    list(generate(engine, [sequence]))
    assert complete(client, model="base", prompt="Dear")["choices"][0]["text"] == base.renderer.decode(sequence.output_ids)


def test_a_record_is_kept_of_every_request(client: TestClient, helpdesk: AdapterVersion, base: Base) -> None:
    reply = ask(client, user="team-7")
    client.post("/v1/chat/completions", json={**ASK, "model": "helpdsk"})
    client.post("/v1/chat/completions", json={**ASK, "max_tokens": 10_000})
    answered, unknown, too_long = records()
    assert answered["id"] == reply["id"]
    assert (answered["model"], answered["adapter"], answered["user"]) == ("helpdesk", "helpdesk@v1", "team-7")
    assert (answered["adapter_digest"], answered["base_digest"]) == (helpdesk.digest, base.digest)
    assert (answered["num_generated_tokens"], answered["finish_reasons"], answered["status"]) == (24, ["length"], 200)
    assert 0 < answered["ttft_seconds"] <= answered["latency_seconds"]
    assert (unknown["status"], unknown["adapter"], unknown["num_generated_tokens"]) == (404, None, 0)
    assert (too_long["status"], too_long["adapter"]) == (400, "helpdesk@v1")
    assert not [record for record in records() if "invoice" in json.dumps(record) or text_in(reply) in json.dumps(record)]


def records() -> list[dict[str, Any]]:
    (file,) = requests_file("2026-01-01").parent.iterdir()
    return list(read_jsonl(file))


def test_a_full_disk_does_not_fail_a_request(client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("LORIMER_HOME", "/proc/nowhere")
    assert text_in(ask(client, model="base"))
    assert "is not in the log" in caplog.text


def test_damaged_adapter_is_a_503_without_paths(client: TestClient, helpdesk: AdapterVersion, caplog: pytest.LogCaptureFixture) -> None:
    (helpdesk.path / "adapter_model.safetensors").write_bytes(b"damaged")
    for is_streamed in (False, True):
        reply = client.post("/v1/chat/completions", json={**ASK, "stream": is_streamed})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "adapter_unavailable")
        assert str(helpdesk.path) not in reply.text
    assert str(helpdesk.path) in caplog.text
    assert text_in(ask(client, model="billing"))


@pytest.mark.parametrize("is_streamed", [False, True])
def test_failed_step_is_a_500(client: TestClient, worker: EngineWorker, monkeypatch: pytest.MonkeyPatch, is_streamed: bool) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(worker.engine, "_take", lambda sequence, token: 1 / 0)
        reply = client.post("/v1/chat/completions", json={**ASK, "stream": is_streamed})
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "engine_failed")
    assert reply.json()["error"]["type"] == "server_error"
    assert text_in(ask(client))


def test_step_that_fails_in_the_middle_of_a_stream_is_its_last_event(
    client: TestClient, worker: EngineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, num_taken = worker.engine._take, 0

    def take_three(sequence: Sequence, token: int) -> None:
        nonlocal num_taken
        num_taken += 1
        if num_taken > 3:
            raise RuntimeError
        take(sequence, token)

    monkeypatch.setattr(worker.engine, "_take", take_three)
    *_, last = stream(client)
    assert last["error"]["code"] == "engine_failed"
    assert [record["status"] for record in records()] == [500]
