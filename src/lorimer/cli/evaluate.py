"""`lorimer evaluate`: registered adapters beside their base on items their training did not see."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorimer.cli.console import console, print_json, working
from lorimer.errors import UsageError

if TYPE_CHECKING:
    from lorimer.evaluation.gates import GateResult
    from lorimer.judging import SuiteFinding
    from lorimer.registry.records import AdapterVersion


def evaluate(
    adapters: Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="Registered adapters: NAME, NAME@v3 or NAME@ALIAS.")],
    suite: Annotated[
        list[str] | None, typer.Option(help="A suite instead of the gate: `general`, `safety`, `fidelity`, `memory`, `domain`, yours.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="With a suite: the adapter that is in use, beside which rules may hold it.")] = None,
    junit: Annotated[
        Path | None, typer.Option(help="With a suite: a folder for what a CI reads, `ADAPTER-SUITE.xml` as JUnit has it.")
    ] = None,
    times: Annotated[bool, typer.Option("--time", help="With a suite: time a few answers one by one, for the report card.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask adapter and base the test items, check the gate of the adapter's recipe, and record the verdict.

    With `--suite`, ask suites of one or several adapters in one pass instead; that decides no promotion. Sealed items of suites are
    asked only when an adapter is promoted. Ends with 0 if the gate passes, 3 if it fails, 5 if the items cannot tell.

    Example: lorimer evaluate helpdesk@v2

    Several, on suites: lorimer evaluate helpdesk@v2 helpdesk@v3 --suite general --suite safety --against helpdesk@champion
    """
    from lorimer.evaluation.gates import require_pass
    from lorimer.pipeline import find_version

    if against and not suite:
        raise UsageError("--against goes with --suite: the gate of a recipe compares with the champion where the recipe says so")
    if junit and not suite:
        raise UsageError("--junit goes with --suite: ask for the suite `domain`, which is made of the adapter's own test items")
    if len(adapters) > 1 and not suite:
        raise UsageError("several adapters are evaluated together with --suite; the gate of each is its own: ask one by one")
    versions = [find_version(name) for name in adapters]
    if len({version.base_digest for version in versions}) > 1:
        raise UsageError("these adapters are on different bases: ask those of one base together")
    results = _ask_suites(versions, suite, against, junit, times=times, as_json=as_json) if suite else [_ask_gate(versions[0], as_json)]
    for result in results:
        require_pass(result)


def _ask_gate(version: "AdapterVersion", as_json: bool) -> "GateResult":
    from lorimer.cli.show import show_progress, show_report
    from lorimer.evaluation.gates import GateResult
    from lorimer.evaluation.pages.page import report_folder
    from lorimer.evaluation.report import EvalReport
    from lorimer.judging import SuiteFinding, judge_version
    from lorimer.model.base import load_base

    with working(f"Loading base {version.base_name}"):
        base = load_base(version.base_name)
    made = list(show_progress(judge_version(version, base, opens_reserve=False), quiet=True))
    report = next(thing for thing in made if isinstance(thing, EvalReport))
    result = next(thing for thing in made if isinstance(thing, GateResult))
    if as_json:
        folder = report_folder(report.digest)
        scores = {"base": report.to_json()["base_score"], "adapter": report.to_json()["adapter_score"]}
        print_json({"version": version.id, **scores, "gate": result.to_json(), "report": str(folder / "report.html")})
    else:
        show_report(report, result)
        for finding in made:
            if isinstance(finding, SuiteFinding):
                _show(finding)
    return result


def _ask_suites(
    versions: "list[AdapterVersion]", names: list[str], against: str | None, junit: Path | None, *, times: bool, as_json: bool
) -> "list[GateResult]":
    from lorimer.cli.show import show_progress
    from lorimer.judging import SuiteFinding, ask_suites, gate_of_findings
    from lorimer.model.base import load_base
    from lorimer.pipeline import find_version

    incumbent = find_version(against) if against else None
    with working(f"Loading base {versions[0].base_name}"):
        base = load_base(versions[0].base_name)
    num_models = 1 + len({version.digest for version in (*versions, *([incumbent] if incumbent else []))})
    asked = show_progress(ask_suites(versions, base, names, against=incumbent, times_answers=times), quiet=True, num_models=num_models)
    by_version: dict[str, list[SuiteFinding]] = {version.id: [] for version in versions}
    for made in asked:
        if isinstance(made, SuiteFinding):
            by_version[made.version_id].append(made)
    results = {version_id: gate_of_findings(findings) for version_id, findings in by_version.items()}
    for findings in by_version.values():
        for finding in findings:
            if junit is not None:
                _write_junit(junit, finding)
            if not as_json:
                _show(finding)
    if as_json:
        print_json({"adapters": [_to_json(version_id, result, by_version[version_id]) for version_id, result in results.items()]})
    return list(results.values())


def _show(finding: "SuiteFinding") -> None:
    from lorimer.cli.show import show_suite_report
    from lorimer.judging import card_path, gate_of_findings

    show_suite_report(finding.report, gate_of_findings([finding]))
    sealed = "it has no sealed items" if finding.suite.opens_reserve else "its sealed items not asked"
    console.print(f"Attempt {finding.suite.attempt} on {finding.suite.id}, {sealed}.", highlight=False)
    console.print(f"Report card: {card_path(finding.report)}", highlight=False)


def _to_json(version_id: str, result: "GateResult", findings: "list[SuiteFinding]") -> dict[str, Any]:
    from lorimer.judging import card_path

    cards = {finding.suite.id: str(card_path(finding.report)) for finding in findings}
    return {"adapter": version_id, "gate": result.to_json(), "reports": cards}


def _write_junit(folder: Path, finding: "SuiteFinding") -> None:
    from lorimer.evaluation.pages.junit import junit_xml
    from lorimer.judging import gate_of_findings
    from lorimer.storage import write_text

    name = f"{finding.version_id}-{finding.suite.id}".replace("@", "-")
    write_text(folder / f"{name}.xml", junit_xml(gate_of_findings([finding]), finding.report))
