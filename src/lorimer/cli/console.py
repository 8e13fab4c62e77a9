"""Where commands print: results on stdout, progress and notes on stderr, so that `--json` stays clean."""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(soft_wrap=True)
error_console = Console(stderr=True, soft_wrap=True)

T = TypeVar("T")


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout, never wrapped or coloured."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def print_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Words in columns, as they are."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row))
    console.print(table)


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
