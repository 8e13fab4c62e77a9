"""`lorimer audit`: who did what, and whether the record of it is whole."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from lorimer.cli.console import console, print_json, print_table
from lorimer.errors import UsageError

if TYPE_CHECKING:
    from lorimer.registry.audit import Head

app = typer.Typer(help="Who did what, when and why; and whether the record of it is whole.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command(help="Every change of state, newest first. Example: lorimer audit show --subject helpdesk@champion")
def show(
    subject: Annotated[str | None, typer.Option(help="Of one version, alias, tenant or person: `helpdesk@v3`.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many of the newest.")] = 100,
    json: Json = False,
) -> None:
    """Print entries of the audit chain."""
    from lorimer.database import open_database
    from lorimer.registry.audit import read_audit

    entries = read_audit(open_database(), subject)[: -limit - 1 : -1]
    if json:
        print_json({"entries": [entry.to_json() for entry in entries]})
        return
    if not entries:
        console.print("Nothing was recorded" + (f" of {subject!r}." if subject else " yet."), markup=False)
        return
    print_table(("entry", "at", "by", "what", "of", "reason", "digest"), [
        (entry.id, entry.at, entry.actor, entry.action, entry.subject, entry.reason, entry.digest[:12]) for entry in entries
    ])  # fmt: skip


@app.command(
    help="Find any edit, deletion, insertion or reordering of entries, and entries cut off the end (exit code 6). "
    "Keep what --json prints as `head` elsewhere and give it back later. Example: lorimer audit verify --head 42:9f3c..."
)
def verify(
    head: Annotated[str | None, typer.Option(metavar="ENTRY:DIGEST", help="A head that an earlier check printed.")] = None,
    json: Json = False,
) -> None:
    """Check the chain against itself, its signed head, and heads seen earlier."""
    from lorimer.database import open_database
    from lorimer.registry.audit_check import check_audit

    report = check_audit(open_database(), known=_read_head(head))
    if json:
        print_json(report.to_json())
    else:
        for problem in report.problems:
            console.print(f"[bold red]broken[/bold red]  {escape(problem)}", highlight=False)
        for note in report.notes:
            console.print(f"[yellow]note[/yellow]  {escape(note)}", highlight=False)
        if not report.problems:
            where = f", head {report.head.sequence}:{report.head.digest}" if report.head else ""
            console.print(f"[bold green]whole[/bold green]  {report.num_entries} entries{where}", highlight=False)
    report.require_whole()


@app.command(help="Write the whole chain as JSON Lines, to be kept elsewhere. Example: lorimer audit export audit.jsonl")
def export(path: Annotated[Path, typer.Argument(metavar="FILE", help="Written anew.")]) -> None:
    """Copy all entries to a file."""
    from lorimer.database import open_database
    from lorimer.registry.audit import read_audit
    from lorimer.storage import write_jsonl

    entries = read_audit(open_database())
    write_jsonl(path, (entry.to_json() for entry in entries))
    console.print(f"{len(entries)} entries in {escape(str(path))}", highlight=False)


def _read_head(text: str | None) -> "Head | None":
    from lorimer.registry.audit import Head

    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", text)
    if found is None:
        raise UsageError(f"{text[:80]!r} is no head: give what `lorimer audit verify` printed, as 42:9f3c... with 64 digits")
    return Head(sequence=int(found[1]), digest=found[2])
