"""`lorimer train`: one run, registered as the next version of its adapter."""

from pathlib import Path

import typer

from lorimer.cli.console import console, print_json, working
from lorimer.config import read_recipe


def train(
    recipe: Path = typer.Argument(..., help="Recipe file (YAML)."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Train an adapter as a recipe says and register it; evaluate it next, then promote it.

    Example: lorimer train recipe.yaml && lorimer evaluate helpdesk
    """
    from lorimer.cli.show import show, show_progress
    from lorimer.data.curate import resolve_dataset
    from lorimer.model.base import load_base
    from lorimer.pipeline import register
    from lorimer.training.plan import plan
    from lorimer.training.runs import open_run, train_run

    recipe_ = read_recipe(recipe)
    dataset = resolve_dataset(recipe_)
    with working(f"Loading base {recipe_.base}"):
        base = load_base(recipe_.base)
    plan_ = plan(recipe_, dataset, base)
    run = open_run(recipe_, plan_, dataset, base)
    if not as_json:
        for made in (dataset, base, plan_, run):
            show(made)
    steps = list(show_progress(train_run(run, dataset, base)))
    version = register(run, base.renderer.template_digest)
    if as_json:
        print_json({"run": run.id, "folder": str(run.folder), "num_steps": len(steps), **version.to_json()})
    else:
        show(version)
        console.print(f"Next: lorimer evaluate {version.id}", highlight=False)
