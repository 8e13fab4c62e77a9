"""`lorimer serve`: the base and every adapter made for it, behind OpenAI's API."""

from typing import TYPE_CHECKING

import typer

from lorimer.cli.console import console, error_console, working

if TYPE_CHECKING:
    from lorimer.serving.resolve import Models

MAX_LISTED = 20


def serve(
    base: str | None = typer.Option(None, help="Base to serve; by default that of the newest adapter, else gemma3-270m."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; 0.0.0.0 for all of this machine's."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port to listen on; 0 takes a free one."),
    no_keys: bool = typer.Option(False, "--no-keys", help="Answer everybody, on any address, whatever keys there are."),
    max_waiting: int = typer.Option(256, min=1, max=100_000, help="Answers that may wait; beyond it requests get a 503."),
) -> None:
    """Serve the base and its adapters: /v1/chat/completions, /v1/completions, /v1/models, /healthz, /metrics.

    Once there is a key (`lorimer keys create`), callers need one. Until then only this machine is listened to.

    Example: lorimer serve --port 8000
    """
    from lorimer.database import open_database
    from lorimer.model.base import load_base
    from lorimer.registry.registry import Registry
    from lorimer.serving.keys import Keys
    from lorimer.serving.resolve import base_for
    from lorimer.serving.server import check_address, is_loopback, open_app, run_server

    registry = Registry(open_database())
    keys = Keys(registry.engine)
    check_address(host, keys, no_keys=no_keys)
    name = base or base_for(registry)
    with working(f"Loading base {name}"):
        app = open_app(load_base(name), no_keys=no_keys, max_waiting=max_waiting)
    if not is_loopback(host):
        note = f"Anyone who reaches {host} can ask" if no_keys else "Keys travel as they are: put a proxy with TLS before this address"
        error_console.print(f"{note}.", style="yellow", highlight=False)
    run_server(app, host=host, port=port, on_ready=lambda url: _show(app.state.models, url, needs_key=keys.exist() and not no_keys))
    console.print("Stopped.")


def _show(models: "Models", url: str, *, needs_key: bool) -> None:
    """What can be asked for, and how."""
    base, *adapters = models.cards()
    console.print(f"Serving {base.id} on {url}  (Ctrl-C stops)", markup=False, highlight=False)
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
