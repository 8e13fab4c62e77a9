"""`lorimer plan`: what a run will need and learn, before it runs; for a base that is not here, what each way of adapting it would need."""

from dataclasses import asdict
from pathlib import Path

import typer
from rich.table import Table

from lorimer.cli.console import console, print_json, working
from lorimer.config import read_recipe
from lorimer.errors import UsageError


def plan(
    recipe: Path | None = typer.Argument(None, help="Recipe file (YAML)."),
    base: str | None = typer.Option(
        None, "--base", help="Instead of a recipe: a base's shape (`llama-3-8b`, `llama-3-70b`, a config.json)."
    ),
    rank: int = typer.Option(16, "--rank", min=1, help="With --base: the adapter's rank."),
    rows: int = typer.Option(1_000, "--rows", min=1, help="With --base: training rows."),
    row_len: int = typer.Option(256, "--row-len", min=2, help="With --base: tokens of a row."),
    learned: int = typer.Option(64, "--learned", min=1, help="With --base: learned tokens of a row."),
    epochs: float = typer.Option(2.0, "--epochs", min=0.01, help="With --base: times each row is seen."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Show what a recipe will need and learn: rows, steps, memory, time, and why each value was chosen.

    Example: lorimer plan recipe.yaml, or, for a base that is not here: lorimer plan --base llama-3-8b --rows 5000
    """
    if (recipe is None) == (base is None):
        raise UsageError("`lorimer plan` takes a recipe file, or --base with the shape of a base that is not here")
    if recipe is not None:
        _plan_recipe(recipe, as_json)
        return
    from lorimer.model.machine import probe
    from lorimer.model.shapes import find_shape
    from lorimer.training.absent import Job, plan_absent

    assert base is not None
    job = Job(rank=rank, num_rows=rows, row_len=row_len, num_supervised=learned, epochs=epochs)
    with working(f"Counting {base}"):
        machine = probe()
        plans = list(plan_absent(find_shape(base), job, machine))
    if as_json:
        print_json({"base": base, "machine": machine.name, **asdict(job), "methods": [asdict(one) for one in plans]})
        return
    table = Table("", *(one.method for one in plans), title=f"{base}, {rows:,} rows of {row_len} tokens, rank {rank}, on this machine")
    table.add_row("learned numbers", *(f"{one.num_trained:,} ({one.num_trained / one.num_parameters:.2%})" for one in plans))
    table.add_row("kept in the end", *(f"{one.saved_bytes / 1e9:.2f} GB" for one in plans))
    table.add_row("memory", *(f"{one.memory_bytes / 1e9:.1f} GB" for one in plans))
    table.add_row("least memory", *(f"{one.checkpointed_bytes / 1e9:.1f} GB" for one in plans))
    table.add_row(f"fits in {machine.memory_bytes / 1e9:.0f} GB", *("yes" if one.fits else "no" for one in plans))
    table.add_row("time", *(f"{one.seconds.low / 3600:.1f} to {one.seconds.high / 3600:.1f} hours" for one in plans))
    console.print(table)


def _plan_recipe(path: Path, as_json: bool) -> None:
    from lorimer.cli.show import show
    from lorimer.data.curate import resolve_dataset
    from lorimer.model.base import load_base
    from lorimer.training.plan import plan as make_plan

    recipe = read_recipe(path)
    dataset = resolve_dataset(recipe)
    with working(f"Loading base {recipe.base}"):
        base = load_base(recipe.base, quantisation=recipe.quantise)
        plan_ = make_plan(recipe, dataset, base)
    if as_json:
        names = {"base": base.name, "base_digest": base.digest, "dataset": dataset.name, "dataset_digest": dataset.digest}
        print_json({**names, **plan_.to_json()})
    else:
        console.print(f"Plan for adapter {recipe.name or dataset.name!r} on base {base.name!r}, from dataset {dataset.name!r}")
        show(plan_)
