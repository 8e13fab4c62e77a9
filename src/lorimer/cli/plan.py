"""`lorimer plan`: what a run will need and learn, before it runs."""

from pathlib import Path

import typer

from lorimer.cli.console import console, print_json, working
from lorimer.config import read_recipe


def plan(
    recipe: Path = typer.Argument(..., help="Recipe file (YAML)."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Show what a recipe will need and learn: rows, steps, memory, time, and why each value was chosen.

    Example: lorimer plan recipe.yaml
    """
    from lorimer.cli.show import show_plan, show_samples
    from lorimer.data.curate import resolve_dataset
    from lorimer.model.base import load_base
    from lorimer.training.plan import plan as make_plan

    recipe_ = read_recipe(recipe)
    dataset = resolve_dataset(recipe_)
    with working(f"Loading base {recipe_.base}"):
        base = load_base(recipe_.base, quantisation=recipe_.quantise)
        plan_ = make_plan(recipe_, dataset, base)
    if as_json:
        print_json(
            {"base": base.name, "base_digest": base.digest, "dataset": dataset.name, "dataset_digest": dataset.digest, **plan_.to_json()}
        )
    else:
        console.print(f"Plan for adapter {recipe_.name or dataset.name!r} on base {base.name!r}, from dataset {dataset.name!r}")
        show_plan(plan_)
        show_samples(plan_)
