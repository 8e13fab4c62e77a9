"""`lorimer evaluate`: a registered adapter beside its base on the items its training did not see."""

import typer

from lorimer.cli.console import print_json, working


def evaluate(
    adapter: str = typer.Argument(..., help="A registered adapter: NAME, NAME@v3 or NAME@ALIAS."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Ask adapter and base the test items, check the gate of the adapter's recipe, and record the verdict.

    Ends with 0 if the gate passes, 3 if it fails, 5 if the items cannot tell.

    Example: lorimer evaluate helpdesk@v2
    """
    from lorimer.cli.show import show_progress, show_report
    from lorimer.evaluation.gates import GateResult, require_pass
    from lorimer.evaluation.page import report_folder
    from lorimer.evaluation.report import EvalReport
    from lorimer.model.base import load_base
    from lorimer.pipeline import find_version, judge_version

    version = find_version(adapter)
    with working(f"Loading base {version.base_name}"):
        base = load_base(version.base_name)
    made = list(show_progress(judge_version(version, base), quiet=True))
    report = next(thing for thing in made if isinstance(thing, EvalReport))
    result = next(thing for thing in made if isinstance(thing, GateResult))
    if as_json:
        folder = report_folder(report.digest)
        scores = {"base": report.to_json()["base_score"], "adapter": report.to_json()["adapter_score"]}
        print_json({"adapter": version.id, **scores, "gate": result.to_json(), "report": str(folder / "report.html")})
    else:
        show_report(report, result)
    require_pass(result)
