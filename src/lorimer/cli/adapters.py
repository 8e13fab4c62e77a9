"""`lorimer adapters`: what is registered, where it comes from, and which version an alias names."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lorimer.cli import aliases as alias_commands
from lorimer.cli.console import console, print_json, working
from lorimer.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from lorimer.evaluation.gates import GateResult
    from lorimer.registry.records import AdapterVersion
    from lorimer.registry.registry import Registry

app = typer.Typer(help="Registered adapters: where they come from, and which one an alias names.", no_args_is_help=True)
app.add_typer(alias_commands.app)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="`helpdesk` (its champion, else its newest), `helpdesk@v3`, `helpdesk@sha256:ab12cd`.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
STATUS_STYLES = {"ok": "green", "differs": "bold red", "absent": "dim"}
VERDICT_STYLES = {"PASS": "bold green", "FAIL": "bold red", "ERROR": "bold red", "INCONCLUSIVE": "bold yellow"}


@app.command("list", help="Every version of every adapter, newest first. Example: lorimer adapters list")
def list_all(json: Json = False) -> None:
    """Print one line per version."""
    registry = open_registry()
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
    registry = open_registry()
    version = registry.find(name)
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
        **({"erased": f"[red]fenced off by erasure {version.erasure}[/red]"} if version.erasure else {}),
    }
    for title, text in rows.items():
        console.print(f"[dim]{title:>10}[/dim]  {text}", highlight=False)


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

    version = compositions.compose(open_registry(), name, parts)
    if json:
        print_json(version.to_json())
        return
    console.print(f"[bold]{version.id}[/bold] is {_parts(version)} [dim]{version.digest[:16]}[/dim]", highlight=False)


@app.command(
    help="Hold all that is recorded of versions against what is here: files, seal, lock, base, tokenizer, template, dataset, gates, "
    "fingerprint. Example: lorimer adapters verify --all"
)
def verify(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A version by any of its names.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every version of every adapter.")] = False,
    json: Json = False,
) -> None:
    """Print a line per check; whatever differs ends the command with exit code 6."""
    from lorimer.registry.verification import Verifier

    registry = open_registry()
    reports = [Verifier(registry).verify(version) for version in _chosen(registry, name, every)]
    if json:
        print_json({"adapters": [report.to_json() for report in reports], "is_right": not any(report.differing for report in reports)})
    for report in () if json else reports:
        console.print(f"[bold]{report.version.id}[/bold]  {report.version.digest}", highlight=False)
        for one in report.checks:
            console.print(f"  [{STATUS_STYLES[one.status]}]{one.status:>7}[/]  {escape(f'{one.check}: {one.found}')}", highlight=False)
    if wrong := [f"{report.version.id} {text}" for report in reports for text in report.differing]:
        raise IntegrityError("; ".join(wrong))


@app.command(
    help="What a version was made of and what was found of it since, as one JSON object: base, tokenizer, template, libraries, dataset, "
    "recipe, seeds, files, fingerprint, gates. Example: lorimer adapters lock helpdesk@champion"
)
def lock(name: Name) -> None:
    """Print the whole lock of a version."""
    from lorimer.registry.lock import whole_lock

    registry = open_registry()
    print_json(whole_lock(registry, registry.resolve(name)))


@app.command(
    help="Sign an adapter's files with this home's key: those from before there were seals, or signed with a key that is no longer "
    "trusted. Example: lorimer adapters sign --all"
)
def sign(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A version by any of its names.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every version of every adapter.")] = False,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit chain.")] = "",
    json: Json = False,
) -> None:
    """Seal files that are what was registered, and print by which key."""
    from lorimer.registry.sealing import Seals

    registry = open_registry()
    chosen = [version for version in _chosen(registry, name, every) if not version.parts]
    signed = [(version, Seals(registry.engine).renew(version.digest, version.path, reason=reason)) for version in chosen]
    if json:
        print_json({"adapters": [{"id": v.id, "manifest_digest": seal.manifest_digest, "key_id": seal.key_id} for v, seal in signed]})
        return
    for version, seal in signed:
        console.print(f"[bold]{version.id}[/bold] is signed by {seal.key_id[:16]}: {len(seal.files)} files", highlight=False)


@app.command(
    "import",
    help="Register a folder in PEFT's format from elsewhere, once it is seen to fit its base. "
    "Example: lorimer adapters import ./sql-lora --name sql --base gemma3-270m",
)
def import_folder(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With `adapter_model.safetensors` and `adapter_config.json`.")],
    name: Annotated[str, typer.Option(help="What it is registered as; each import is the next version.")],
    base: Annotated[str | None, typer.Option(help="Its base; by default the one that its files name.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="What it is held to before it is promoted: its `dataset`'s test items, `metric` and `gate`.")
    ] = None,
    allow_unsigned: Annotated[bool, typer.Option("--allow-unsigned", help="Nobody trusted has signed it; recorded as such.")] = False,
    json: Json = False,
) -> None:
    """Check, register and print what was imported."""
    from lorimer.config import read_recipe
    from lorimer.registry.imports import base_name_of, import_adapter, origin_of

    registry = open_registry()
    held_to = read_recipe(recipe) if recipe else None
    origin = origin_of(registry, folder, allow_unsigned=allow_unsigned)  # before the base is loaded for it
    with working("loading the base"):
        from lorimer.model.base import load_base

        loaded = load_base(base or (held_to.base if held_to else base_name_of(folder)))
    version = import_adapter(registry, folder, name, loaded, recipe=held_to, allow_unsigned=allow_unsigned)
    if json:
        print_json({**version.to_json(), "origin": origin})
        return
    console.print(f"[bold]{version.id}[/bold] on {escape(version.base_name)} [dim]{version.digest[:16]}[/dim], {origin}", highlight=False)


def open_registry() -> "Registry":
    """The registry of this home."""
    from lorimer.database import open_database
    from lorimer.registry.registry import Registry

    return Registry(open_database())


def _chosen(registry: "Registry", name: str | None, every: bool) -> "tuple[AdapterVersion, ...]":
    """The one version that was named, or all."""
    if every == (name is not None):
        raise UsageError("name one adapter, as `helpdesk@v3`, or give `--all`")
    if name is not None:
        return (registry.resolve(name),)
    return tuple(version for version in registry.list_versions() if version.erasure is None)


def _aliases(registry: "Registry", version: "AdapterVersion") -> list[str]:
    return [alias.alias for alias in registry.aliases(version.name) if alias.version == version.version]


def _report_path(version: "AdapterVersion") -> str | None:
    from lorimer.evaluation.pages.page import report_folder

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
