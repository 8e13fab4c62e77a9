"""What runs inside vLLM: adapters by digest alone, verified and copied; no route open but the gateway's."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorimer.errors import IntegrityError, StorageError
from lorimer.registry import registry
from lorimer.serving.vllm import plugin as vllm_plugin
from lorimer.serving.vllm.manifest import Listed, Manifest, read_manifest
from lorimer.serving.vllm.plugin import FILES, Gate, Library
from lorimer.storage import digest_of, digest_of_file

OTHER = "e" * 64


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("not part of the digest")
    return folder


@pytest.fixture
def base_files(base: Path) -> dict[str, str]:
    return {name: digest_of_file(base / name) for name in ("config.json", "model.safetensors")}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapters" / "a"
    folder.mkdir(parents=True)
    for file in FILES:
        (folder / file).write_text(f"of {file}")
    (folder / "other.py").write_text("not copied")
    return folder


def digest(folder: Path) -> str:
    return registry.digest_of_folder(folder)


@pytest.fixture
def library(tmp_path: Path, adapter: Path, base_files: dict[str, str]) -> Library:
    path = tmp_path / "list.json"
    adapters = {digest(adapter): Listed(folder=adapter, bases=(digest_of(base_files),)), OTHER: Listed(folder=adapter, bases=("b" * 64,))}
    Manifest(base_files=base_files, adapters=adapters).write(path)
    return Library(path)


def test_files_are_the_registrys() -> None:
    assert FILES == registry.FILES


def test_a_digest_gives_a_verified_copy_for_us_alone(library: Library, adapter: Path, base: Path) -> None:
    copy = library.find(digest(adapter), str(base))
    assert copy is not None
    assert sorted(path.name for path in copy.iterdir()) == sorted(FILES)
    assert digest(copy) == digest(adapter)
    assert copy.parent.stat().st_mode & 0o777 == 0o700
    wanted = digest(copy)
    (adapter / FILES[0]).write_text("changed")
    assert digest(copy) == wanted


@pytest.mark.parametrize(
    "name", ["", "a", "helpdesk@v1", "/etc", "../a", "../../adapters/a", "F" * 64, "f" * 64, "f" * 63 + "\n", "f" * 65]
)
def test_nothing_else_is_found(library: Library, base: Path, name: str) -> None:
    assert library.find(name, str(base)) is None


def test_paths_are_not_even_looked_at(tmp_path: Path, adapter: Path, base: Path) -> None:
    assert Library(tmp_path / "no-such-list").find(str(adapter), str(base)) is None


def test_another_bases_adapter_is_refused(library: Library, base: Path) -> None:
    with pytest.raises(IntegrityError, match="made for base bbbbbbbbbbbb"):
        library.find(OTHER, str(base))


def test_another_base_is_refused(library: Library, adapter: Path, base: Path) -> None:
    (base / "model.safetensors").write_bytes(b"others")
    with pytest.raises(IntegrityError, match=r"vLLM serves base .* the gateway's is"):
        library.find(digest(adapter), str(base))
    with pytest.raises(IntegrityError, match="is no folder"):
        Library(library.manifest).find(digest(adapter), "google/gemma")


@pytest.mark.parametrize("file", FILES)
def test_changed_and_missing_files_are_refused(library: Library, adapter: Path, base: Path, file: str) -> None:
    wanted = digest(adapter)
    (adapter / file).write_text("changed")
    with pytest.raises(IntegrityError, match=f"registered was {wanted[:12]}"):
        library.find(wanted, str(base))
    (adapter / file).unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        library.find(wanted, str(base))


def test_a_list_that_others_may_write_is_refused(library: Library, adapter: Path, base: Path) -> None:
    assert library.manifest.stat().st_mode & 0o777 == 0o600
    library.manifest.chmod(0o666)
    with pytest.raises(StorageError, match="can be written by others"):
        library.find(digest(adapter), str(base))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "base_files": {}, "adapters": {"a": {}}}', "\xff"])
def test_a_damaged_list_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text, encoding="latin-1")
    path.chmod(0o600)
    with pytest.raises(IntegrityError, match="is no list of adapters"):
        read_manifest(path)


class Inner:
    """vLLM's app."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope["type"])
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"vLLM"})


