"""`lorimer adapters promote, rollback, ...`: which version an alias names, who may move it, and where it has pointed."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from lorimer.cli.console import console, print_json, print_table, working
from lorimer.errors import UsageError

if TYPE_CHECKING:
    from lorimer.registry.records import AdapterVersion, Alias, PromotionRequest
    from lorimer.registry.registry import Registry

app = typer.Typer()

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="`helpdesk` (its champion, else its newest), `helpdesk@v3`, `helpdesk@sha256:ab12cd`.")
]
AliasName = Annotated[str, typer.Option(help="The alias to move.")]
Protected = Annotated[str, typer.Argument(metavar="ALIAS", help="`champion`, of every adapter; or of one: `helpdesk@champion`.")]
RequestId = Annotated[str, typer.Argument(metavar="REQUEST", help="A request's id, or its beginning: `lorimer adapters requests`.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the audit chain.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command(
    help="Point an alias at a version whose gate passed. Example: lorimer adapters promote helpdesk@v3 --reason 'better in German'"
)
def promote(
    name: Name,
    alias: AliasName = "champion",
    reason: Reason = "",
    override_gate: Annotated[bool, typer.Option("--override-gate", help="Whatever its gate says; for approvers, with a reason.")] = False,
    json: Json = False,
) -> None:
    """Move an alias and print where it points now; of a protected one, ask for it (exit code 4)."""
    from lorimer.registry import promotion

    registry = _open_registry()
    version = registry.resolve(name)
    if not override_gate:
        _judge_first(registry, version)
    moved = promotion.promote(registry, version, alias=alias, reason=reason, overrides_gate=override_gate)
    if json:
        print_json({**_json_of(moved), "digest": version.digest})
        return
    verdict = registry.resolve(version.id).gate_verdict
    words = "[bold green]PASS[/bold green]" if verdict == "PASS" else f"[bold red]{verdict or 'none'}, overridden[/bold red]"
    console.print(f"[bold]{moved.id}[/bold] is {version.id} [dim]{version.digest[:16]}[/dim], gate {words}", highlight=False)


@app.command(
    help="Point an alias back at the version it named before, at once and without a gate. "
    "Example: lorimer adapters rollback helpdesk --reason 'wrong in German'"
)
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The adapter: `helpdesk`.")],
    alias: AliasName = "champion",
    to: Annotated[str | None, typer.Option(help="Another version that the alias named once: `v3`.")] = None,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Move an alias back and print where it points now."""
    from lorimer.registry import promotion

    moved, version = promotion.rollback(_open_registry(), name, alias=alias, to=to, reason=reason)
    if json:
        print_json({**_json_of(moved), "digest": version.digest})
        return
    console.print(f"[bold]{moved.id}[/bold] is {version.id} again [dim]{version.digest[:16]}[/dim]", highlight=False)


@app.command(help="Where an alias has pointed, newest first. Example: lorimer adapters history helpdesk@champion")
def history(
    name: Annotated[str, typer.Argument(metavar="NAME[@ALIAS]", help="`helpdesk@champion`; of an adapter alone, its champion.")],
    json: Json = False,
) -> None:
    """Print every move of an alias."""
    from lorimer.registry import promotion

    adapter, _, alias = name.partition("@")
    moves = promotion.history(_open_registry(), adapter, alias or "champion")[::-1]
    if json:
        print_json({"alias": f"{adapter}@{alias or 'champion'}", "moves": [move.to_json() for move in moves]})
        return
    if not moves:
        console.print(f"{escape(name)} has never pointed anywhere: `lorimer adapters list` shows what there is.")
        return
    print_table(("at", "by", "what", "version", "before", "reason"), [
        (move.at, move.actor, move.action, f"v{move.version}", f"v{move.version_before}" if move.version_before else "", move.reason)
        for move in moves
    ])  # fmt: skip


@app.command(help="From now on an alias moves only with a second person's approval. Example: lorimer adapters protect champion")
def protect(
    alias: Protected,
    days: Annotated[int, typer.Option(help="A request waits so long.")] = 7,
    reason: Reason = "",
) -> None:
    """Protect an alias, of one adapter or of all."""
    from lorimer.registry.approvals import protect as protect_alias

    name, alias_name = _split(alias)
    protect_alias(_open_registry(), alias_name, name=name, days=days, reason=reason)
    console.print(f"[bold]{escape(alias)}[/bold] moves only with a second person's approval, asked for within {days} days", highlight=False)


