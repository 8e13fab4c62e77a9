"""`lorimer judges ...`: models that judge answers, held to people's labels before they decide anything."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from lorimer.cli.console import console, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from lorimer.evaluation.judge.calibration import Calibration
    from lorimer.evaluation.judge.spec import JudgeSpec

app = typer.Typer(help="Models that judge answers: asked only where a suite names one, and believed only as far as they agree with people.")


@app.callback()
def judges() -> None:
    """Models that judge answers."""


@app.command(help="See how far a judge agrees with people. Example: lorimer judges calibrate tone.yaml --labels labels.jsonl")
def calibrate(
    file: Annotated[Path, typer.Argument(metavar="JUDGE.yaml", help="The judge: endpoint, model, prompt (docs/judges.md).")],
    labels: Annotated[
        Path, typer.Option(metavar="FILE", help="What people said, as JSONL: question, answer or answer_a and answer_b, label.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Ask a judge what people have answered, and print how far they agree."""
    from lorimer.evaluation.judge.calibration import calibrate as run_calibration
    from lorimer.evaluation.judge.calibration import find_objection
    from lorimer.evaluation.judge.labels import read_labels
    from lorimer.evaluation.judge.record import open_judge
    from lorimer.evaluation.judge.spec import read_judge

    spec = read_judge(file)
    people = read_labels(labels, spec)
    judge = open_judge(spec, repin=True)
    with progress_bar() as bar:
        task = bar.add_task("verdicts", total=len(people), note="")
        found = run_calibration(judge, people, lambda: bar.advance(task))
    objection = find_objection(spec, found)
    if json:
        print_json({**judge.to_json(), "calibration": found.to_json(), "may_decide": not objection, "reason": objection})
        return
    console.print(f"[bold]{escape(spec.judge)}[/bold] [dim]{judge.digest[:16]}[/dim]", highlight=False)
    console.print(f"  {judge.pins.model} at {spec.endpoint} saw {len(people):,} items", highlight=False, markup=False)
    if judge.pins.is_weak:
        console.print("  the endpoint names no fingerprint: other weights under the same name would not be seen", highlight=False)
    _print_calibration(spec, found)
    console.print(f"  {objection or 'It may decide a gate.'}", highlight=False, markup=False)
    if spec.pins is None:
        console.print("To hold it to this wherever it is used, put into the file:", highlight=False)
        console.print("pins: {" + ", ".join(f'{key}: "{value}"' for key, value in judge.pins) + "}", highlight=False, markup=False)


def _print_calibration(spec: "JudgeSpec", found: "Calibration") -> None:
    lines = []
    if found.kappa is not None:
        ends, weights = found.kappa.interval, "" if found.kappa.weights == "none" else f", {found.kappa.weights} weights"
        lines.append(
            f"kappa {found.kappa.value:.2f} (95% interval {ends.low:.2f} to {ends.high:.2f}{weights}; asked for {spec.min_kappa:.2f})"
        )
    if found.agreement.value is not None:
        ends = found.agreement.interval
        lines.append(f"agreement {found.agreement.value:.1%} of {found.agreement.num_items} items ({ends.low:.1%} to {ends.high:.1%})")
    lines.append(f"unscored {found.num_unscored} of {found.num_labels} ({found.unscored_share:.1%})")
    if found.length_bias is not None:
        bias, ends = found.length_bias, found.length_bias.interval
        lines.append(f"length bias {bias.value:+.2f} for the longer answer ({ends.low:+.2f} to {ends.high:+.2f}), of 1; 0 is none")
    if found.num_asked_twice:
        share = found.num_inconsistent / found.num_asked_twice
        lines.append(f"position: {found.num_inconsistent} of {found.num_asked_twice} pairs ({share:.1%}) change with the order (ties)")
    if found.first_share is not None:
        lines.append(f"position: {found.first_share:.1%} of its choices are the answer that stood first; 50% is fair")
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False)
    print_table(("people \\ judge", *spec.allowed), [(person, *row.values()) for person, row in found.confusion.items()])