@pytest.fixture
def inner() -> Inner:
    return Inner()


@pytest.fixture
def gate(inner: Inner, library: Library, monkeypatch: pytest.MonkeyPatch) -> Gate:
    monkeypatch.setenv("VLLM_API_KEY", "key")
    monkeypatch.setattr(vllm_plugin, "_library", library)
    return Gate(inner)


def ask(gate: Gate, method: str, path: str, base: Path, key: str | None = "key", kind: str = "http") -> tuple[int, Any]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {}

    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=64, dtype="torch.bfloat16"),
        scheduler_config=SimpleNamespace(max_num_seqs=8),
        lora_config=SimpleNamespace(max_lora_rank=32),
    )
    app = SimpleNamespace(state=SimpleNamespace(args=SimpleNamespace(model=str(base)), vllm_config=config))
    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    asyncio.run(gate({"type": kind, "method": method, "path": path, "headers": headers, "app": app}, receive, send))
    return (sent[0].get("status", 0), b"".join(message.get("body", b"") for message in sent)) if sent else (0, b"")


OPEN = [("POST", "/v1/completions"), ("GET", "/metrics"), ("GET", "/health")]
CLOSED = [
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/v1/../v1/load_lora_adapter"),
    ("POST", "/adapters"),
    ("DELETE", "/adapters/x"),
    ("POST", "/invocations"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions/"),
    ("GET", "/v1/completions"),
    ("OPTIONS", "/v1/completions"),
    ("GET", "/v1/models"),
    ("POST", "/tokenize"),
    ("GET", "/docs"),
    ("GET", "/metrics/x"),
]


@pytest.mark.parametrize(("method", "path"), OPEN)
def test_open_routes_want_the_key(gate: Gate, inner: Inner, base: Path, method: str, path: str) -> None:
    assert ask(gate, method, path, base) == (200, b"vLLM")
    for key in (None, "", "other", "Bearer key", "key "):
        assert ask(gate, method, path, base, key)[0] == (200 if path == "/health" else 401)


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_other_routes_are_not_there_with_or_without_the_key(gate: Gate, inner: Inner, base: Path, method: str, path: str) -> None:
    assert [ask(gate, method, path, base, key)[0] for key in ("key", None)] == [404, 404]
    assert inner.seen == []


def test_websockets_are_closed_and_lifespans_pass(gate: Gate, inner: Inner, base: Path) -> None:
    ask(gate, "GET", "/v1/realtime", base, kind="websocket")
    assert inner.seen == []
    ask(gate, "GET", "", base, kind="lifespan")
    assert inner.seen == ["lifespan"]


def test_status_says_what_is_served(gate: Gate, base: Path, base_files: dict[str, str]) -> None:
    status, body = ask(gate, "GET", "/v1/lorimer", base)
    told = json.loads(body)
    assert (status, told.pop("instance")) == (200, vllm_plugin.INSTANCE)
    assert told == {"base_digest": digest_of(base_files), "max_len": 64, "max_sequences": 8, "max_rank": 32, "dtype": "bfloat16"}
    assert ask(gate, "GET", "/v1/lorimer", base, None)[0] == 401


def test_without_a_key_vllm_does_not_start(inner: Inner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(RuntimeError, match="VLLM_API_KEY is not set"):
        Gate(inner)


def test_it_needs_the_standard_library_alone(tmp_path: Path) -> None:
    """vLLM's environment has none of our dependencies."""
    package = Path(str(vllm_plugin.__file__)).parents[2]
    (tmp_path / "lorimer").symlink_to(package)
    program = (
        "import lorimer.serving.vllm.plugin, sys; print([m for m in sys.modules if m.split('.')[0] in ('torch', 'pydantic', 'sqlalchemy')])"
    )
    found = subprocess.run(
        [sys.executable, "-S", "-c", program], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_it_ends_with_who_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import time; from lorimer.serving.vllm.plugin import stop_with_parent; stop_with_parent(); time.sleep(60)"
    for parent, ended in ((os.getpid(), None), (1, -15)):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LORIMER_VLLM_PARENT": str(parent)}
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL)
        try:
            if ended is None:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(3)
            else:
                assert process.wait(60) == ended
        finally:
            process.kill()
            process.wait()
