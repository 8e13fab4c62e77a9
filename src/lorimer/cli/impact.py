"""`lorimer adapters impact`: what breaks if a base, a dataset, a record or an adapter goes."""

from typing import Annotated

import typer
from rich.markup import escape

from lorimer.cli.console import console, print_json
from lorimer.errors import UsageError

HELP = "What breaks if a base, dataset, record or adapter goes. Example: lorimer adapters impact --base gemma3-270m"


def impact(
    base: Annotated[str | None, typer.Option(help="A base's name or digest.")] = None,
    dataset: Annotated[str | None, typer.Option(help="A dataset's name or digest.")] = None,
    record: Annotated[str | None, typer.Option(help="A record's digest, all of it.")] = None,
    adapter: Annotated[str | None, typer.Option(help="An adapter by any of its names.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Print all that would break."""
    from lorimer.database import open_database
    from lorimer.registry.lineage import Cause, blast_radius
    from lorimer.registry.registry import Registry

    asked: dict[Cause, str | None] = {"base": base, "dataset": dataset, "record": record, "adapter": adapter}
    given = [(cause, value) for cause, value in asked.items() if value is not None]
    if len(given) != 1:
        raise UsageError("of what? Give one of --base, --dataset, --record and --adapter, as `lorimer adapters impact --dataset tickets`")
    found = blast_radius(Registry(open_database()), *given[0])
    if json:
        print_json(found.to_json())
        return
    rows = {
        found.cause: found.digest,
        "datasets": ", ".join(digest[:16] for digest in found.datasets),
        "versions": ", ".join(version.id for version in found.versions),
        "merges": ", ".join(version.id for version in found.merges),
        "composed": ", ".join(version.id for version in found.compositions),
        "live": ", ".join(f"{alias.id} (v{alias.version})" for alias in found.aliases),
        "exports": ", ".join(f"{one.adapter} -> {one.place}{'' if one.left_platform else ' (stays)'}" for one in found.exports),
    }
    for title, words in rows.items():
        console.print(f"[dim]{title:>10}[/dim]  {escape(words) or 'none'}", highlight=False)
