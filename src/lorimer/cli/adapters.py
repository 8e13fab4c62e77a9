"""`lorimer adapters`: what is registered, where it comes from, and which version an alias names."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lorimer.cli.console import console, print_json

if TYPE_CHECKING:
    from lorimer.evaluation.gates import GateResult
    from lorimer.registry.records import AdapterVersion
    from lorimer.registry.registry import Registry

app = typer.Typer(help="Registered adapters: where they come from, and which one an alias names.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="`helpdesk` (its champion, else its newest), `helpdesk@v3`, `helpdesk@sha256:ab12cd`.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
VERDICT_STYLES = {"PASS": "bold green", "FAIL": "bold red", "ERROR": "bold red", "INCONCLUSIVE": "bold yellow"}


@app.command("list", help="Every version of every adapter, newest first. Example: lorimer adapters list")
def list_all(json: Json = False) -> None:
    """Print one line per version."""
    registry = _open_registry()
    versions = registry.list_versions()
    if json:
        print_json({"adapters": [{**version.to_json(), "aliases": _aliases(registry, version)} for version in versions]})
        return
    if not versions:
        console.print("No adapters yet: `lorimer train RECIPE` makes one.")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("adapter", "aliases", "gate", "base", "dataset or parts", "size", "registered"):
        table.add_column(
            title, justify="right" if title == "size" else "left", overflow="fold", no_wrap=title in ("adapter", "gate", "registered")
        )
    for version in versions:
        names = (
            version.id,
            ", ".join(_aliases(registry, version)),
            _verdict(version),
            escape(version.base_name),
            _parts(version) if version.parts else escape(version.dataset_name),
        )
        table.add_row(*names, _size(version.num_bytes), version.created_at[:10])
    console.print(table)


@app.command(help="One version: lineage by digest, report, gate, aliases. Example: lorimer adapters show helpdesk@champion")
def show(name: Name, json: Json = False) -> None:
    """Print where a version comes from and what its gate said."""
    registry = _open_registry()
    version = registry.resolve(name)
    gate, aliases, report_path = registry.newest_gate(version), _aliases(registry, version), _report_path(version)
    if json:
        print_json({**version.to_json(), "aliases": aliases, "report_path": report_path, "gate": gate and gate.to_json()})
        return
    weights = f"rank {version.rank}, alpha {version.alpha:g}, {version.num_parameters:,} parameters, {_size(version.num_bytes)}"
    origin = {
        "dataset": escape(f"{version.dataset_name}  {version.dataset_digest}"),
        "run": escape(version.run_id),
        "weights": weights,
        "files": escape(str(version.path)),
    }
    rows = {
        "adapter": f"[bold]{version.id}[/bold]  {version.digest}",
        "aliases": ", ".join(aliases) or "none",
        "base": escape(f"{version.base_name}  {version.base_digest}"),
        "template": version.template_digest,
        **({"parts": _parts(version)} if version.parts else origin),
        "report": escape(report_path or version.report_digest or "none"),
        "gate": f"{_verdict(version)}{_gate_words(gate)}",
        "registered": escape(f"{version.created_at} by {version.created_by}"),
    }
    for title, text in rows.items():
        console.print(f"[dim]{title:>10}[/dim]  {text}", highlight=False)


@app.command(
    help="Point an alias at a version whose gate passed. Example: lorimer adapters promote helpdesk@v3 --reason 'better in German'"
)
def promote(
    name: Name,
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "champion",
    reason: Annotated[str, typer.Option(help="Why; kept in the audit table.")] = "",
    json: Json = False,
) -> None:
    """Move an alias and print where it points now."""
    from lorimer.registry import promotion

    registry = _open_registry()
    version = registry.resolve(name)
    moved = promotion.promote(registry, version, alias=alias, reason=reason)
    if json:
        print_json(
            {"alias": moved.id, "adapter": version.id, "digest": version.digest, "moved_at": moved.moved_at, "moved_by": moved.moved_by}
        )
        return
    console.print(
        f"[bold]{moved.id}[/bold] is {version.id} [dim]{version.digest[:16]}[/dim], gate [bold green]PASS[/bold green]", highlight=False
    )


@app.command(
    help="Name several adapters as one: each with a scale, in the versions they have now. "
    "Example: lorimer adapters compose reports sql@v3*0.7 tone"
)
def compose(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the composition is asked for as; each new one is its next version.")],
    parts: Annotated[list[str], typer.Argument(metavar="ADAPTER[*SCALE]...", help="`sql@v3*0.7`: an adapter or composition and a scale.")],
    json: Json = False,
) -> None:
    """Make a version that is the sum of others, and print it."""
    from lorimer.registry import compositions

    version = compositions.compose(_open_registry(), name, parts)
    if json:
        print_json(version.to_json())
        return
    console.print(f"[bold]{version.id}[/bold] is {_parts(version)} [dim]{version.digest[:16]}[/dim]", highlight=False)


def _open_registry() -> "Registry":
    from lorimer.database import open_database
    from lorimer.registry.registry import Registry

    return Registry(open_database())


def _aliases(registry: "Registry", version: "AdapterVersion") -> list[str]:
    return [alias.alias for alias in registry.aliases(version.name) if alias.version == version.version]


def _report_path(version: "AdapterVersion") -> str | None:
    from lorimer.evaluation.page import report_folder

    page = report_folder(version.report_digest) / "report.html" if version.report_digest else None
    return str(page) if page and page.is_file() else None


def _verdict(version: "AdapterVersion") -> str:
    verdict = version.gate_verdict
    return f"[{VERDICT_STYLES[verdict]}]{verdict}[/]" if verdict else "[dim]none[/dim]"


def _gate_words(gate: "GateResult | None") -> str:
    return "".join(f"\n{'':>10}  {escape(f'{check.reason} {check.remedy}'.strip())}" for check in (gate.checks if gate else ()))


def _parts(version: "AdapterVersion") -> str:
    from lorimer.registry.compositions import spell

    return " + ".join(spell(part.id, part.scale) for part in version.parts)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
