"""`lorimer data`: bring examples in, and look at what is there."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from lorimer.cli.console import console, print_json
from lorimer.config import ColumnNames
from lorimer.data import curate as curation
from lorimer.data.dataset import Dataset, list_datasets, read_dataset
from lorimer.data.split import SPLITS

app = typer.Typer(help="Bring examples in, check and clean them, and look at the datasets that are here.", no_args_is_help=True)

NUM_ROWS_SHOWN = 3
Name = Annotated[str, typer.Argument(metavar="NAME", help="A dataset's name or digest.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command("curate", help="Import, check, clean and split files. Example: lorimer data curate tickets.jsonl --name support")
def curate(
    sources: Annotated[list[Path], typer.Argument(metavar="SRC...", help="JSONL, JSON, CSV or TSV files.")],
    name: Annotated[str, typer.Option(help="The dataset's name: lower-case letters, digits, - and _.")],
    prompt_column: Annotated[str | None, typer.Option(help="The column with the prompt, where it is not recognised.")] = None,
    completion_column: Annotated[str | None, typer.Option(help="The column with the wanted answer.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The column with plain text to learn.")] = None,
    system_column: Annotated[str | None, typer.Option(help="The column with each row's own system message.")] = None,
    language_column: Annotated[str | None, typer.Option(help="The column with each row's language tag.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message put before every row that has none.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Keep rows in this language (en, pt-BR); may be repeated.")] = None,
    test: Annotated[
        Path | None, typer.Option(help="A file whose rows are the test split; its prompts are removed from the others.")
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Go on without rows that cannot be read; the card lists them.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another split.")] = 0,
    json: Json = False,
) -> None:
    """Import, check, clean and split files."""
    columns = ColumnNames(
        prompt=prompt_column, completion=completion_column, text=text_column, system=system_column, language=language_column
    )
    dataset = curation.curate(
        sources,
        name=name,
        columns=columns if columns != ColumnNames() else None,
        system=system,
        languages=language,
        test_source=test,
        seed=seed,
        skip_bad_rows=skip_bad_rows,
    )
    if json:
        print_json(_describe(dataset))
    else:
        _print_summary(dataset)


@app.command("list", help="The datasets that are here. Example: lorimer data list --json")
def list_all(json: Json = False) -> None:
    """Print one line per dataset."""
    found = list_datasets()
    if json:
        print_json({"datasets": [{**asdict(dataset), "path": str(dataset.path)} for dataset in found]})
        return
    if not found:
        console.print("No datasets yet: `lorimer data curate FILE --name NAME` makes one.")
        return
    table = Table("name", *SPLITS, "digest", box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for dataset in found:
        table.add_row(dataset.name, *(f"{dataset.num_examples[split]:,}" for split in SPLITS), dataset.digest[:16])
    console.print(table)


@app.command(help="A dataset's card in short, and its first rows. Example: lorimer data show support")
def show(name: Name, json: Json = False) -> None:
    """Print a dataset's card and its first rows."""
    dataset = read_dataset(name)
    rows = dataset.train[:NUM_ROWS_SHOWN]
    if json:
        print_json({**_describe(dataset), "examples": [row.to_json() for row in rows]})
        return
    _print_summary(dataset)
    for row in rows:
        console.print(f"\n[dim]{escape(row.source)}[/dim]")
        turns: list[tuple[str, str]] = [(message.role, message.content) for message in row.messages] or [("text", row.text or "")]
        for role, content in turns:
            console.print(f"[cyan]{role:>9}[/cyan]  {escape(content)}", highlight=False)


@app.command(help="The path of a dataset's report, one page for a browser. Example: open $(lorimer data report support)")
def report(name: Name) -> None:
    """Print where a dataset's report is."""
    typer.echo(read_dataset(name).path / "card.html")


def _describe(dataset: Dataset) -> dict[str, Any]:
    paths = {"path": str(dataset.path), "report": str(dataset.path / "card.html")}
    return {"name": dataset.name, "digest": dataset.digest, **paths, "card": dataset.card}


def _print_summary(dataset: Dataset) -> None:
    card = dataset.card
    console.print(f"[bold]{escape(dataset.name)}[/bold] [dim]{dataset.digest[:16]}[/dim]")
    for source in card["sources"]:
        columns = ", ".join(column if part == column else f"{column} as {part}" for part, column in source["columns"].items())
        unused = f"; columns not used: {', '.join(source['columns_not_used'])}" if source["columns_not_used"] else ""
        line = f"  {source['file']} ({source['use']}): {source['num_examples']:,} rows, {source['shape']} ({columns}){unused}"
        console.print(escape(line), highlight=False)
    counts = ", ".join(f"{split} {described['num_examples']:,}" for split, described in card["splits"].items())
    console.print(f"  {counts}", highlight=False)
    for finding in card["findings"]:
        examples = f" ({', '.join(finding['examples'])})" if finding["examples"] else ""
        console.print(f"  [dim]{finding['rule']}:[/dim] {escape(finding['message'])}[dim]{escape(examples)}[/dim]", highlight=False)
    console.print(f"  rows    {escape(str(dataset.path))}\n  report  {escape(str(dataset.path / 'card.html'))}", highlight=False)
