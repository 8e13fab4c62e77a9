"""Where commands print: results on stdout, progress and notes on stderr, so that `--json` stays clean."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(soft_wrap=True)
error_console = Console(stderr=True, soft_wrap=True)

T = TypeVar("T")


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout, never wrapped or coloured."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def progress_bar() -> Progress:
    """A progress bar on stderr; tasks may carry a `note` (loss, rate) shown at its end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=error_console,
    )


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on stderr for work that cannot say how far it is."""
    with error_console.status(what):
        yield
