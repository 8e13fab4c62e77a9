"""`lorimer roles` and `lorimer trust`: who may change what, and whose signatures count."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from lorimer.cli.console import console, print_json, print_table

if TYPE_CHECKING:
    from lorimer.registry.registry import Registry

app = typer.Typer(
    help="Who may change what: viewer, trainer, approver, admin. While nobody has a role, anybody may do anything.",
    no_args_is_help=True,
)
trust_app = typer.Typer(help="Whose signatures count, of adapters and of the audit chain.", no_args_is_help=True)

Actor = Annotated[str, typer.Argument(metavar="ACTOR", help="A person or service: LORIMER_ACTOR, else the login name.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the audit chain.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command(help="Give somebody a role, in place of the one they have; the first is an admin's. Example: lorimer roles grant ada admin")
def grant(
    actor: Actor,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="viewer, trainer, approver or admin; each may what those before it may.")],
    reason: Reason = "",
) -> None:
    """Grant a role."""
    from lorimer.registry.officers import grant_role

    granted = grant_role(_open_registry(), actor, role, reason=reason)
    console.print(f"{escape(granted.actor)} is [bold]{granted.role}[/bold]", highlight=False)


@app.command(help="Take somebody's role away. Example: lorimer roles revoke bob --reason 'left'")
def revoke(actor: Actor, reason: Reason = "") -> None:
    """Revoke a role."""
    from lorimer.registry.officers import revoke_role

    revoke_role(_open_registry(), actor, reason=reason)
    console.print(f"{escape(actor)} has no role any more", highlight=False)


@app.command("list", help="Who has which role. Example: lorimer roles list")
def list_all(json: Json = False) -> None:
    """Print one line per person."""
    from lorimer.registry.audit import current_actor
    from lorimer.registry.roles import list_roles

    found = list_roles(_open_registry().engine)
    if json:
        print_json(
            {"roles": [{"actor": one.actor, "role": one.role, "granted_by": one.granted_by} for one in found], "you": current_actor()}
        )
        return
    if not found:
        console.print(
            f"Nobody has a role, so anybody may do anything; to end that: `lorimer roles grant {current_actor()} admin`.", markup=False
        )
        return
    print_table(("actor", "role", "since", "by"), [(one.actor, one.role, one.granted_at, one.granted_by) for one in found])


@trust_app.command(help="Let a key's signatures count. Example: lorimer trust add colleague.pem --name 'the other site'")
def add(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A public key in PEM, as `lorimer trust show` prints it.")],
    name: Annotated[str, typer.Option(help="Whose it is.")] = "",
    reason: Reason = "",
) -> None:
    """Trust a public key."""
    from lorimer.registry.officers import add_key
    from lorimer.registry.signing import read_public_key

    added = add_key(_open_registry(), read_public_key(path), name=name or path.stem, reason=reason)
    console.print(f"{added.key_id[:16]} ({escape(added.name)}) is trusted", highlight=False)


@trust_app.command(help="Let a key's signatures count no more. Example: lorimer trust remove 3fa9c1 --reason 'laptop lost'")
def remove(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its name, or the beginning of its id.")],
    reason: Reason = "",
) -> None:
    """Trust a key no more."""
    from lorimer.registry.officers import remove_key

    removed = remove_key(_open_registry(), key, reason=reason)
    console.print(f"{removed.key_id[:16]} ({escape(removed.name)}) is trusted no more", highlight=False)


@trust_app.command("list", help="The keys that count, and those that did. Example: lorimer trust list")
def list_trusted(json: Json = False) -> None:
    """Print one line per key."""
    from dataclasses import asdict

    from lorimer.registry.trust import list_keys

    found = list_keys(_open_registry().engine)
    if json:
        print_json({"keys": [asdict(key) for key in found]})
        return
    if not found:
        console.print("No key yet: the first that signs here is trusted.")
        return
    print_table(("key", "name", "since", "by", "removed"), [
        (key.key_id[:16], key.name, key.added_at, key.added_by, key.removed_at or "") for key in found
    ])  # fmt: skip


@trust_app.command(help="The public key that signs here, for others to add. Example: lorimer trust show > ours.pem")
def show() -> None:
    """Print this home's public key."""
    from lorimer.registry.signing import open_signer

    print(open_signer().public.pem, end="")


def _open_registry() -> "Registry":
    from lorimer.database import open_database
    from lorimer.registry.registry import Registry

    return Registry(open_database())
