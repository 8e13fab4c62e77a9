"""`lorimer data`: bring examples in, and look at what is there."""

from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from lorimer.cli.augment import augment
from lorimer.cli.console import console, print_json, progress_bar
from lorimer.config import ColumnNames, Curation, read_curation
from lorimer.errors import UsageError

if TYPE_CHECKING:  # what reads rows takes a moment to import, which other commands need not wait for
    from lorimer.data.dataset import DatasetFolder

app = typer.Typer(help="Bring examples in, check and clean them, and look at the datasets that are here.", no_args_is_help=True)

app.command("augment")(augment)

NUM_ROWS_SHOWN = 3
SPLIT_NAMES = ("train", "validation", "test")
Name = Annotated[str, typer.Argument(metavar="NAME", help="A dataset's name or digest.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command("curate", help="Import, check, clean and split rows. Example: lorimer data curate tickets.jsonl --name support")
def curate(
    name: Annotated[str, typer.Option(help="The dataset's name: lower-case letters, digits, - and _.")],
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="SRC...", help="JSONL, JSON, CSV, TSV or Parquet files, folders of them, or datasets saved by Hugging Face."
        ),
    ] = None,
    sql: Annotated[str | None, typer.Option(help="A database's URL, for --query: postgresql://user:password@host/name.")] = None,
    query: Annotated[str | None, typer.Option(help="A select whose rows are read.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="The column with the prompt, where it is not recognised.")] = None,
    completion_column: Annotated[str | None, typer.Option(help="The column with the wanted answer.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The column with plain text to learn.")] = None,
    system_column: Annotated[str | None, typer.Option(help="The column with each row's own system message.")] = None,
    language_column: Annotated[str | None, typer.Option(help="The column with each row's language tag.")] = None,
    licence_column: Annotated[str | None, typer.Option(help="The column with each row's licence.")] = None,
    consent_column: Annotated[str | None, typer.Option(help="The column that says what each row's subject agreed to.")] = None,
    subject_column: Annotated[str | None, typer.Option(help="The column that says whom a row is about; kept as a random key.")] = None,
    group_by: Annotated[str | None, typer.Option(help="Keep rows with the same value in this column in one split.")] = None,
    licence: Annotated[str, typer.Option(help="The licence of all rows whose column says none.")] = "",
    consent: Annotated[str, typer.Option(help="The consent under which all rows were given whose column says none.")] = "",
    system: Annotated[str | None, typer.Option(help="A system message put before every row that has none.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Keep rows in this language (en, pt-BR); may be repeated.")] = None,
    test: Annotated[
        Path | None, typer.Option(help="A file whose rows are the test split; its prompts are removed from the others.")
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(help="A YAML file that says which rules run and how; `lorimer data rules` shows them.")
    ] = None,
    stratify: Annotated[bool, typer.Option("--stratify", help="Hold back the same share of every answer, where answers repeat.")] = False,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Go on without rows that cannot be read; the card lists them.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another split.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that read; by default one a core.")] = None,
    json: Json = False,
) -> None:
    """Import, check, clean and split rows."""
    from lorimer.data.contamination import check_contamination
    from lorimer.data.curate import curate_to_disk
    from lorimer.data.queries import open_query
    from lorimer.evaluation.suite import texts_by_suite

    if (sql is None) != (query is None):
        raise UsageError("`--sql` and `--query` go together: say which database, and what to select")
    columns = ColumnNames(
        prompt=prompt_column,
        completion=completion_column,
        text=text_column,
        system=system_column,
        language=language_column,
        licence=licence_column,
        consent=consent_column,
        subject=subject_column,
        group=group_by,
    )
    asked = read_curation(rules) if rules else Curation()
    if stratify:
        asked = asked.model_copy(update={"split": asked.split.model_copy(update={"stratify": True})})
    with progress_bar() as bar:
        dataset = curate_to_disk(
            sources or [],
            name=name,
            columns=columns if columns != ColumnNames() else None,
            system=system,
            languages=language,
            test_source=test,
            rules=asked,
            query=open_query(sql, query) if sql is not None and query is not None else None,
            licence=licence,
            consent=consent,
            seed=seed,
            skip_bad_rows=skip_bad_rows,
            workers=workers,
            progress=_reporter(bar),
        )
    if json:
        print_json(_describe(dataset))
        return
    _print_summary(dataset)
    for found in check_contamination(dataset, suites=texts_by_suite()):
        console.print(f"  [yellow]contamination:[/yellow] {escape(found.describe())}", highlight=False)


@app.command(help="Which rules there are, what they do unasked, and a rules file to begin with. Example: lorimer data rules > rules.yaml")
def rules(json: Json = False) -> None:
    """Print the catalogue of rules."""
    from lorimer.data.catalogue import describe_rules, rules_yaml

    if json:
        print_json({"rules": describe_rules(), "defaults": Curation().model_dump(mode="json")})
    else:
        typer.echo(rules_yaml(), nl=False)


@app.command(help="What changed from one dataset to another. Example: lorimer data diff 3f0c9a1b2d4e5f60 support")
def diff(before: Name, after: Name, json: Json = False) -> None:
    """Compare two datasets row by row."""
    from lorimer.data.dataset import open_dataset
    from lorimer.data.diff import compare

    found = compare(open_dataset(before), open_dataset(after))
    if json:
        print_json(found.to_json())
        return
    console.print(f"{escape(before)} [dim]{found.before[:16]}[/dim] -> {escape(after)} [dim]{found.after[:16]}[/dim]", highlight=False)
    for line in found.describe():
        console.print(f"  {escape(line)}", highlight=False)


@app.command(help="Rows of train that other datasets and suites are judged by. Example: lorimer data contamination support --json")
def contamination(name: Name, json: Json = False) -> None:
    """Compare a dataset's train rows with the test rows of every other dataset, and with what suites ask."""
    from lorimer.data.contamination import check_contamination
    from lorimer.data.dataset import open_dataset
    from lorimer.evaluation.suite import texts_by_suite

    found = check_contamination(open_dataset(name), suites=texts_by_suite())
    if json:
        print_json({"name": name, "contamination": [each.to_json() for each in found]})
        return
    for each in found:
        console.print(escape(each.describe()), highlight=False)
    if not found:
        console.print("No row of train is near to what another dataset or a suite here asks.")


@app.command("list", help="The datasets that are here. Example: lorimer data list --json")
def list_all(json: Json = False) -> None:
    """Print one line per dataset."""
    from lorimer.data.dataset import list_datasets

    found = list_datasets()
    if json:
        print_json({"datasets": [{**asdict(dataset), "path": str(dataset.path)} for dataset in found]})
        return
    if not found:
        console.print("No datasets yet: `lorimer data curate FILE --name NAME` makes one.")
        return
    table = Table("name", *SPLIT_NAMES, "digest", box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for dataset in found:
        table.add_row(dataset.name, *(f"{dataset.num_examples[split]:,}" for split in SPLIT_NAMES), dataset.digest[:16])
    console.print(table)


@app.command(help="A dataset's card in short, and its first rows. Example: lorimer data show support")
def show(name: Name, json: Json = False) -> None:
    """Print a dataset's card and its first rows."""
    from lorimer.data.dataset import open_dataset

    dataset = open_dataset(name)
    rows = list(islice(dataset.rows("train"), NUM_ROWS_SHOWN))
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
    from lorimer.data.dataset import open_dataset

    typer.echo(open_dataset(name).path / "card.html")


def _reporter(bar: Progress) -> Callable[[str, int], None]:
    """One line a step, with the rows it has done."""
    steps: dict[str, TaskID] = {}

    def report(what: str, num_rows: int) -> None:
        if what not in steps:
            for done in steps.values():
                bar.update(done, total=max(1, bar.tasks[done].completed))
            steps[what] = bar.add_task(what, total=None, note="")
        bar.update(steps[what], completed=num_rows)

    return report


def _describe(dataset: "DatasetFolder") -> dict[str, Any]:
    paths = {"path": str(dataset.path), "report": str(dataset.path / "card.html")}
    return {"name": dataset.name, "digest": dataset.digest, **paths, "card": dataset.card}


def _print_summary(dataset: "DatasetFolder") -> None:
    card = dataset.card
    console.print(f"[bold]{escape(dataset.name)}[/bold] [dim]{dataset.digest[:16]}[/dim]")
    for source in card["sources"]:
        columns = ", ".join(column if part == column else f"{column} as {part}" for part, column in source["columns"].items())
        unused = f"; columns not used: {', '.join(source['columns_not_used'])}" if source["columns_not_used"] else ""
        line = f"  {source['file']} ({source['use']}): {source['num_examples']:,} rows, {source['shape']} ({columns}){unused}"
        console.print(escape(line), highlight=False)
    if accounting := card.get("accounting"):
        left_out = ", ".join(f"{rule} {count:,}" for rule, count in accounting["left_out"].items())
        line = f"  {accounting['num_read']:,} rows read, {accounting['num_kept']:,} kept"
        console.print(f"{line}{'; left out: ' + left_out if left_out else ''}", highlight=False)
    counts = ", ".join(f"{split} {described['num_examples']:,}" for split, described in card["splits"].items())
    console.print(f"  {counts}", highlight=False)
    for finding in card["findings"]:
        examples = f" ({', '.join(finding['examples'])})" if finding["examples"] else ""
        console.print(f"  [dim]{finding['rule']}:[/dim] {escape(finding['message'])}[dim]{escape(examples)}[/dim]", highlight=False)
    for sentence in card.get("advice", ()):
        console.print(f"  [dim]advice:[/dim] {escape(sentence)}", highlight=False)
    console.print(f"  rows    {escape(str(dataset.path))}\n  report  {escape(str(dataset.path / 'card.html'))}", highlight=False)
