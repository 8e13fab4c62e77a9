"""`lorimer suites list, show, add, power`: what adapters are held to, and what so many items can show."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from lorimer.cli.console import console, print_json, print_table, working
from lorimer.errors import UsageError

app = typer.Typer(help="What adapters are held to: suites of tasks with rules.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Name = Annotated[str, typer.Argument(metavar="SUITE", help="`safety`, `desk@v2`, or a file of one.")]


@app.command("list", help="The suites that are here. Example: lorimer suites list --json")
def list_all(json: Json = False) -> None:
    """Print one line per suite."""
    from lorimer.evaluation.suite import added_suites, find_suite, shipped_suites, to_json

    found = [find_suite(name) for name in (*shipped_suites(), *added_suites())]
    if json:
        print_json({"suites": [to_json(suite) for suite in found]})
        return
    rows = [(suite.id, len(suite.tasks), sum(len(one.task.samples) for one in suite.tasks), suite.about) for suite in found]
    print_table(("suite", "tasks", "items", "about"), rows)


@app.command(help="A suite's tasks and rules. Example: lorimer suites show safety")
def show(name: Name, json: Json = False) -> None:
    """Print one line per task."""
    from lorimer.evaluation.suite import find_suite, to_json

    suite = find_suite(name)
    if json:
        print_json(to_json(suite))
        return
    console.print(f"[bold]{suite.id}[/bold] [dim]{suite.digest[:16]}[/dim] {escape(suite.about)}", highlight=False)
    rows = [
        (one.task.name, one.family, one.task.metric, len(one.task.samples), one.rule.model_dump(exclude_none=True, exclude_unset=True))
        for one in suite.tasks
    ]
    print_table(("task", "family", "metric", "items", "rule"), rows)


@app.command(help="Keep a suite under its name and version. Example: lorimer suites add desk/suite.yaml")
def add(file: Annotated[Path, typer.Argument(help="The suite's YAML file; its items lie beside it.")], json: Json = False) -> None:
    """Copy a suite into the home folder; a version once added does not change."""
    from lorimer.evaluation.suite import add_suite, to_json

    suite = add_suite(file)
    if json:
        print_json(to_json(suite))
        return
    console.print(f"Added [bold]{suite.id}[/bold] [dim]{suite.digest[:16]}[/dim], {len(suite.tasks)} tasks", highlight=False)


@app.command(help="What a suite's items can show, before it is run. Example: lorimer suites power general --discordance 0.1")
def power(
    name: Name,
    discordance: Annotated[float, typer.Option(min=0.001, max=1, help="Share of items where only one of two adapters is right.")] = 0.1,
    json: Json = False,
) -> None:
    """Print, for each task, how often an equal adapter passes, what margin it passes 80% of the time, and how many items its own takes."""
    from lorimer.evaluation.foresight import foresee
    from lorimer.evaluation.suite import find_suite

    found = foresee(find_suite(name), discordance)
    if json:
        together = {"all_pass": found.all_pass, "all_pass_open": found.all_pass_open}
        print_json({"suite": name, "discordance": discordance, "tasks": [own.to_json() for own in found.tasks], **together})
        return
    rows = [
        (
            own.task,
            f"{own.num_open} / {own.num_items}",
            own.asks,
            _open_and_all(own.passes_open, own.passes),
            _open_and_all(own.shows_open, own.shows) if own.shows is not None else "",
            own.needed or "",
        )
        for own in found.tasks
    ]
    console.print("Open items, which `lorimer evaluate` asks / all, which promotions ask", highlight=False)
    print_table(("task", "items", "rule", "an equal adapter passes", "80% at a margin of", "items for 80%"), rows)
    console.print(f"All tasks pass together, were they independent: {_open_and_all(found.all_pass_open, found.all_pass)}", highlight=False)


def _open_and_all(opened: float | None, whole: float | None) -> str:
    return "depends on the scores" if whole is None else f"{_share(opened)} / {_share(whole)}"


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"


@app.command(
    help="What another harness found of two models, paired item by item. Example: lorimer suites compare lm-eval runs/helpdesk runs/base"
)
def compare(
    harness: Annotated[str, typer.Argument(help="`lm-eval` or `garak`, with folders of results; `inspect`, with log files.")],
    candidate: Annotated[Path, typer.Argument(help="What it found of the adapter.")],
    baseline: Annotated[Path, typer.Argument(help="What it found of the base, or of the adapter in use.")],
    margin: Annotated[float, typer.Option(min=0.0001, max=1, help="How much worse it may be.")] = 0.02,
    json: Json = False,
) -> None:
    """Hold every task to `not_worse_than`; ends with 0, 3 or 5 as `lorimer evaluate` does."""
    from lorimer.cli.show import show_suite_report
    from lorimer.evaluation.gates import require_pass
    from lorimer.evaluation.outside.compare import HARNESSES, compare_runs

    if harness not in HARNESSES:
        raise UsageError(f"{harness!r} is no harness that is read here: {', '.join(HARNESSES)}")
    report, gate = compare_runs(harness, candidate, baseline, margin=margin)
    if json:
        print_json({"gate": gate.to_json()})
    else:
        show_suite_report(report, gate)
    require_pass(gate)


@app.command(
    help="Let lm-eval or garak ask a server of ours, in an environment of their own (LORIMER_LM_EVAL, LORIMER_GARAK name its Python). "
    "Example: lorimer suites run lm-eval helpdesk --tasks arc_easy,boolq --base gemma3-270m --output runs/helpdesk"
)
def run(
    harness: Annotated[str, typer.Argument(help="`lm-eval` or `garak`.")],
    model: Annotated[str, typer.Argument(help="What the server calls it: an adapter, or the base.")],
    tasks: Annotated[str, typer.Option(help="Tasks of lm-eval or probes of garak, with commas between.")],
    output: Annotated[Path, typer.Option(help="A folder for the results; `lorimer suites compare` reads it.")],
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    base: Annotated[str | None, typer.Option(help="With lm-eval: the base, whose tokenizer it needs.", show_default="gemma3-270m")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="So many items of each task: with lm-eval the first; with garak some of each probe's prompts, 256 by default."
        ),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="With garak: the longest answer.", show_default="150")] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, help="With garak: how long each probe may take; then none of it is scored.", show_default="600"),
    ] = None,
    key_env: Annotated[str | None, typer.Option(help="The environment variable that holds the server's key.")] = None,
) -> None:
    """Run tasks to their end and print what each found."""
    import os

    from lorimer.evaluation.outside.garak import MAX_TOKENS, NUM_PROMPTS, PROBE_SECONDS, run_garak
    from lorimer.evaluation.outside.lm_eval import run_lm_eval, served_model
    from lorimer.model.base import find_base

    if harness not in ("lm-eval", "garak"):
        raise UsageError(f"{harness!r} is no harness that is run from here: lm-eval, garak")
    given = (("--base", base, "lm-eval"), ("--max-tokens", max_tokens, "garak"), ("--seconds", seconds, "garak"))
    if foreign := [f"{flag} is for {owner}" for flag, value, owner in given if value is not None and owner != harness]:
        raise UsageError(f"{harness} takes no such option: {', '.join(foreign)}; leave it out")
    if key_env is not None and not os.environ.get(key_env):
        raise UsageError(f"the variable {key_env!r} is not set: put the server's key into it")
    key, names = os.environ[key_env] if key_env else "none", [name.strip() for name in tasks.split(",") if name.strip()]
    with working(f"{harness} asks {model}"):
        if harness == "lm-eval":
            asked = served_model(url, model, find_base(base or "gemma3-270m"))
            found = run_lm_eval(asked, names, output, limit=limit, key=key)
        else:
            found = run_garak(
                url, model, names, output, key=key,
                max_tokens=max_tokens or MAX_TOKENS, limit=limit or NUM_PROMPTS, seconds_a_probe=seconds or PROBE_SECONDS,
            )  # fmt: skip
    print_table(("task", "items", "metrics"), [(task.name, len(task.items), ", ".join(task.metrics)) for task in found])
