"""The app over a real socket: `run_server` for `lorimer serve`, `background_server` for the quick start and tests."""

import asyncio
import contextlib
import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from lorimer.database import open_database
from lorimer.errors import LorimerError, UsageError
from lorimer.inference.engine import Engine, EngineConfig
from lorimer.model.base import Base
from lorimer.model.machine import give_back_threads
from lorimer.registry.registry import Registry
from lorimer.registry.sealing import Seals
from lorimer.serving.app import GRACE_SECONDS, create_app
from lorimer.serving.backend import Backend
from lorimer.serving.keys import Keys
from lorimer.serving.limits import MAX_WAITING
from lorimer.serving.worker import EngineWorker

KEEP_ALIVE_SECONDS = 65  # longer than clients and proxies keep idle connections, so that none is closed as it is used again


class Server(uvicorn.Server):
    """uvicorn, telling when it takes requests, and not held up at its end by answers in flight."""

    def __init__(self, app: FastAPI, on_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="on",
                ws="none",
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )
        self.worker: Backend = app.state.worker
        self.on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so.

        Raises:
            LorimerError: if the app does not start.
        """
        try:
            await super().startup(sockets)
        except SystemExit as exc:  # with an exit code of uvicorn's own
            raise LorimerError("the server did not start: its log says why") from exc
        if self.started:
            self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the engine first: after its grace it answers with an error what it still owes, so that connections can close."""
        for listener in self.servers:
            listener.close()
        await asyncio.to_thread(self.worker.stop, grace_seconds=GRACE_SECONDS)
        await super().shutdown(sockets)


def open_app(base: Base, config: EngineConfig | None = None, *, no_keys: bool = False, max_waiting: int = MAX_WAITING) -> FastAPI:
    """The API over a loaded base and the registry of the home folder; see `create_app`."""
    return create_app(open_worker(base, config), Registry(open_database()), no_keys=no_keys, max_waiting=max_waiting)


def open_worker(base: Base, config: EngineConfig | None = None, *, owns_base: bool = False) -> EngineWorker:
    """The embedded engine over a loaded base. Where nobody else uses the base it may be owned: what is packed is then not kept twice."""
    engine = Engine(base, config)
    if owns_base:
        engine.release_base()
    give_back_threads()  # those that read and packed the base; the engine's thread starts its own
    return EngineWorker(engine, Seals(open_database()))


def check_address(host: str, keys: Keys, *, no_keys: bool = False) -> None:
    """See that nobody on another machine could ask without a key, unless the operator said so.

    Raises:
        UsageError: if somebody could.
    """
    if not (is_loopback(host) or no_keys or keys.exist()):
        raise UsageError(
            f"{host!r} can be reached from other machines, and no API key was made yet: make one with `lorimer keys create NAME`, "
            "or answer everybody with `--no-keys`"
        )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def run_server(app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000, on_ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve until interrupted; `on_ready` is told the address once requests are taken.

    Raises:
        UsageError: if the address cannot be listened on, or may not be without keys.
    """
    check_address(host, app.state.keys, no_keys=app.state.no_keys)
    with _listen(host, port) as listener, contextlib.suppress(KeyboardInterrupt):
        Server(app, lambda: on_ready(_url(listener))).run(sockets=[listener])


@contextlib.contextmanager
def background_server(app: FastAPI, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve in a thread for as long as the block lasts; yields the address, on a free port by default.

    Raises:
        UsageError: if the address cannot be listened on, or may not be without keys.
        LorimerError: if the server does not start.
    """
    check_address(host, app.state.keys, no_keys=app.state.no_keys)
    is_decided = threading.Event()
    with _listen(host, port) as listener:
        server = Server(app, is_decided.set)

        def run() -> None:
            with contextlib.suppress(LorimerError):
                try:
                    server.run(sockets=[listener])
                finally:
                    is_decided.set()

        thread = threading.Thread(target=run, name="http", daemon=True)
        thread.start()
        try:
            is_decided.wait()
            if not server.started:
                raise LorimerError(f"the server on {_url(listener)} did not start: its log says why")
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join()


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as exc:
        why = (
            os.strerror(exc.errno) if exc.errno and exc.errno > 0 else exc.strerror
        )  # names that cannot be resolved have codes of their own
        raise UsageError(f"cannot listen on {host}:{port} ({why}): choose another --port or --host") from exc


def _url(listener: socket.socket) -> str:
    """An address that reaches the listener from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
