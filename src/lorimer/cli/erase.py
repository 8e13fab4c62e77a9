"""`lorimer erase` and `lorimer erasures ...`: a person's rows taken back, out of data, adapters, logs and what was made of them."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from lorimer.cli.console import console, error_console, print_json, print_table
from lorimer.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from lorimer.registry.erasures import Erasure
    from lorimer.registry.registry import Registry

app = typer.Typer(
    help="Requests to erase somebody's rows: who asked, by when, how far each is. Begin one with `lorimer erase`.", no_args_is_help=True
)
HELP = (
    "Erase all rows of a person, and retrain what learned from them. Examples: lorimer erase --subject customer-17 --dry-run; "
    "lorimer erase --subject customer-17 --reason 'letter of 3 May'"
)
Subjects = Annotated[
    list[str], typer.Option("--subject", metavar="ID", help="The person's id, as data had it; may be given several times.")
]
Subject = Annotated[str, typer.Option(help="The person's id, as data had it.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the audit chain. Name no person in it.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Id = Annotated[str, typer.Argument(metavar="ERASURE", help="Its id, or the beginning of it: `lorimer erasures list`.")]
Fallback = Annotated[
    bool, typer.Option("--accept-fallback", help="Leave routes where they fell back to, if what was trained anew did not pass its gate.")
]


def erase(
    subject: Subjects,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print how far the rows have gone, and change nothing.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Approve it too, where nobody has a role yet; then it is carried out at once.")
    ] = False,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Ask for an erasure; it waits for a second person (exit code 4) unless `--yes` may approve it."""
    from lorimer.erase import preview, request
    from lorimer.registry.audit import now
    from lorimer.registry.erasures import a_month_after, approve

    registry = _open_registry()
    if dry_run:
        found = preview(registry, subject)
        due = a_month_after(now())
        if json:
            print_json({**found.to_json(), "due_at": due})
        else:
            _print_scope(found.to_json(), f"{due[:10]}, one month from today (GDPR Art. 12(3))")
        return
    erasure = request(registry, subject, reason=reason)
    if yes and erasure.state == "scoped":
        erasure = approve(registry, [erasure.id], reason=reason, allows_same_person=True)
    if erasure.state in ("received", "scoped") and json:
        print_json(erasure.to_json())
    elif erasure.state in ("received", "scoped"):
        _print_erasure(erasure)
    _carry_out(registry, erasure.id, json=json)


@app.command("list", help="Requests that are open, the one that is due first first. Example: lorimer erasures list --all")
def list_(
    every: Annotated[bool, typer.Option("--all", help="Those that are done, rejected or merged into others too.")] = False,
    json: Json = False,
) -> None:
    """Print requests with their deadlines."""
    from lorimer.registry.erasures import ENDED, list_erasures

    found = list_erasures(_open_registry(), open_only=not every)
    if json:
        print_json({"erasures": [one.to_json() for one in found]})
        return
    if not found:
        console.print("No erasure is open.")
        return
    rows = (
        (one.id, one.state, one.requested_at[:10], one.requested_by, one.due_at[:10], _words(one) if one.state not in ENDED else "")
        for one in found
    )
    print_table(("erasure", "state", "asked", "by", "due", ""), rows)


@app.command(help="One request: what it reaches, what was done. Example: lorimer erasures show 3fa9")
def show(erasure: Id, json: Json = False) -> None:
    """Print all that is known of a request."""
    from lorimer.registry.erasures import find_erasure

    found = find_erasure(_open_registry(), erasure)
    if json:
        print_json(found.to_json())
    else:
        _print_erasure(found)


