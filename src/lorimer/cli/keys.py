"""`lorimer keys`: who may ask a server for what. Keys are made here and shown once; servers look them up at every request."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from lorimer.cli.console import console, error_console, print_json
from lorimer.errors import UsageError

if TYPE_CHECKING:
    from lorimer.serving.grants import Grant, Quota
    from lorimer.serving.keys import ApiKey, Keys

app = typer.Typer(help="API keys: who may ask a server, for which adapters, and how much.", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(metavar="KEY", help="A key's prefix, as much of it as no other key shares, or its name.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Limit = Annotated[int | None, typer.Option(min=1, help="For all keys of the tenant together; by default without limit.")]
NewLimit = Annotated[int | None, typer.Option(min=0, help="0 takes the limit away; what is left out stays as it is.")]
STATE_STYLES = {"active": "bold green", "expired": "yellow", "revoked": "bold red"}


@app.command(
    help="Make a key; it is shown this once. Example: lorimer keys create --tenant acme --adapters 'helpdesk,sql@v3' --concurrency 4"
)
def create(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="What the key is called in lists; by default as its tenant.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose it is; by default as the key's name.")] = None,
    adapters: Annotated[str, typer.Option(help="Names or versions with commas between, or '*' for all.")] = "*",
    base: Annotated[bool | None, typer.Option("--base/--no-base", help="May ask the base too; by default only with '*'.")] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrency: Limit = None,
    max_context: Annotated[int | None, typer.Option(min=1, help="Tokens of prompt and answer together.")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(min=1, help="Of one request.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Expires after so many days; by default never.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May load and unload adapters and read /metrics.")] = False,
    json: Json = False,
) -> None:
    """Make a key and print it, once."""
    from lorimer.serving.grants import ALL_ADAPTERS, Grant, Quota

    if name is None and tenant is None:
        raise UsageError("whose key is it? Give a name, as `lorimer keys create acme`, or `--tenant`")
    names = tuple(dict.fromkeys(part.strip() for part in adapters.split(",") if part.strip()))
    grant = Grant(
        adapters=names,
        may_use_base=ALL_ADAPTERS in names if base is None else base,
        is_admin=admin,
        max_context=max_context,
        max_body_bytes=max_body_bytes,
    )
    quota = Quota(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, concurrency=concurrency)
    keys = _open_keys()
    new = keys.create(name or tenant or "", tenant=tenant or name or "", grant=grant, quota=quota, days=days)
    _warn_of_unknown(keys, grant)
    if json:
        print_json({"key": new.text, **_json_of(keys, new.key)})
        return
    _print_key(keys, new.key)
    console.print(f"\n{new.text}\n", markup=False, highlight=False)
    console.print("Keep it now: it is not shown again. Clients send it as `Authorization: Bearer KEY`.", highlight=False)


@app.command("list", help="Every key, oldest first. Example: lorimer keys list")
def list_all(json: Json = False) -> None:
    """Print one line per key."""
    keys = _open_keys()
    found = keys.list_keys()
    if json:
        print_json({"keys": [_json_of(keys, key) for key in found]})
        return
    if not found:
        console.print("No keys yet: `lorimer keys create NAME` makes one. Until then a server answers this machine alone.")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("key", "name", "tenant", "state", "may use", "limits of the tenant", "last used"):
        table.add_column(title, overflow="fold", no_wrap=title in ("key", "state"))
    for key in found:
        names = (key.prefix, escape(key.name), escape(key.tenant), _state(keys, key))
        table.add_row(*names, escape(_rights(key.grant)), _limits(key.quota), (key.last_used_at or "never")[:16])
    console.print(table)


@app.command(help="One key: what it may use, its tenant's limits, when it was used. Example: lorimer keys show 3fa9c01b77de")
def show(key: Reference, json: Json = False) -> None:
    """Print all but the secret, which nobody has."""
    keys = _open_keys()
    found = keys.find(key)
    if json:
        print_json(_json_of(keys, found))
    else:
        _print_key(keys, found)


@app.command(help="End a key at once and for good. Example: lorimer keys revoke 3fa9c01b77de")
def revoke(key: Reference, json: Json = False) -> None:
    """Revoke a key and say when that was."""
    keys = _open_keys()
    revoked = keys.revoke(key)
    if json:
        print_json(_json_of(keys, revoked))
    else:
        names = f"Key {revoked.prefix} ({revoked.name}) of tenant {revoked.tenant}"
        console.print(f"{names} is revoked since {revoked.revoked_at}.", markup=False, highlight=False)


@app.command(help="Change a tenant's limits, for all its keys and at once. Example: lorimer keys limit acme --requests-per-minute 120")
def limit(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose limits.")],
    requests_per_minute: NewLimit = None,
    tokens_per_minute: NewLimit = None,
    concurrency: NewLimit = None,
    json: Json = False,
) -> None:
    """Change what was given, and print the limits as they are now."""
    from dataclasses import asdict, replace

    given = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute, "concurrency": concurrency}
    changes = {name: value or None for name, value in given.items() if value is not None}
    if not changes:
        raise UsageError(f"what is to change? Give `--{next(iter(given)).replace('_', '-')}`, `--tokens-per-minute` or `--concurrency`")
    keys = _open_keys()
    quota = replace(keys.quota(tenant), **changes)
    keys.limit(tenant, quota)
    if json:
        print_json({"tenant": tenant, **asdict(quota)})
    else:
        console.print(f"Tenant {tenant}: {_limits(quota)}, for all its keys together.", markup=False, highlight=False)


def _open_keys() -> "Keys":
    from lorimer.database import open_database
    from lorimer.serving.keys import Keys

    return Keys(open_database())


def _warn_of_unknown(keys: "Keys", grant: "Grant") -> None:
    """A key may be made before its adapters; a name nobody has is said, lest it be a slip."""
    from lorimer.registry.registry import Registry
    from lorimer.serving.grants import ALL_ADAPTERS

    known = {name for version in Registry(keys.engine).list_versions() for name in (version.name, version.id)}
    missing = [name for name in grant.adapters if name not in known and name != ALL_ADAPTERS]
    if missing:
        error_console.print(f"Not registered yet: {', '.join(missing)}.", style="yellow", markup=False, highlight=False)


def _json_of(keys: "Keys", key: "ApiKey") -> dict[str, Any]:
    return {**key.to_json(), "state": key.state(keys.now)}


def _print_key(keys: "Keys", key: "ApiKey") -> None:
    grant = key.grant
    sizes = {"context": (grant.max_context, "tokens"), "body": (grant.max_body_bytes, "bytes")}
    rows = {
        "key": f"[bold]{key.prefix}[/bold]  {escape(key.name)}  {_state(keys, key)}",
        "tenant": escape(key.tenant),
        "may use": escape(_rights(grant)),
        "limits": f"{_limits(key.quota)} [dim](all keys of {escape(key.tenant)} together)[/dim]",
        **{title: f"at most {most:,} {unit}" for title, (most, unit) in sizes.items() if most is not None},
        "created": escape(f"{key.created_at} by {key.created_by}"),
        "expires": key.expires_at or "never",
        "revoked": key.revoked_at or "",
        "last used": key.last_used_at or "never",
    }
    for title, text in rows.items():
        if text:
            console.print(f"[dim]{title:>10}[/dim]  {text}", highlight=False)


def _rights(grant: "Grant") -> str:
    """`helpdesk, sql@v3, base; administers`"""
    names = ["all adapters" if name == "*" else name for name in grant.adapters] + (["base"] if grant.may_use_base else [])
    return ", ".join(names) + ("; administers" if grant.is_admin else "")


def _limits(quota: "Quota") -> str:
    from lorimer.serving.grants import describe_quota

    return describe_quota(quota)


def _state(keys: "Keys", key: "ApiKey") -> str:
    state = key.state(keys.now)
    return f"[{STATE_STYLES[state]}]{state}[/]"
