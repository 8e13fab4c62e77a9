"""Our part inside vLLM: it serves registered adapters by their digest, takes no path from anybody, and opens what the gateway asks alone.

vLLM asks a resolver for adapters it does not know only where its own route that loads any path is open too: one variable does both
(VLLM_ALLOW_RUNTIME_LORA_UPDATING; vllm 0.32, entrypoints/serve/engine/serving.py). So there are two halves, and neither is safe without
the other: the resolver, loaded as a plugin, and the gate before all routes, loaded as a middleware.

This runs in vLLM's environment: of ours it imports only what needs the standard library alone.
"""

import asyncio
import atexit
import hashlib
import hmac
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from lorimer.errors import IntegrityError, LorimerError
from lorimer.serving.vllm.manifest import DIGEST_PATTERN, read_manifest
from lorimer.serving.vllm.mend import mend_operators
from lorimer.storage import copy_checked, digest_of, digest_of_file

logger = logging.getLogger("vllm.lorimer")  # below vLLM's own, so that it is shown

MANIFEST_VARIABLE, KEY_VARIABLE, PARENT_VARIABLE = "LORIMER_VLLM_MANIFEST", "VLLM_API_KEY", "LORIMER_VLLM_PARENT"
STATUS_PATH = "/v1/lorimer"
OPEN_ROUTES = {("GET", "/health"), ("GET", "/metrics"), ("GET", STATUS_PATH), ("POST", "/v1/completions")}
FILES = ("adapter_model.safetensors", "adapter_config.json")  # registry.FILES, which is not at hand here; a test holds them equal
INSTANCE = uuid.uuid4().hex
"""Of this process: who asks can tell that it has started again."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Library:
    """The registered adapters of the base that this vLLM serves, as verified copies that nobody else writes.

    A copy, since vLLM reads an adapter again whenever it has pushed it out of memory, without asking: what was verified is what is read.
    """

    def __init__(self, manifest: Path) -> None:
        self.manifest = manifest
        self._copies: Path | None = None
        self._base_files: dict[str, str] = {}  # by name, once they are hashed
        self._lock = threading.Lock()

    def base_digest(self, base: str) -> str:
        """The digest of the base in this folder.

        Raises:
            IntegrityError: if it is no folder.
        """
        with self._lock:
            if not self._base_files:
                folder = Path(base)
                if not (folder / "config.json").is_file():
                    raise IntegrityError(
                        f"vLLM serves {base!r}, which is no folder: which base it is cannot be checked; give --model a folder"
                    )
                files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
                self._base_files = {path.name: digest_of_file(path) for path in files}
            return digest_of(self._base_files)

    def find(self, name: str, base: str) -> Path | None:
        """A folder with the files of the adapter with this digest; None if `name` is no digest, or of nothing that is registered.

        Raises:
            IntegrityError: if it was made for another base, the base is not the registered one, or its files were changed.
            StorageError: if the list of adapters cannot be read, or the copy not written.
        """
        if not DIGEST_PATTERN.fullmatch(name):
            return None
        manifest = read_manifest(self.manifest)
        listed = manifest.adapters.get(name)
        if listed is None:
            return None
        served = self.base_digest(base)
        if served != manifest.base_digest:
            raise IntegrityError(f"vLLM serves base {served[:12]}, the gateway's is {manifest.base_digest[:12]}: start vLLM with that one")
        if served not in listed.bases:
            raise IntegrityError(f"adapter {name[:12]} was made for base {listed.bases[0][:12]}, not for {served[:12]}")
        return self._copy(name, listed.folder)

    def _copy(self, digest: str, folder: Path) -> Path:
        try:
            found = {file: digest_of_file(folder / file) for file in FILES}
        except OSError as exc:
            raise IntegrityError(f"the files of adapter {digest[:12]} cannot be read ({exc.strerror})") from exc
        if digest_of(found) != digest:
            raise IntegrityError(f"the files in {str(folder)!r} have digest {digest_of(found)[:12]}, registered was {digest[:12]}")
        with self._lock:
            if self._copies is None:
                self._copies = Path(tempfile.mkdtemp(prefix="lorimer-vllm-"))  # nobody else's to read; gone with this process
                atexit.register(shutil.rmtree, self._copies, ignore_errors=True)
            copy = self._copies / digest
        for file, sha256 in found.items():
            copy_checked([folder / file], copy / file, sha256)
        return copy


class RegisteredAdapters:
    """A `vllm.lora.resolver.LoRAResolver`: from a name the gateway made to an adapter."""

    def __init__(self, library: Library) -> None:
        self.library = library

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """See vLLM's `LoRAResolver`; why something is not served is in vLLM's log, and the gateway finds out for itself."""
        from vllm.lora.request import LoRARequest

        try:
            folder = await asyncio.to_thread(self.library.find, lora_name, base_model_name)
        except (LorimerError, OSError) as exc:
            logger.error("%s", exc)
            return None
        if folder is None:
            logger.warning("not served: %r is no registered adapter's digest", lora_name[:80])
            return None
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder))  # vLLM numbers it itself


class Gate:
    """ASGI middleware before vLLM's routes: four are open, each with the key but `/health`; the others are not there."""

    def __init__(self, app: App) -> None:
        self.app, self.library = app, library()
        key = os.environ.get(KEY_VARIABLE, "")
        if not key:
            raise RuntimeError(f"{KEY_VARIABLE} is not set: without a key anybody on this machine could go round the gateway")
        self._key = hashlib.sha256(key.encode()).digest()
        stop_with_parent()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http" or (scope["method"], scope["path"]) not in OPEN_ROUTES:
            await _reply(scope, send, 404, _error(404, "not here: ask the gateway"))
        elif scope["path"] != "/health" and not self._is_ours(scope):
            await _reply(scope, send, 401, _error(401, "no key, or another one: ask the gateway"))
        elif scope["path"] == STATUS_PATH:
            await self._tell_status(scope, send)
        else:
            await self.app(scope, receive, send)

    def _is_ours(self, scope: Scope) -> bool:
        shown = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(hashlib.sha256(shown.removeprefix(b"Bearer ")).digest(), self._key)

    async def _tell_status(self, scope: Scope, send: Send) -> None:
        """What the gateway has to know before it asks anything."""
        state = scope["app"].state
        try:
            base_digest = await asyncio.to_thread(self.library.base_digest, state.args.model)
        except (LorimerError, OSError) as exc:
            await _reply(scope, send, 500, _error(500, str(exc)))
            return
        config = state.vllm_config
        status = {
            "instance": INSTANCE,
            "base_digest": base_digest,
            "max_len": config.model_config.max_model_len,
            "max_sequences": config.scheduler_config.max_num_seqs,
            "max_rank": config.lora_config.max_lora_rank if config.lora_config else 0,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
        }
        await _reply(scope, send, 200, status)


async def _reply(scope: Scope, send: Send, status: int, value: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "LorimerGate", "param": None, "code": status}}


def stop_with_parent() -> None:
    """End with the gateway that started this process, however it ends: its adapters would be served by nobody's leave."""
    parent = os.environ.get(PARENT_VARIABLE, "")
    if not parent.isdecimal():
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1.0)
        logger.error("the gateway has gone: vLLM ends too")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


_library: Library | None = None


def library() -> Library:
    """The one of this process."""
    global _library
    if _library is None:
        _library = Library(Path(os.environ.get(MANIFEST_VARIABLE, "")))
    return _library


def register() -> None:
    """The entry point `vllm.general_plugins` loads, in each of vLLM's processes.

    Raises:
        EngineError: if this vLLM cannot be made to keep adapters apart; it does not start then.
    """
    from vllm.lora.resolver import LoRAResolverRegistry
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        mend_operators()
    if "lorimer" not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver("lorimer", RegisteredAdapters(library()))
