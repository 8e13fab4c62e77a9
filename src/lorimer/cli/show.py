"""How the things a pipeline makes are shown while it runs: bars on stderr, tables on stdout."""

from collections.abc import Iterable, Iterator

from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from lorimer.cli.console import console, error_console, progress_bar
from lorimer.data.dataset import Dataset
from lorimer.evaluation.evaluate import Answer
from lorimer.evaluation.gates import GateResult
from lorimer.evaluation.pages.forest import change, level
from lorimer.evaluation.pages.page import report_folder
from lorimer.evaluation.pages.tally import by_family, tally_tasks
from lorimer.evaluation.report import EvalReport
from lorimer.evaluation.results import SuiteReport
from lorimer.evaluation.statistics.proportions import Proportion
from lorimer.evaluation.task import Task
from lorimer.model.base import Base
from lorimer.pipeline import Made
from lorimer.registry.records import AdapterVersion, Alias
from lorimer.training.comparison import ComparisonResult, ComparisonRun
from lorimer.training.inspection import mask_markup
from lorimer.training.loop import RunFailure, StepMetrics
from lorimer.training.plan import TrainingPlan, describe
from lorimer.training.rank import RankChoice
from lorimer.training.runs import Run
from lorimer.training.train import RunResult
from lorimer.training.validation import Validation

SHOWN_HEAD, SHOWN_TAIL = 300, 700  # characters of a long row: its end is what is learned
VERDICT_STYLES = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow", "ERROR": "bold red"}
STYLES = {"stop": "bold red", "warn": "yellow"}


def show_progress(things: Iterable[Made], *, quiet: bool = False, num_models: int = 2) -> Iterator[Made]:
    """Pass on what a pipeline makes, showing each kind in its way; `quiet` leaves only the bars, for `--json`.

    `num_models` is how many answer each task, the base too.
    """
    with progress_bar() as progress:
        bars: dict[str, TaskID] = {}
        names: dict[str, str] = {}
        asking = ""
        for made in things:
            match made:
                case StepMetrics():
                    note = f"loss {made.loss:.3f}, {made.tokens_per_second:.0f} tokens/s"
                    _advance(progress, bars, f"Training {names[made.run_id]}", made.num_steps, note, upto=made.step)
                case Run() | ComparisonRun():
                    names[made.id] = made.adapter_name if made.adapter_name not in names.values() else f"{made.adapter_name} ({made.id})"
                    if isinstance(made, ComparisonRun):
                        _advance(progress, bars, "Loading base", 1, "")
                case Task():
                    asking = f"Asking {made.name}"
                    _advance(progress, bars, asking, num_models * len(made.samples), "", by=0)
                case Answer():
                    _advance(progress, bars, asking, None, "")
                case Dataset():
                    _advance(progress, bars, "Loading base", 1, "", by=0)
                case Base():
                    _advance(progress, bars, "Loading base", 1, "")
            if not quiet and not isinstance(made, StepMetrics | Task | Answer):
                show(made)
            yield made


def show(made: Made) -> None:
    """Print one thing for a person."""
    match made:
        case Dataset():
            counts = ", ".join(f"{len(getattr(made, split))} {split}" for split in ("train", "validation", "test"))
            error_console.print(f"Dataset {made.name!r}: {counts}  ->  {made.path}", highlight=False)
        case Base():
            error_console.print(f"Base {made.name!r}: {made.num_parameters / 1e6:.0f}M parameters, {made.dtype}", highlight=False)
        case TrainingPlan():
            show_plan(made)
            show_samples(made)
        case Run() | ComparisonRun():
            error_console.print(f"Run {made.id}  ->  {made.folder}", highlight=False)
        case Validation():
            best = ", the best yet" if made.is_best else ""
            error_console.print(
                f"Step {made.step}: validation loss {made.loss:.4f}, {made.exact:.1%} of {made.num_rows} exact{best}", highlight=False
            )
        case RankChoice():
            kept, first = made.points[made.chosen], made.points[0]
            error_console.print(
                f"Rank: {kept.num_parameters} of {first.num_parameters} parameters keep {kept.exact:.1%} of {first.exact:.1%} exact "
                f"({made.num_rows} validation rows, at most {made.margin:.1%} may be lost)",
                highlight=False,
            )
        case RunFailure():
            error_console.print(f"Run {made.run_id} stopped at step {made.step}: {made.reason}", style="red", highlight=False)
        case RunResult():
            minutes, memory = made.seconds / 60, made.peak_bytes / 1e9
            error_console.print(f"Trained {made.num_steps} steps in {minutes:.1f} minutes, {memory:.1f} GB at most", highlight=False)
        case ComparisonResult():
            minutes, memory, size = made.seconds / 60, made.peak_bytes / 1e9, made.saved_bytes / 1e6
            error_console.print(f"Trained {made.num_steps} steps in {minutes:.1f} minutes, {memory:.1f} GB at most", highlight=False)
            error_console.print(
                f"Not registered: {made.method!r} is there for comparison. {size:.1f} MB  ->  {made.result_folder}", highlight=False
            )
        case EvalReport():
            error_console.print(f"Report  ->  {report_folder(made.digest) / 'report.html'}", highlight=False)
        case GateResult():
            error_console.print(f"Gate: {made.verdict}. {made.sentence}", highlight=False)
        case AdapterVersion() if made.parts:
            error_console.print(f"Composition {made.id} of {', '.join(part.id for part in made.parts)}", highlight=False)
        case AdapterVersion():
            error_console.print(f"Adapter {made.id}, {made.num_bytes / 1e6:.1f} MB  ->  {made.path}", highlight=False)
        case Alias():
            error_console.print(f"{made.id} is now version {made.version}", highlight=False)


