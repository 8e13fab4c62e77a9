"""`lorimer adapters export` and `exports`: adapters and their papers leave the platform, and what left is known."""

from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.markup import escape
from rich.table import Table

from lorimer.cli.console import console, print_json
from lorimer.errors import UsageError

HELP = "Write an adapter for PEFT, or its papers, to a new folder. Example: lorimer adapters export sql@v3 --to pack --output out"
LIST_HELP = "What was exported, where to, by whom. Example: lorimer adapters exports"
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="`helpdesk`, `helpdesk@v3`, `helpdesk@sha256:ab12cd`.")],
    to: Annotated[str, typer.Option(help="peft: files PEFT reads. pack: cards, ML-BOM, Annex IV draft, records, digests.")],
    output: Annotated[Path, typer.Option(help="A folder that is not there yet.")],
    stays: Annotated[bool, typer.Option("--stays", help="The folder is in this platform's reach; else it counts as having left.")] = False,
    base_flops: Annotated[float | None, typer.Option(min=0, help="The base's training compute, for the draft's ratio: 9.6e21.")] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit table.")] = "",
    json: Json = False,
) -> None:
    """Export, and print what was recorded."""
    from lorimer.database import open_database
    from lorimer.registry import exports
    from lorimer.registry.registry import Registry

    known = {target: target for target in get_args(exports.Target)}
    if to not in known:
        raise UsageError(f"{to!r} is no form adapters are exported in: give {' or '.join(known)}")
    registry = Registry(open_database())
    version = registry.resolve(name)
    made = exports.export(registry, version, known[to], output.absolute(), left_platform=not stays, base_flops=base_flops, reason=reason)
    if json:
        print_json(made.to_json())
        return
    console.print(f"[bold]{made.adapter}[/bold] as {made.target}  ->  {escape(made.place)}", highlight=False)
    console.print(f"Check it with `sha256sum -c {exports.DIGESTS}` in that folder.", highlight=False)


def list_exports(json: Json = False) -> None:
    """Print one line per export."""
    from lorimer.database import open_database
    from lorimer.registry import exports

    found = exports.list_exports(open_database())
    if json:
        print_json({"exports": [one.to_json() for one in found]})
        return
    if not found:
        console.print("Nothing was exported yet.")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("adapter", "as", "where", "left", "when", "who"):
        table.add_column(title, overflow="fold")
    for one in found:
        left = "yes" if one.left_platform else "no"
        table.add_row(one.adapter, one.target, escape(one.place), left, one.exported_at[:16], escape(one.exported_by))
    console.print(table)
