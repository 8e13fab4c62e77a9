"""Attacks over the whole stack: names, files, bodies and keys that are not what they say. Afterwards everybody is answered as before."""

import gzip
import hashlib
import hmac
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from lorimer.errors import AccessError
from lorimer.model.adapter import load_adapter
from lorimer.model.base import Base
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry
from lorimer.serving.grants import Grant
from lorimer.serving.keys import NO_DIGEST, Keys

CHAT, LOAD, UNLOAD = "/v1/chat/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
QUESTION = "My invoice is wrong"
MESSAGES = [{"role": "user", "content": QUESTION}]
JSON = {"content-type": "application/json"}
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

TextOf = Callable[..., str]
Spoil = Callable[[Path], Any]


def ask(client: TestClient, model: str = "helpdesk", *, path: str = CHAT, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    body = {"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 12, **fields}
    return client.post(path, json=body, headers=headers)


@pytest.fixture
def attacked(client: TestClient, text_of: TextOf, helpdesk: AdapterVersion) -> Iterator[TestClient]:
    """A server that, whatever was tried on it, answers as the engine alone does."""
    yield client
    assert ask(client).json()["choices"][0]["message"]["content"] == text_of(QUESTION, helpdesk)
    assert client.get("/healthz").json() | {"adapters_resident": 0} == {
        "status": "ok", "base": "tiny-gemma3", "adapters_resident": 0, "running": 0, "waiting": 0,
    }  # fmt: skip


NAMES = [
    "../../etc/passwd", "/etc/passwd", "..\\..\\windows", "helpdesk/../../secret", "helpdesk\0", "\0", "helpdesk\0.bin",
    "helpdesk\n", "..%2f..%2fetc%2fpasswd", "%2e%2e/", "һelpdesk", "ｈelpdesk", "help\u200bdesk", "\u202ehelpdesk", "HELPDESK",
    "helpdesk ", "helpdesk@../v1", "helpdesk@v1/..", "helpdesk@v01", "helpdesk@v1@v1", "helpdesk@", "@v1",
    "helpdesk@v" + "9" * 70, "a" * 1000, "helpdesk" * 100, "file:///etc/passwd", "https://example.com/adapter",
    "hf://user/adapter", "'; DROP TABLE adapter_versions;--", "{{7*7}}", "${HOME}", "helpdesk*nan", "helpdesk*inf",
    "helpdesk*1e9", "helpdesk*", "*", "+", "helpdesk+", "~", ".", "..", "adapters/" + "0" * 16,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_adapters_are_404s_wherever_they_stand(attacked: TestClient, name: str) -> None:
    replies = [
        ask(attacked, name),
        ask(attacked, "base", adapter_id=name),
        attacked.post("/v1/completions", json={"model": name, "prompt": "Dear"}),
        attacked.post("/generate", json={"inputs": "Dear", "parameters": {"adapter_id": name}}),
        attacked.post(LOAD, json={"lora_name": name}),
        attacked.post(UNLOAD, json={"lora_name": name}),
    ]
    if len(name) <= 200:
        replies.append(ask(attacked, "base", adapters=[{"id": name}]))
    for reply in replies:
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
        assert len(reply.text) < 500  # it is shown, but not all of it


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%2e%2e%2fconfig", "/v1/models/%00", "/v1/models/helpdesk%00", "/v1/models/%ff%fe",
        "/v1/models/..;/metrics", "/v1/models/%0d%0ax-evil:%201", "/v1/models/" + "a" * 5000, "/v1/models/", "/v1/models//",
        "/v1/models/%d2%bbelpdesk", "/%2e%2e/%2e%2e/etc/passwd", "/v1/chat/completions/", "/v1/load_lora_adapter/", "/V1/models", "/docs",
    ],
)  # fmt: skip
def test_paths_lead_nowhere_else_and_nobody_is_sent_elsewhere(attacked: TestClient, path: str) -> None:
    for method in ("GET", "POST"):
        reply = attacked.request(method, path, headers={"host": "evil.example"}, follow_redirects=False)
        assert reply.status_code in (404, 405)
        assert reply.json()["error"]["type"] == "invalid_request_error"
        assert not {"location", "x-evil"} & set(reply.headers)
        assert "evil" not in reply.text.replace(path, "").replace("x-evil", "")


def nested(depth: int, opening: str = '{"a":', end: str = "1", closing: str = "}") -> str:
    return opening * depth + end + closing * depth


def chat_text(**fields: Any) -> str:
    """A chat request in which `@@` may be replaced by what no JSON writer writes."""
    return json.dumps({"model": "helpdesk", "messages": MESSAGES, "max_tokens": 2, **fields})


def calling(arguments: str) -> str:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return chat_text(messages=[{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "a", "content": "x"}])


def with_schema(schema: str) -> str:
    return chat_text(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": "@@"}}).replace('"@@"', schema)


def with_parameters(parameters: str) -> str:
    return chat_text(tools=[{"type": "function", "function": {"name": "f", "parameters": "@@"}}]).replace('"@@"', parameters)


BODIES: dict[str, str | bytes] = {
    **{f"lists {n} deep": "[" * n + "]" * n for n in (100, 950, 1000, 100_000)},
    **{f"a schema {n} deep": with_schema(nested(n)) for n in (65, 200, 900, 950, 1000, 100_000)},
    **{f"parameters {n} deep": with_parameters(nested(n)) for n in (65, 200, 900, *range(930, 970), 100_000)},
    **{f"metadata {n} deep": chat_text(metadata="@@").replace('"@@"', nested(n)) for n in (100, 950, 100_000)},
    **{f"arguments {n} deep": calling(nested(n)) for n in (65, 500, *range(950, 1000, 5), 100_000)},
    "half a surrogate in a text": calling('{"a": "\\ud800"}'),
    "half a surrogate in a key": calling('{"\\udfff": 1}'),
    "half a surrogate in a message": '{"model": "helpdesk", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "no number in arguments": calling('{"a": NaN}'),
    "no number in a schema": with_schema('{"type": "number", "minimum": NaN}'),
    "an endless number": chat_text(temperature="@@").replace('"@@"', "1e999"),
    "no number": chat_text(temperature="@@").replace('"@@"', "NaN"),
    "five thousand digits": chat_text(seed="@@").replace('"@@"', "9" * 5000),
    "five thousand digits in arguments": calling('{"a": ' + "9" * 5000 + "}"),
    "a hundred thousand fields": chat_text(**{f"field{i}": i for i in range(100_000)}),
    "a null byte for JSON": b"\0",
    "bytes that are no text": b'{"model": "\xff"}',
    "a schema elsewhere": with_schema('{"$ref": "http://127.0.0.1:1/schema"}'),
    "a schema in a file": with_schema('{"$ref": "file:///etc/passwd"}'),
    "a schema of itself": with_schema('{"$ref": "#"}'),
    "schemas of each other": with_schema('{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}'),
    "a hundred thousand choices": with_schema(json.dumps({"enum": [str(i) for i in range(100_000)]})),
    "combinations of combinations": with_schema(
        json.dumps({"allOf": [{"anyOf": [{"properties": {f"a{i}_{j}": {}}} for j in range(10)]} for i in range(12)]})
    ),
    "a pattern that looks ahead": with_schema('{"type": "string", "pattern": "^(?=a)"}'),
    "a prompt of two million letters": chat_text(messages=[{"role": "user", "content": "a" * 1_900_000}]),
    "special tokens without end": chat_text(messages=[{"role": "user", "content": "<bos>" * 100_000}]),
    "a conversation without end": chat_text(messages=[{"role": "user", "content": "hi"}] * 257),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_mean_harm_are_400s_in_openais_shape(attacked: TestClient, name: str) -> None:
    for path in (CHAT, LOAD) if name.startswith("lists") else (CHAT,):
        reply = attacked.post(path, content=BODIES[name], headers=JSON)
        assert reply.status_code == 400
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        assert len(reply.text) < 3000


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 10**9}, {"type": "array", "minItems": 10**9},
        {"type": "string", "pattern": "((a{1000}){1000}){1000}"},
        {"type": "string", "pattern": "(a|a)*b(.*.*.*.*)*"}, {"type": "object", "minProperties": 10**9},
        {"type": "object", "x-guidance": {"whitespace_pattern": "(a+)+"}}, {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
        {"anyOf": [{"type": "object", "properties": {f"a{i}": {"type": "string"}}, "additionalProperties": False} for i in range(2000)]},
    ],
)  # fmt: skip
def test_schemas_that_ask_too_much_cost_their_own_request_alone(attacked: TestClient, schema: dict[str, Any]) -> None:
    reply = attacked.post(CHAT, content=with_schema(json.dumps(schema)), headers=JSON)
    assert reply.status_code in (200, 400)  # the answer ends at its limit, or the schema is refused


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "GZIP"])
def test_compressed_bodies_are_never_unpacked(attacked: TestClient, encoding: str) -> None:
    bomb = gzip.compress(bytes(50_000_000)) if "gzip" in encoding.lower() else zlib.compress(bytes(50_000_000))
    for path in (CHAT, LOAD, "/healthz"):
        reply = attacked.post(path, content=bomb, headers={**JSON, "content-encoding": encoding})
        assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_encoding")


