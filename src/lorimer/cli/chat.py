"""`lorimer chat`: talk to an adapter or a base, on a running server or on one that lives as long as the talk."""

import contextlib
import os
import sys
from collections.abc import Iterator

import typer

from lorimer.cli.console import error_console, working
from lorimer.data.example import Message


def chat(
    model: str = typer.Argument(..., help="An adapter (NAME, NAME@v3, NAME@ALIAS) or a base."),
    message: str | None = typer.Option(None, "--message", "-m", help="Ask this, print the answer, end."),
    system: str | None = typer.Option(None, help="Instruction put before the conversation."),
    url: str | None = typer.Option(None, help="A running server, as http://127.0.0.1:8000; without it the base is loaded here."),
    temperature: float = typer.Option(0.0, min=0.0, max=2.0, help="0 takes the likeliest words, more varies them."),
) -> None:
    """Talk to an adapter or a base. Without --message, line by line until Ctrl-D. A server's key is read from LORIMER_API_KEY.

    Example: lorimer chat helpdesk --message "My invoice is wrong"
    """
    from lorimer.serving.client import stream_chat

    api_key = os.environ.get("LORIMER_API_KEY")  # not an option: commands are kept in the shell's history and seen by everybody
    conversation = [Message(role="system", content=system)] if system else []
    with _server(model, url) as address:
        for question in [message] if message is not None else _questions():
            conversation.append(Message(role="user", content=question))
            answer = ""
            for piece in stream_chat(address, model, conversation, temperature=temperature, api_key=api_key):
                sys.stdout.write(piece)
                sys.stdout.flush()
                answer += piece
            sys.stdout.write("\n")
            conversation.append(Message(role="assistant", content=answer))


@contextlib.contextmanager
def _server(model: str, url: str | None) -> Iterator[str]:
    """The address to ask: the one given, or that of a server in this process."""
    if url is not None:
        yield url
        return
    from lorimer.database import open_database
    from lorimer.model.base import load_base
    from lorimer.registry.registry import Registry
    from lorimer.serving.resolve import base_for
    from lorimer.serving.server import background_server, open_app

    base_name = base_for(Registry(open_database()), model)
    with working(f"Loading base {base_name}"):
        app = open_app(load_base(base_name), no_keys=True)  # it lives as long as the talk, on a port nobody was told of
    with background_server(app) as address:
        yield address


def _questions() -> Iterator[str]:
    """Lines from the person; empty ones are passed over."""
    is_person = sys.stdin.isatty()
    if is_person:
        error_console.print("Ctrl-D ends.", style="dim")
    while True:
        try:
            line = input("> " if is_person else "")
        except (EOFError, KeyboardInterrupt):
            return
        if line.strip():
            yield line
