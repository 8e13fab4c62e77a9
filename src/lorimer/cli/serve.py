"""`lorimer serve`: the base and every adapter made for it, behind OpenAI's API."""

from typing import TYPE_CHECKING

import typer

from lorimer.cli.console import console, error_console, working

if TYPE_CHECKING:
    from lorimer.serving.resolve import Models

MAX_LISTED = 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    base: str | None = typer.Option(None, help="Base to serve; by default that of the newest adapter, else gemma3-270m."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; 0.0.0.0 for all of this machine's."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port to listen on; 0 takes a free one."),
) -> None:
    """Serve the base and its adapters: /v1/chat/completions, /v1/completions, /v1/models, /healthz, /metrics.

    Example: lorimer serve --port 8000
    """
    from lorimer.database import open_database
    from lorimer.model.base import load_base
    from lorimer.registry.registry import Registry
    from lorimer.serving.resolve import base_for
    from lorimer.serving.server import open_app, run_server

    name = base or base_for(Registry(open_database()))
    with working(f"Loading base {name}"):
        app = open_app(load_base(name))
    if host not in LOOPBACK:
        error_console.print(f"Anyone who reaches {host} can ask: put a proxy with keys before it.", style="yellow", highlight=False)
    run_server(app, host=host, port=port, on_ready=lambda url: _show(app.state.models, url))
    console.print("Stopped.")


def _show(models: "Models", url: str) -> None:
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
    console.print(f"Try: curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'", markup=False, highlight=False)
