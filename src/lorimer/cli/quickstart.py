"""`lorimer quickstart`: the whole story on real data, from raw tickets to a served adapter, in minutes."""

import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Column, Table

from lorimer.cli.console import console, error_console, print_json, working
from lorimer.config import home, read_recipe
from lorimer.storage import write_bytes

if TYPE_CHECKING:
    from lorimer.evaluation.report import EvalReport
    from lorimer.evaluation.task import Sample, Task
    from lorimer.model.base import Base
    from lorimer.registry.records import AdapterVersion

NUM_QUESTIONS = 5
SHIPPED_DATA = Path(__file__).parent.parent / "data" / "helpdesk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the last line of `--json` says."""

    base_exact: float
    adapter_exact: float
    seconds: float
    peak_rss_bytes: int
    adapter_bytes: int
    trainable_share: float
    adapter: str


def quickstart(
    folder: Path = typer.Argument(None, metavar="[DIR]", help="Where recipe and tickets are put; by default in LORIMER_HOME."),
    as_json: bool = typer.Option(False, "--json", help="End with one JSON object on one line."),
) -> None:
    """Train, judge, register and serve an adapter that sorts a help desk's tickets in five languages. Needs no network.

    Example: lorimer quickstart my-first-adapter
    """
    from lorimer.cli.show import show_progress
    from lorimer.evaluation.gates import GateResult, require_pass
    from lorimer.evaluation.report import EvalReport
    from lorimer.evaluation.task import Task
    from lorimer.model.base import Base
    from lorimer.model.shipped import SHIPPED, is_prepared, prepare, shipped_folder
    from lorimer.pipeline import build
    from lorimer.registry.records import AdapterVersion
    from lorimer.training.plan import TrainingPlan

    start = time.perf_counter()
    recipe = read_recipe(_put_files(folder or home() / "quickstart"))
    error_console.print(f"Recipe  ->  {folder or home() / 'quickstart'}/recipe.yaml", highlight=False)
    if recipe.base in SHIPPED and not is_prepared(recipe.base):
        error_console.print(SHIPPED[recipe.base].terms, highlight=False)
        with working(f"Preparing base {recipe.base}: checked and dequantised once, about a minute"):
            prepare(recipe.base)
    if recipe.base in SHIPPED:
        error_console.print(f"Base  ->  {shipped_folder(recipe.base)}", highlight=False)
    made = {type(thing): thing for thing in show_progress(build(recipe))}
    base, task, plan, report, result, version = (made[kind] for kind in (Base, Task, TrainingPlan, EvalReport, GateResult, AdapterVersion))
    assert isinstance(base, Base)
    assert isinstance(task, Task)
    assert isinstance(plan, TrainingPlan)
    assert isinstance(report, EvalReport)
    assert isinstance(result, GateResult)
    assert isinstance(version, AdapterVersion)
    _ask_server(base, version, task)
    summary = Summary(
        base_exact=report.base_score.value or 0.0,
        adapter_exact=report.adapter_score.value or 0.0,
        seconds=time.perf_counter() - start,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        adapter_bytes=version.num_bytes,
        trainable_share=plan.trainable_share,
        adapter=version.id,
    )
    _show_summary(summary, report, version)
    if as_json:
        print_json(asdict(summary))
    require_pass(result)


def _put_files(folder: Path) -> Path:
    """Copy the shipped tickets and recipe, unless they are there; returns the recipe's path."""
    for source in sorted(SHIPPED_DATA.iterdir()):
        if source.is_file() and not (folder / source.name).exists():
            write_bytes(folder / source.name, source.read_bytes())
    return folder / "recipe.yaml"


def _ask_server(base: "Base", version: "AdapterVersion", task: "Task") -> None:
    """Serve the adapter and put unseen tickets to it through the stock OpenAI client."""
    from openai import OpenAI

    from lorimer.serving.server import background_server, open_app

    table = Table(
        "unseen ticket",
        Column("answer", overflow="fold"),
        Column("", overflow="fold"),
        title=f"Asked {version.id} through the openai client",
    )
    with background_server(open_app(base, no_keys=True)) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        error_console.print(f"Serving at {url}", highlight=False)
        for sample in _spread(task):
            prompt = [{"role": message.role, "content": message.content} for message in sample.prompt]
            reply = client.chat.completions.create(model=version.id, messages=prompt, temperature=0, max_tokens=64)  # type: ignore[arg-type]
            answer = reply.choices[0].message.content or ""
            table.add_row(_shorten(sample.prompt[-1].content), answer, "right" if answer == sample.target else f"wanted {sample.target}")
    console.print(table)


def _spread(task: "Task") -> list["Sample"]:
    """The first unseen ticket of each language, so that the five questions are not all alike."""
    by_language = {sample.tags.get("language", ""): sample for sample in reversed(task.samples)}
    return (list(by_language.values()) + list(task.samples))[:NUM_QUESTIONS]


def _show_summary(summary: Summary, report: "EvalReport", version: "AdapterVersion") -> None:
    from lorimer.cli.show import percent
    from lorimer.evaluation.pages.page import report_folder

    table = Table("", "base", "adapter", title=f"{version.id} beside its base {version.base_name}")
    table.add_row("exact JSON on unseen tickets", percent(report.base_score), percent(report.adapter_score))
    for part in report.fields:
        table.add_row(f"  {part.name} right", percent(part.base), percent(part.adapter))
    table.add_row("size", "", f"{summary.adapter_bytes / 1e6:.1f} MB")
    table.add_row("trainable share", "", f"{summary.trainable_share:.2%}")
    table.add_row("whole story", "", f"{summary.seconds / 60:.1f} minutes, {summary.peak_rss_bytes / 1e9:.1f} GB at most")
    console.print(table)
    console.print(f"Report: {report_folder(report.digest) / 'report.html'}\nAdapter: {version.path}", highlight=False)
    console.print(f"Next: lorimer serve   or   lorimer chat {version.name}", highlight=False)


def _shorten(text: str, most: int = 70) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
