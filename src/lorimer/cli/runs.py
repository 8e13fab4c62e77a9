"""`lorimer runs`: what was trained and is being trained, go on with it, stop it, and put finished runs side by side."""

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from lorimer.cli.console import console, print_json, working
from lorimer.config import recipe_yaml

if TYPE_CHECKING:
    from lorimer.evaluation.compare import ComparedRun, Comparison
    from lorimer.training.runs import RunDetails

app = typer.Typer(help="Trainings: what they did, go on with one, stop one, compare them.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="A run's id, or as much of its beginning as no other run shares.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID ID...", help="Runs that have succeeded, two or more; the first is the yardstick.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
STATE_STYLES = {"running": "cyan", "succeeded": "bold green", "failed": "bold red", "interrupted": "bold yellow", "cancelled": "yellow"}
HOW_COUNTED = """exact: greedy decoding would give the whole answer; against the first in percentage points.
Intervals (95%) are Wilson's and Tango's, p is McNemar's. Memory is the highest of the process that trained it."""


class Measure(NamedTuple):
    """Something that is planned and then measured."""

    title: str
    planned_key: str
    actual_key: str
    size: float
    unit: str


MEASURES = (Measure("time", "seconds", "seconds", 60.0, "minutes"), Measure("memory", "memory_bytes", "peak_bytes", 1e9, "GB"))


@app.command("list", help="Every run, newest first. Example: lorimer runs list")
def list_all(json: Json = False) -> None:
    """Print one line per run."""
    from lorimer.training.runs import list_runs

    found = list_runs()
    if json:
        print_json({"runs": found})
        return
    if not found:
        console.print("No runs yet: `lorimer train RECIPE` starts one.")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("run", "adapter", "method", "state", "base", "dataset"):
        table.add_column(title, overflow="fold", no_wrap=title in ("run", "method", "state"))
    for run in found:
        names = (escape(run[key]) for key in ("base_name", "dataset_name"))
        table.add_row(run["id"], run["adapter_name"], run["method"], _state(run), *names)
    console.print(table)


@app.command(help="One run: recipe, plan against what it needed, how far it is. Example: lorimer runs show 20261122-0930")
def show(run_id: Id, json: Json = False) -> None:
    """Print all that a run's folder says."""
    from lorimer.training.runs import read_details

    details = read_details(run_id)
    if json:
        print_json(_details_json(details))
        return
    run = details.recorded
    rows = {
        "run": f"[bold]{run['id']}[/bold]  {_state(run)} since {run['at'][:19]}",
        "adapter": escape(run["adapter_name"]),
        "base": escape(f"{run['base_name']}  {run['base_digest']}"),
        "dataset": escape(f"{run['dataset_name']}  {run['dataset_digest']}"),
        "error": escape(run.get("error", "")),
        **{measure.title: _words_of(measure, details) for measure in MEASURES},
        "last step": _last_step(details),
        "pictures": "\n".join(escape(str(path)) for path in details.pictures),
        "recipe": escape(recipe_yaml(details.recipe).strip()),
    }
    for title, text in rows.items():
        if text:
            indented = text.replace("\n", "\n" + 12 * " ")
            console.print(f"[dim]{title:>10}[/dim]  {indented}", highlight=False)


@app.command(help="Go on with a run that did not end, from its newest checkpoint. Example: lorimer runs resume 20261122-0930")
def resume(run_id: Id, json: Json = False) -> None:
    """Train on, and register the adapter."""
    from lorimer import pipeline
    from lorimer.cli.show import show_progress
    from lorimer.registry.records import AdapterVersion
    from lorimer.training.runs import read_run
    from lorimer.training.train import RunResult

    found = read_run(run_id)["id"]
    value: dict[str, Any] = {}
    for made in show_progress(pipeline.resume(found), quiet=json):
        if isinstance(made, RunResult | AdapterVersion):
            value |= made.to_json()
    if json:
        print_json({"run": found, "state": read_run(found)["state"], **value})
    elif "id" in value:
        console.print(f"Next: lorimer evaluate {value['id']}", highlight=False)


@app.command(help="Ask a run to stop after its present step; `resume` goes on with it. Example: lorimer runs cancel 20261122-0930")
def cancel(run_id: Id, json: Json = False) -> None:
    """Leave word in the run's folder."""
    from lorimer.training.runs import cancel_run, read_run

    found = read_run(run_id)["id"]
    cancel_run(found)
    if json:
        print_json({"run": found, "cancelled": True})
    else:
        console.print(f"Run {found} stops after its present step.", highlight=False)


@app.command(help="Finished runs of any method on the same test items. Example: lorimer runs compare 20261122-0930 20261122-1015")
def compare(run_ids: Ids, json: Json = False) -> None:
    """Score what was not scored yet, and print one line per run."""
    from lorimer.pipeline import compare_runs

    with working("Scoring runs on their test rows"):
        comparison = compare_runs(run_ids)
    if json:
        print_json(comparison.to_json())
    else:
        _print_comparison(comparison)


def _state(run: Any) -> str:
    return f"[{STATE_STYLES[run['state']]}]{run['state']}[/]"


def _details_json(details: "RunDetails") -> dict[str, Any]:
    return {
        **details.recorded,
        "recipe": details.recipe.model_dump(exclude_defaults=True, mode="json"),
        "needs": details.needs,
        "last_step": details.last_step,
        "pictures": [str(path) for path in details.pictures],
    }


def _words_of(measure: Measure, details: "RunDetails") -> str:
    """What was needed against what was planned, as far as either is known."""
    words, actual = list[str](), details.recorded.get("actual", {}).get(measure.actual_key)
    if actual is not None:
        words.append(f"{actual / measure.size:.2f} {measure.unit}")
    if planned := details.needs.get(measure.planned_key):
        middle = planned["middle"]
        low, high = (float(planned[key] or 0.0) / measure.size for key in ("low", "high"))
        span = f"{low:.2f} to {high:.2f}"
        words.append(f"planned {span} {measure.unit}" if middle is None else f"planned {middle / measure.size:.2f} {measure.unit} ({span})")
        if planned["ratio"] is not None:
            words.append(f"{planned['ratio']:.2f} times the plan")
    return ", ".join(words)


def _last_step(details: "RunDetails") -> str:
    step = details.last_step
    if step is None:
        return ""
    validation = f", validation loss {step['validation_loss']:.4f}" if "validation_loss" in step else ""
    return f"{step['step']} of {step['num_steps']}, loss {step['loss']:.4f}, learning rate {step['learning_rate']:g}{validation}"


def _print_comparison(comparison: "Comparison") -> None:
    console.print(f"{comparison.num_items} test rows of {comparison.dataset_name!r}, base {comparison.base_name!r}", highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for title in ("run\nadapter, method", "exact %\nloss", "against the first\np", "parameters\nsaved", "time\nmemory"):
        table.add_column(title, no_wrap=title.startswith("run"))
    for run in comparison.runs:
        share, low, high = (100 * value for value in (run.exact.value or 0.0, run.exact.interval.low, run.exact.interval.high))
        table.add_row(
            f"{run.run_id}\n{run.name}, {run.method}",
            f"{share:.1f} ({low:.1f} to {high:.1f})\n{run.loss:.3f}",
            _against_first(run),
            f"{run.num_parameters:,}\n{run.saved_bytes / 1e6:.1f} MB",
            f"{run.seconds / 60:.1f} min\n{run.peak_bytes / 1e9:.1f} GB",
        )
    console.print(table)
    console.print(HOW_COUNTED, style="dim", highlight=False)


def _against_first(run: "ComparedRun") -> str:
    """The difference with its interval, and how likely chance alone makes as large a one."""
    if (pair := run.against_first) is None:
        return ""
    points, low, high = (100 * value for value in (pair.difference, pair.interval.low, pair.interval.high))
    return f"{points:+.1f} ({low:.1f} to {high:.1f})\n{pair.mcnemar_p:.3f}"
