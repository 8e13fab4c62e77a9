"""`lorimer serve`: the base and every adapter made for it, behind OpenAI's API."""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import typer

from lorimer.cli.console import console, error_console, working
from lorimer.errors import UsageError

if TYPE_CHECKING:
    from lorimer.registry.records import AdapterVersion
    from lorimer.registry.registry import Registry
    from lorimer.serving.backend import Backend
    from lorimer.serving.resolve import Models

MAX_LISTED = 20
KEY_VARIABLE = "LORIMER_VLLM_KEY"


def serve(
    base: str | None = typer.Option(None, help="Base to serve; by default that of the newest adapter, else gemma3-270m."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; 0.0.0.0 for all of this machine's."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port to listen on; 0 takes a free one."),
    no_keys: bool = typer.Option(False, "--no-keys", help="Answer everybody, on any address, whatever keys there are."),
    dedicated: str | None = typer.Option(None, metavar="NAME", help="Merge this version into the base and serve nothing else."),
    max_waiting: int = typer.Option(256, min=1, max=100_000, help="Answers that may wait; beyond it requests get a 503."),
    cache_mb: float = typer.Option(1000, "--cache-mb", min=0.1, help="Memory for keys and values of answers in flight, in megabytes."),
    adapter_mb: float = typer.Option(2000, "--adapter-mb", min=0.1, help="Memory for adapters that are not in use but kept, in megabytes."),
    backend: Literal["embedded", "vllm"] = typer.Option("embedded", help="What computes: the engine of this process, or vLLM."),
    vllm_python: str = typer.Option("python", help="Python of vLLM's environment: vLLM is started, and started again if it ends."),
    vllm_url: str | None = typer.Option(None, help=f"A vLLM that runs already; its key is read from {KEY_VARIABLE}."),
    print_command: bool = typer.Option(False, "--print-command", help="Print how to start vLLM, and end."),
    max_sequences: int = typer.Option(32, min=1, max=4096, help="Answers that vLLM computes at once."),
    max_len: int | None = typer.Option(None, min=1, help="Tokens of prompt and answer together, on vLLM; by default what the base takes."),
    vllm_options: list[str] = typer.Argument(None, help="After `--`: options of vLLM's own, for the machine it runs on."),
) -> None:
    """Serve the base and its adapters: /v1/chat/completions, /v1/completions, /v1/models, /healthz, /metrics.

    Once there is a key (`lorimer keys create`), callers need one. Until then only this machine is listened to.

    Example: lorimer serve --port 8000
    """
    from lorimer.database import open_database
    from lorimer.registry.registry import Registry
    from lorimer.serving.app import create_app
    from lorimer.serving.keys import Keys
    from lorimer.serving.resolve import base_for
    from lorimer.serving.server import check_address, is_loopback, run_server

    registry = Registry(open_database())
    keys = Keys(registry.engine)
    if backend == "embedded" and (vllm_options or print_command or vllm_url):
        raise UsageError("options for vLLM were given, and the embedded engine was asked for: add `--backend vllm`, or leave them out")
    if backend == "vllm" and dedicated is not None:
        raise UsageError("vLLM serves adapters beside the base, `--dedicated` merges one into it: leave out one of the two")
    merged = None if dedicated is None else registry.resolve(dedicated)
    name = base or base_for(registry, dedicated)
    if print_command:
        _print_command(name, registry, vllm_python, max_sequences, max_len, vllm_options or [])
        return
    check_address(host, keys, no_keys=no_keys)
    opened = (
        _embedded(name, registry, merged, cache_bytes=int(cache_mb * 1e6), adapter_bytes=int(adapter_mb * 1e6))
        if backend == "embedded"
        else _vllm(name, registry, vllm_url, vllm_python, max_sequences, max_len, vllm_options or [])
    )
    with opened as worker:
        app = create_app(worker, registry, no_keys=no_keys, max_waiting=max_waiting, merged=merged)
        if not is_loopback(host):
            note = f"Anyone who reaches {host} can ask" if no_keys else "Keys travel as they are: put a proxy with TLS before this address"
            error_console.print(f"{note}.", style="yellow", highlight=False)
        run_server(app, host=host, port=port, on_ready=lambda url: _show(app.state.models, url, needs_key=keys.exist() and not no_keys))
    console.print("Stopped.")


@contextlib.contextmanager
def _embedded(
    name: str, registry: "Registry", merged: "AdapterVersion | None", *, cache_bytes: int, adapter_bytes: int
) -> "Iterator[Backend]":
    """The engine of this process."""
    from lorimer.inference.engine import EngineConfig
    from lorimer.model.base import load_base
    from lorimer.serving.dedicated import merge_version
    from lorimer.serving.server import open_worker

    with working(f"Loading base {name}"):
        base = load_base(name)
        divergence = None if merged is None else merge_version(registry, merged, base)
        worker = open_worker(base, EngineConfig(cache_bytes=cache_bytes, adapter_bytes=adapter_bytes), owns_base=True)
    if merged is not None:
        console.print(f"Merged {merged.id} into {name}. Beside the adapter unmerged: {divergence}.", markup=False, highlight=False)
    yield worker


@contextlib.contextmanager
def _vllm(
    name: str, registry: "Registry", url: str | None, python: str, max_sequences: int, max_len: int | None, options: list[str]
) -> "Iterator[Backend]":
    """A vLLM that runs already, or one of our own."""
    from lorimer.serving.vllm.server import open_backend, open_base, plan_vllm, started_backend

    if url is not None and options:
        raise UsageError(f"vLLM at {url!r} runs already, options of its own come too late: leave them out, or leave out --vllm-url")
    with working(f"Reading base {name}"):
        served = open_base(name, registry)
    with contextlib.ExitStack() as stack:
        if url is not None:
            worker = open_backend(served, url, os.environ.get(KEY_VARIABLE, ""))
        else:
            with working("Starting vLLM"):
                launch = plan_vllm(served, python, max_sequences=max_sequences, max_len=max_len, options=options)
                worker = stack.enter_context(started_backend(served, launch))
        yield worker


def _print_command(name: str, registry: "Registry", python: str, max_sequences: int, max_len: int | None, options: list[str]) -> None:
    """The command alone on stdout, so that it can be piped; how to go on, on stderr."""
    from lorimer.serving.vllm.server import open_base, plan_vllm

    launch = plan_vllm(open_base(name, registry), python, max_sequences=max_sequences, max_len=max_len, options=options)
    print(launch.to_shell())
    note = f"Set {KEY_VARIABLE} to a secret for both, start vLLM so, then: lorimer serve --backend vllm --vllm-url {launch.url}"
    error_console.print(note, highlight=False, markup=False)


def _show(models: "Models", url: str, *, needs_key: bool) -> None:
    """What can be asked for, and how."""
    adapters = [card for card in models.cards() if card.parent is not None]
    console.print(f"Serving {models.base_name} on {url}  (Ctrl-C stops)", markup=False, highlight=False)
    for card in adapters[:MAX_LISTED]:
        console.print(f"  {card.id:32} {card.root[:12]}", markup=False, highlight=False)
    if len(adapters) > MAX_LISTED:
        console.print(f"  and {len(adapters) - MAX_LISTED} more: {url}/v1/models", markup=False, highlight=False)
    if not adapters:
        console.print("  no adapters for this base yet: `lorimer train` makes one", markup=False, highlight=False)
    model = adapters[0].id if adapters else "base"
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    headers = "-H 'content-type: application/json'" + (" -H 'authorization: Bearer KEY'" if needs_key else "")
    console.print(f"Try: curl {url}/v1/chat/completions {headers} -d '{body}'", markup=False, highlight=False)
