"""`lorimer backup`, `restore` and `publish`: everything in one file, back again, and into the store that several homes share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorimer.cli.console import console, error_console, print_json, working
from lorimer.errors import UsageError

if TYPE_CHECKING:
    from lorimer.registry.backup import Backup

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
BACKUP_HELP = "Write database, adapters, datasets, reports and runs to one file. Example: lorimer backup monday.tar"
RESTORE_HELP = "Put a backup into an empty home and its database, checked to the last byte. Example: lorimer restore monday.tar"
PUBLISH_HELP = "Put this home's adapters and datasets into the store that LORIMER_STORAGE names. Example: lorimer publish"


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A tar; it must not be there yet.")],
    without_keys: Annotated[bool, typer.Option("--without-keys", help="Leave out the keys that adapters are signed with.")] = False,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Go on where files of registered adapters are gone.")] = False,
    json: Json = False,
) -> None:
    """Back up, and print the digest to keep elsewhere."""
    from lorimer.database import open_database
    from lorimer.registry import backup as room

    with working("Backing up"):
        made = room.backup(open_database(), file.absolute(), with_keys=not without_keys, allow_missing=allow_missing)
    _print(made, json, f"[bold]{file}[/bold] holds")
    if not (json or without_keys):
        error_console.print("It holds signing keys, if there are any: keep it where keys are kept, or use --without-keys.", style="dim")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `lorimer backup` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Lose what is in this home and its database now.")] = False,
    json: Json = False,
) -> None:
    """Restore, and print what came back."""
    from lorimer.registry import backup as room

    with working("Restoring"):
        made = room.restore(file.absolute(), replace=replace)
    _print(made, json, "Restored")


def publish(json: Json = False) -> None:
    """Publish, and print how many folders the store has now."""
    from lorimer.blobs import VARIABLE, open_store
    from lorimer.database import open_database
    from lorimer.registry.backup import publish_all

    store = open_store()
    if store is None:
        raise UsageError(f"there is no store to publish to: set {VARIABLE}, as 's3://bucket/prefix' or 'file:///a/shared/folder'")
    with working("Publishing"):
        num = publish_all(open_database())
    if json:
        print_json({"store": store.url, "num_folders": num})
    else:
        console.print(f"{store.url} has all {num} folders of adapters and datasets.", markup=False, highlight=False)


def _print(made: "Backup", json: bool, what: str) -> None:
    if json:
        print_json(
            {name: getattr(made, name) for name in ("digest", "num_files", "num_rows", "num_bytes", "missing")} | {"path": str(made.path)}
        )
        return
    sizes = f"{made.num_files:,} files, {made.num_rows:,} rows, {made.num_bytes / 1e6:,.1f} MB"
    console.print(f"{what} {sizes} [dim]{made.digest}[/dim]", highlight=False)
    if made.missing:
        error_console.print(f"Without the files of {', '.join(made.missing)}, which are gone.", style="yellow", highlight=False)