def show_plan(plan: TrainingPlan) -> None:
    """The plan as a table."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in describe(plan).items():
        table.add_row(name, value)
    error_console.print(table, highlight=False)
    for finding in plan.findings:
        error_console.print(f"{finding.sentence} ({', '.join(finding.sources)})", style=STYLES[finding.severity], highlight=False)


def show_samples(plan: TrainingPlan) -> None:
    """Three rows as the model sees them: what is learned in bold green."""
    for sample in plan.report.samples:
        error_console.print(f"\n{sample.source}, {sample.num_tokens} tokens:", style="bold", highlight=False)
        text = mask_markup(sample)
        whole = len(text) <= SHOWN_HEAD + SHOWN_TAIL
        error_console.print(text if whole else Text.assemble(text[:SHOWN_HEAD], " [...] ", text[-SHOWN_TAIL:]), highlight=False)


def show_report(report: EvalReport, gate: GateResult) -> None:
    """Base against adapter in numbers, and what the gate says."""
    table = Table("", "base", "adapter", title=f"{report.adapter_name} on {report.num_items} unseen items, {report.metric}")
    table.add_row("all", percent(report.base_score), percent(report.adapter_score))
    for name, slices in {"field": report.fields, **report.tags}.items():
        for part in slices:
            table.add_row(f"{name} {part.name}", percent(part.base), percent(part.adapter))
    console.print(table)
    console.print(f"Gate: {gate.verdict}. {gate.sentence}", highlight=False)
    console.print(f"Report: {report_folder(report.digest) / 'report.html'}", highlight=False)


def show_suite_report(report: SuiteReport, gate: GateResult) -> None:
    """Every task of a suite by family: candidate beside incumbent and base, what the gate says of it, and then of the whole."""
    has_incumbent = report.incumbent_name is not None
    columns = ["family", "task", "base", *(["incumbent"] if has_incumbent else []), "candidate", "change", "won / lost", "gate"]
    table = Table(*columns, title=Text(f"{report.candidate_name} on {report.suite} version {report.version}"))
    for family, tallies in by_family(tally_tasks(report, gate)).items():
        for tally in tallies:
            verdict = tally.check.verdict if tally.check is not None else "not checked"
            unscored = f" ({tally.num_unscored} unscored)" if tally.num_unscored else ""
            duel = f"{tally.duels[0].num_won} / {tally.duels[0].num_lost}" if tally.unit == "share" else ""
            row = [family, f"{tally.task.name}{unscored}", level(tally.base, tally.unit)]
            row += [level(tally.incumbent, tally.unit)] if has_incumbent else []
            row += [level(tally.candidate, tally.unit), change(tally.difference, tally.unit), duel]
            cells = [Text(cell, overflow="fold") for cell in row]  # a task's name is not cut off, long as it may be
            table.add_row(*cells, Text(verdict, style=VERDICT_STYLES.get(verdict, ""), overflow="fold"))
        table.add_section()
    console.print(table)
    console.print(Text(f"Change, won and lost: against {'the incumbent' if has_incumbent else 'the base'}."), highlight=False)
    console.print(Text(f"Gate: {gate.verdict}. {gate.sentence}"), highlight=False)


def percent(proportion: Proportion) -> str:
    """A score with its interval."""
    if proportion.value is None:
        return "not scored"
    return f"{proportion.value:.1%} ({proportion.interval.low:.1%} to {proportion.interval.high:.1%})"


def _advance(
    progress: Progress, bars: dict[str, TaskID], name: str, total: int | None, note: str, by: int = 1, upto: int | None = None
) -> None:
    if name not in bars:
        bars[name] = progress.add_task(name, total=total, note=note)
    if upto is not None:
        progress.update(bars[name], completed=upto, note=note)
    else:
        progress.update(bars[name], advance=by, note=note)