@app.command(help="Let an alias move without approval again. Example: lorimer adapters unprotect champion --reason 'one person now'")
def unprotect(alias: Protected, reason: Reason = "") -> None:
    """Take an alias's protection away."""
    from lorimer.registry.approvals import unprotect as unprotect_alias

    name, alias_name = _split(alias)
    unprotect_alias(_open_registry(), alias_name, name=name, reason=reason)
    console.print(f"[bold]{escape(alias)}[/bold] moves past a passed gate alone", highlight=False)


@app.command(help="Promotions that wait for a second person, and protected aliases. Example: lorimer adapters requests --all")
def requests(
    every: Annotated[bool, typer.Option("--all", help="Those that were decided, or have expired, too.")] = False,
    json: Json = False,
) -> None:
    """Print requests, newest first."""
    from lorimer.registry.approvals import list_protected, list_requests

    registry = _open_registry()
    found, protected = list_requests(registry, waiting_only=not every), list_protected(registry)
    if json:
        print_json({"requests": [request.to_json() for request in found], "protected": [one.id for one in protected]})
        return
    console.print(f"Protected: {', '.join(one.id for one in protected) or 'no alias'}.", highlight=False)
    if found:
        print_table(("request", "alias", "version", "by", "at", "until", "state", "reason"), [
            (one.id, one.target, f"v{one.version}", one.requested_by, one.requested_at, one.expires_at, one.state, one.reason)
            for one in found
        ])  # fmt: skip


@app.command(help="Let a promotion happen, as the second person. Example: lorimer adapters approve 3fa9 --reason 'read the report'")
def approve(request: RequestId, reason: Reason = "", json: Json = False) -> None:
    """Approve a request and print where the alias points now."""
    from lorimer.registry import promotion

    moved = promotion.approve(_open_registry(), request, reason=reason)
    if json:
        print_json(
            {"alias": moved.id, "adapter": f"{moved.adapter_name}@v{moved.version}", "moved_at": moved.moved_at, "moved_by": moved.moved_by}
        )
        return
    console.print(f"[bold]{moved.id}[/bold] is {moved.adapter_name}@v{moved.version}", highlight=False)


@app.command(help="Refuse a promotion, as the second person. Example: lorimer adapters reject 3fa9 --reason 'no German rows'")
def reject(request: RequestId, reason: Reason = "", json: Json = False) -> None:
    """Reject a request."""
    from lorimer.registry.approvals import reject as reject_request

    rejected: PromotionRequest = reject_request(_open_registry(), request, reason=reason)
    if json:
        print_json(rejected.to_json())
        return
    console.print(f"request {rejected.id} for {rejected.version_id} is rejected: {rejected.target} stays where it is", highlight=False)


def _json_of(moved: "Alias") -> dict[str, Any]:
    version = f"{moved.adapter_name}@v{moved.version}"
    return {"alias": moved.id, "adapter": version, "moved_at": moved.moved_at, "moved_by": moved.moved_by}


def _split(alias: str) -> tuple[str, str]:
    """`helpdesk@champion` or `champion` -> the adapter, if one is named, and the alias."""
    from lorimer.registry.promotion import check_alias

    name, _, own = alias.rpartition("@")
    check_alias(own)
    if "@" in alias and not name:
        raise UsageError(f"{alias!r} names no adapter: write 'helpdesk@champion', or 'champion' for every adapter's")
    return name, own


def _judge_first(registry: "Registry", version: "AdapterVersion") -> None:
    """Ask the whole gate of an adapter's recipe, sealed items too, unless that was done."""
    from lorimer.cli.show import show_progress
    from lorimer.judging import judge_version, needs_judging
    from lorimer.model.base import load_base
    from lorimer.registry.recipes import has_recipe

    if has_recipe(registry, version) and needs_judging(registry, version):
        with working(f"Loading base {version.base_name}"):
            base = load_base(version.base_name)
        for _ in show_progress(judge_version(version, base), quiet=True):
            pass


def _open_registry() -> "Registry":
    from lorimer.database import open_database
    from lorimer.registry.registry import Registry

    return Registry(open_database())