@app.command(
    help="Let erasures happen, as the second person, and carry them out; several are retrained once. "
    "Example: lorimer erasures approve 3fa9 7c01 --reason 'identity checked'"
)
def approve(
    erasures: Annotated[list[str], typer.Argument(metavar="ERASURE...", help="Ids, or their beginnings.")],
    yes: Annotated[bool, typer.Option("--yes", help="The same person may, as long as nobody has a role.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Approve alone: `lorimer erasures resume` carries it out.")] = False,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Approve, and go on to the end."""
    from lorimer.registry.erasures import approve as approve_erasures

    registry = _open_registry()
    approved = approve_erasures(registry, erasures, reason=reason, allows_same_person=yes)
    if not wait:
        _carry_out(registry, approved.id, json=json)
    elif json:
        print_json(approved.to_json())
    else:
        _print_erasure(approved)


@app.command(help="Refuse a request; the person has to be told why. Example: lorimer erasures reject 3fa9 --reason 'identity not shown'")
def reject(erasure: Id, reason: Reason = "", json: Json = False) -> None:
    """Reject, and print the request."""
    from lorimer.registry.erasures import reject as reject_erasure

    found = reject_erasure(_open_registry(), erasure, reason=reason)
    if json:
        print_json(found.to_json())
    else:
        console.print(f"erasure {found.id} is rejected", highlight=False)


@app.command(help="Go on with an approved erasure, wherever it was interrupted. Example: lorimer erasures resume 3fa9")
def resume(erasure: Id, accept_fallback: Fallback = False, json: Json = False) -> None:
    """Carry out what is left of it."""
    _carry_out(_open_registry(), erasure, json=json, accepts_fallback=accept_fallback)


@app.command(help="The signed receipt, once its signature is checked. Example: lorimer erasures receipt 3fa9 > receipt.json")
def receipt(
    erasure: Id,
    plain: Annotated[bool, typer.Option("--plain", help="What it says, without the envelope it is signed in.")] = False,
) -> None:
    """Print the envelope as one JSON object."""
    from lorimer.registry.erasures import find_erasure
    from lorimer.registry.receipt import read_receipt
    from lorimer.registry.trust import trusted

    registry = _open_registry()
    found = find_erasure(registry, erasure)
    if found.receipt is None:
        raise UsageError(f"erasure {found.id} is {found.state}: it has a receipt once it is certified")
    said = read_receipt(found.receipt, trusted(registry.engine))
    print_json(said if plain else found.receipt)


@app.command(help="Erase again what came back here, as every restore does of itself. Example: lorimer erasures replay")
def replay(json: Json = False) -> None:
    """Replay all tombstones on this home."""
    from lorimer.erase import exclusively
    from lorimer.registry.replay import replay_tombstones

    registry = _open_registry()
    with exclusively(registry):
        taken = replay_tombstones(registry.engine)
    if json:
        print_json({"came_back": taken is not None, **(taken.to_json() if taken else {})})
    else:
        console.print("What had come back is erased again." if taken else "Nothing that was erased is here.")


@app.command(help="Keep a person's rows from being erased. Example: lorimer erasures hold --subject customer-17 --reason 'case 4711'")
def hold(subject: Subject, reason: Reason = "") -> None:
    """Place a legal hold."""
    from lorimer.registry.erasures import place_hold

    registry = _open_registry()
    place_hold(registry, _key_of(registry, subject), reason=reason)
    console.print("The rows are on legal hold: no erasure of them is approved until it is lifted.")


@app.command(help="End a legal hold. Example: lorimer erasures lift --subject customer-17 --reason 'case closed'")
def lift(subject: Subject, reason: Reason = "") -> None:
    """Lift a legal hold."""
    from lorimer.registry.erasures import lift_hold

    registry = _open_registry()
    lift_hold(registry, _key_of(registry, subject), reason=reason)
    console.print("The legal hold is lifted.")


def _key_of(registry: "Registry", subject: str) -> str:
    from lorimer.data.subjects import find_key

    key = find_key(registry.engine, subject)
    if key is None:
        raise NotFoundError(f"nothing here is known of {subject!r}: no row carries a key of theirs")
    return key


def _carry_out(registry: "Registry", erasure_id: str, *, json: bool, accepts_fallback: bool = False) -> None:
    """Go on to the end, a line for each step; whatever stops it is an error with its exit code."""
    from lorimer.erase import carry_out
    from lorimer.registry.erasures import Erasure, find_erasure
    from lorimer.training.loop import StepMetrics

    for made in carry_out(registry, erasure_id, accepts_fallback=accepts_fallback):
        if isinstance(made, Erasure):
            error_console.print(f"{made.id} is {made.state}", style="dim", highlight=False)
        elif not isinstance(made, StepMetrics) and type(made).__name__ == "AdapterVersion":
            error_console.print(f"  {made.id} trained anew without the rows", style="dim", highlight=False)  # type: ignore[union-attr]
    done = find_erasure(registry, erasure_id)
    if json:
        print_json(done.to_json())
    else:
        _print_erasure(done)


def _words(erasure: "Erasure") -> str:
    left = erasure.days_left
    late = f"{left} days left" if left >= 0 else f"{-left} days late"
    return f"{late}, waits for approval" if erasure.state in ("received", "scoped") else late


def _print_erasure(erasure: "Erasure") -> None:
    document = erasure.document
    approved = f", approved {erasure.approved_at} by {erasure.approved_by}" if erasure.approved_at else ""
    console.print(f"[bold]{erasure.id}[/bold]  {erasure.state}", highlight=False)
    rows = {"asked": f"{erasure.requested_at} by {erasure.requested_by}{approved}"}
    if document.get("into"):
        rows["merged"] = f"into {document['into']}"
    if retrained := document.get("retrained"):
        rows["retrained"] = ", ".join(f"{one['id'] or 'nothing'} ({one['verdict']})" for one in retrained.values())
    if others := document.get("not_retrained"):
        rows["not again"] = ", ".join(others)
    if routes := document.get("routes"):
        rows["routes"] = ", ".join(_route_words(route) for route in routes)
    if taken := document.get("taken"):
        search = taken["search"]
        rows["searched"] = f"{search['num_texts']} texts in {search['num_files'] + search['num_objects']} files: none is left"
        if taken["not_removed"]:
            rows["by hand"] = ", ".join(taken["not_removed"])
    if erasure.receipt:
        rows["receipt"] = f"lorimer erasures receipt {erasure.id}"
    for title, words in rows.items():
        console.print(f"[dim]{title:>10}[/dim]  {escape(words)}", highlight=False)
    if "scope" in document:
        _print_scope(document["scope"], f"{erasure.due_at[:10]} (GDPR Art. 12(3))")


def _route_words(route: dict[str, Any]) -> str:
    fallback = f"v{route['fallback']}" if route["fallback"] else "the base"
    return f"{route['name']}@{route['alias']}: v{route['version']} -> {route.get('released') or fallback}"


def _print_scope(scope: dict[str, Any], due: str) -> None:
    names = [f"{one['name']} {one['digest'][:12]} ({sum(one['num_rows'].values())} rows)" for one in scope["datasets"]]
    rows = {
        "rows": f"{scope['num_records']:,}, of them {scope['num_synthetic']:,} made from others; "
        f"{scope['num_twins_left_out']:,} twins stay left out; {scope['num_request_lines']:,} lines of the request log",
        "datasets": ", ".join(names),
        "adapters": ", ".join(scope["versions"]),
        "merges": ", ".join(scope["merges"]),
        "composed": ", ".join(scope["compositions"]),
        "live": ", ".join(f"{one['alias']} ({one['adapter']})" for one in scope["aliases"]),
        "exports": ", ".join(f"{one['adapter']} -> {one['place']}" for one in scope["exports"]),
        "left": ", ".join(f"{one['adapter']} -> {one['place']}: tell who has it (Art. 19)" for one in scope["left_platform"]),
        "due": due,
    }
    for title, words in rows.items():
        console.print(f"[dim]{title:>10}[/dim]  {escape(words) or 'none'}", highlight=False)


def _open_registry() -> "Registry":
    from lorimer.database import open_database
    from lorimer.registry.registry import Registry

    return Registry(open_database())
