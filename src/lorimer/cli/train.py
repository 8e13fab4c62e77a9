"""`lorimer train`: one run, or several in one pass over one base; each is registered as the next version of its adapter."""

from pathlib import Path

import typer

from lorimer.cli.console import console, print_json
from lorimer.config import read_recipe
from lorimer.errors import UsageError


def train(
    recipes: list[Path] = typer.Argument(..., metavar="RECIPE...", help="Recipe files (YAML)."),
    packed: bool = typer.Option(False, "--packed", help="Train all recipes in one pass over one resident base."),
    strict: bool = typer.Option(False, "--strict", help="With --packed: the same bytes as each alone, with less of the speed."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Train an adapter as a recipe says and register it; evaluate it next, then promote it.

    Example: lorimer train recipe.yaml && lorimer evaluate helpdesk
    """
    from lorimer.cli.show import show_progress
    from lorimer.pipeline import train_recipes
    from lorimer.registry.records import AdapterVersion
    from lorimer.training.comparison import ComparisonResult
    from lorimer.training.loop import Mode, RunFailure
    from lorimer.training.train import RunResult

    if strict and not packed:
        raise UsageError("--strict says how recipes are trained together: it goes with --packed")
    packs = [recipes] if packed else [[path] for path in recipes]
    mode: Mode | None = None if not packed else "strict" if strict else "fused"
    pipelines = (train_recipes([read_recipe(path) for path in pack], mode=mode) for pack in packs)
    made = [thing for things in pipelines for thing in show_progress(things, quiet=as_json)]
    results = [thing for thing in made if isinstance(thing, RunResult)]
    versions = [thing for thing in made if isinstance(thing, AdapterVersion) and not thing.parts]
    compositions = [thing for thing in made if isinstance(thing, AdapterVersion) and thing.parts]
    failures = [thing for thing in made if isinstance(thing, RunFailure)]
    compared = [thing for thing in made if isinstance(thing, ComparisonResult)]
    if as_json:
        done = [{**result.to_json(), **version.to_json()} for result, version in zip(results, versions, strict=True)]
        done += [result.to_json() for result in compared]
        failed = [{"run": failure.run_id, "step": failure.step, "reason": failure.reason} for failure in failures]
        if len(compositions) == len(recipes) == 1:
            print_json({"composition": compositions[0].to_json(), "runs": done, "failures": failed})
        else:
            composed = {"compositions": [version.to_json() for version in compositions]} if compositions else {}
            print_json(done[0] if len(recipes) == len(done) == 1 else {**composed, "runs": done, "failures": failed})
    else:
        shards = {part.digest for version in compositions for part in version.parts}
        for version in (*versions, *compositions):
            if version.digest in shards:  # they are judged together
                continue
            console.print(f"Next: lorimer evaluate {version.id}", highlight=False)
        for result_ in compared:
            console.print(f"Next: lorimer runs compare RUN {result_.run_id}", highlight=False)
    if failures:
        raise typer.Exit(1)