def test_a_body_is_cut_off_where_it_grows_too_large(attacked: TestClient) -> None:
    num_sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal num_sent
        for _ in range(100):
            num_sent += 1
            yield bytes(1 << 20)

    reply = attacked.post(CHAT, content=endless(), headers=JSON)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")


def change_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return spoil


def change_config(**keys: Any) -> Spoil:
    return lambda folder: (folder / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), **keys}))


def write(name: str, data: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(data)


def fill(value: float) -> Spoil:
    return change_weights(lambda tensors: [tensor.fill_(value) for tensor in tensors.values()])


STRANGE = "base_model.model.model.layers.99.mlp.up_proj.lora_A.weight"
PICKLE = b"\x80\x04cos\nsystem\n(S'touch ran'\ntR."
BAD_FILES: dict[str, Spoil] = {
    "a pickle for weights": write(WEIGHTS, PICKLE),
    "a zip for weights": write(WEIGHTS, b"PK\x03\x04" + bytes(100)),
    "a header of 2**40 bytes": write(WEIGHTS, (2**40).to_bytes(8, "little") + b"{}"),
    "a header of nested lists": write(WEIGHTS, (10**6).to_bytes(8, "little") + b"[" * 10**6),
    "layers the base has not": change_weights(lambda tensors: tensors.update({STRANGE: torch.ones(4, 48)})),
    "a rank of a million, said": change_config(r=1_000_000, rank_pattern={"q_proj": 10**6}),
    "a rank that is not the one said": change_config(r=2),
    "a pattern that takes for ever": change_config(alpha_pattern={"(.*a){25}": 1, "((((.|.)*)*)*)*x": 2}),
    "an alpha that is no number": change_config(lora_alpha=float("nan")),
    "an alpha that is a list": change_config(lora_alpha=[1]),
    "weights that are no numbers": fill(float("nan")),
    "weights without end": fill(float("inf")),
    "weights that explode": fill(3e38),
    "a configuration nested for ever": write(CONFIG, b"[" * 100_000),
    "a lock that is none": write("adapter.lock.json", b"[1, 2]"),
    "a lock nested for ever": write("adapter.lock.json", b"[" * 100_000),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_FILES)
def test_adapters_that_mean_harm_may_be_registered_and_are_never_served(
    attacked: TestClient, registry: Registry, helpdesk: AdapterVersion, bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "evil"
    shutil.copytree(helpdesk.path, source)
    change_config(lora_alpha=9)(source)  # a lock is no part of the digest: without it the files kept already would be taken
    BAD_FILES[bad](source)
    monkeypatch.chdir(tmp_path)
    version = registry.register(copy_of(helpdesk, "evil", source))
    for reply in (ask(attacked, "evil"), attacked.post(LOAD, json={"lora_name": "evil"}), ask(attacked, "helpdesk+evil")):
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "adapter_unavailable")
        assert str(version.path) not in reply.text
    assert not list(tmp_path.rglob("ran"))


def copy_of(version: AdapterVersion, name: str, source: Path) -> NewVersion:
    kept = ("base_name", "base_digest", "dataset_name", "dataset_digest", "run_id", "rank", "alpha", "num_parameters", "template_digest")
    return NewVersion(name=name, source=source, **{key: getattr(version, key) for key in kept})


def link_file(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).rename(folder.parent / "moved")
        (folder / name).symlink_to(folder.parent / "moved")

    return spoil


def link_folder(folder: Path) -> None:
    folder.rename(folder.parent / "moved")
    folder.symlink_to(folder.parent / "moved")


@pytest.mark.parametrize(
    "change",
    [
        link_folder, link_file(WEIGHTS), link_file(CONFIG), fill(0.0), change_config(lora_alpha=1.0), write(WEIGHTS, PICKLE),
        lambda folder: (folder / WEIGHTS).unlink(), lambda folder: shutil.rmtree(folder),
    ],
)  # fmt: skip
def test_files_changed_after_registration_are_not_served(client: TestClient, billing: AdapterVersion, change: Spoil) -> None:
    change(billing.path)
    for reply in (ask(client, "billing"), client.post(LOAD, json={"lora_name": "billing"})):
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] in ("adapter_quarantined", "adapter_unavailable")
        assert str(billing.path.parent) not in reply.text
    assert ask(client).status_code == 200


def test_files_changed_while_they_are_read_are_not_served(
    attacked: TestClient, billing: AdapterVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_late(folder: Path, base: Base) -> Any:
        fill(0.0)(folder)  # after the digest was taken
        return load_adapter(folder, base)

    with monkeypatch.context() as patch:
        patch.setattr("lorimer.serving.loading.load_adapter", load_late)
        assert ask(attacked, "billing").status_code == 503


def test_an_adapter_for_another_base_is_refused_before_its_files_are_touched(
    attacked: TestClient, register: Callable[..., AdapterVersion]
) -> None:
    other = register("elsewhere", 5, base_digest="e" * 64)
    shutil.rmtree(other.path)
    for reply in (ask(attacked, "elsewhere"), attacked.post(LOAD, json={"lora_name": "elsewhere"})):
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "wrong_base")


@pytest.mark.parametrize("model", ["billing", "billing@v1", "billing@sha256:{}", "helpdesk+billing", "billing*0.5", "base", "auto"])
def test_a_key_of_another_tenant_learns_nothing(client: TestClient, registry: Registry, billing: AdapterVersion, model: str) -> None:
    key = Keys(registry.engine).create("acme", tenant="acme", grant=Grant(adapters=("helpdesk",), may_use_base=False)).text
    headers = {"authorization": f"Bearer {key}"}
    named = model.format(billing.digest)
    reply, nobody = ask(client, named, headers=headers), ask(client, named.replace("billing", "xyzzyab"), headers=headers)
    if model == "auto":
        assert reply.json().get("model", "helpdesk@v1") == "helpdesk@v1" or reply.json()["error"]["code"] == "no_route"
        return
    assert (reply.status_code, nobody.status_code) == (404, 404)
    assert reply.text.replace("billing", "xyzzyab") == nobody.text
    card, no_card = (client.get(f"/v1/models/{name}", headers=headers) for name in (named, named.replace("billing", "xyzzyab")))
    assert (card.status_code, card.text.replace("billing", "xyzzyab")) == (404, no_card.text)
    assert "billing" not in client.get("/v1/models", headers=headers).text


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", LOAD, {"lora_name": "helpdesk"}), ("POST", UNLOAD, {"lora_name": "helpdesk"}), ("GET", "/metrics", None)],
)  # fmt: skip
def test_a_chat_key_administers_nothing_however_it_spells_the_path(
    client: TestClient, registry: Registry, method: str, path: str, body: Any
) -> None:
    key = Keys(registry.engine).create("acme", tenant="acme", grant=Grant()).text
    for spelled in (path, path.replace("_", "%5f"), path.replace("/", "/./"), f"{path}?admin=true", path.replace("m", "%6d")):
        reply = client.request(method, spelled, json=body, headers={"authorization": f"Bearer {key}", "x-original-url": "/healthz"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "admin_key_required")


def test_keys_are_compared_by_their_hashes_in_constant_time(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks are no test: what is tested is that nothing else is done. What a clock could tell apart is SHA-256 of a guess from SHA-256 of
    the key, which says nothing of the key; and even these are compared without stopping where they differ, as is what is not there."""
    keys, compared = Keys(registry.engine), list[tuple[str, str]]()
    key = keys.create("acme", tenant="acme", grant=Grant()).text
    compare = hmac.compare_digest

    def watch(a: str, b: str) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr("lorimer.serving.keys.hmac.compare_digest", watch)
    wrong_secret, wrong_prefix = key[:-1] + ("0" if key[-1] != "0" else "1"), key.replace(key[8:20], "0" * 12)
    said = set()
    for guess in (wrong_secret, wrong_prefix):
        with pytest.raises(AccessError) as caught:
            keys.authenticate(guess)
        said.add(str(caught.value))
    keys.authenticate(key)
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in (wrong_secret, wrong_prefix, key)]
    assert compared == [(digests[0], digests[2]), (digests[1], NO_DIGEST), (digests[2], digests[2])]
    assert len(said) == 1


def test_penalties_as_good_as_zero_fail_nobody(attacked: TestClient) -> None:
    assert ask(attacked, temperature=1, repetition_penalty=1e-300, top_p=0, min_p=1, presence_penalty=2).status_code == 200
