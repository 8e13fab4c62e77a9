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
    junit: Annotated[Path | None, typer.Option(help="Write the checks for a CI here, as JUnit has them.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask adapter and base the test items, check the gate of the adapter's recipe, and record the verdict.

    With `--suite`, ask suites of one or several adapters in one pass instead; that decides no promotion. Sealed items of suites are
    asked only when an adapter is promoted. Ends with 0 if the gate passes, 3 if it fails, 5 if the items cannot tell.

    Examples:
      lorimer evaluate helpdesk@v2
      lorimer evaluate helpdesk@v2 helpdesk@v3 --suite general --suite safety --against helpdesk@champion
    """
    from lorimer.evaluation.gates import require_pass
    from lorimer.pipeline import find_version

    if against and not suite:
        raise UsageError("--against goes with --suite: the gate of a recipe compares with the champion where the recipe says so")
    if len(adapters) > 1 and not suite:
        raise UsageError("several adapters are evaluated together with --suite; the gate of each is its own: ask one by one")
    versions = [find_version(name) for name in adapters]
    if len({version.base_digest for version in versions}) > 1:
        raise UsageError("these adapters are on different bases: ask those of one base together")
    results = _ask_suites(versions, suite, against, as_json) if suite else [_ask_gate(versions[0], as_json)]
    if junit is not None:
        _write_junit(junit, results)
    for _, result in results:
        require_pass(result)


def _ask_gate(version: "AdapterVersion", as_json: bool) -> "tuple[AdapterVersion, GateResult]":
    from lorimer.cli.show import show_progress, show_report
    from lorimer.evaluation.gates import GateResult
    from lorimer.evaluation.page import report_folder
    from lorimer.evaluation.report import EvalReport
    from lorimer.judging import judge_version
    from lorimer.model.base import load_base

    with working(f"Loading base {version.base_name}"):
        base = load_base(version.base_name)
    made = list(show_progress(judge_version(version, base, opens_reserve=False), quiet=True))
    report = next(thing for thing in made if isinstance(thing, EvalReport))
    result = next(thing for thing in made if isinstance(thing, GateResult))
    if as_json:
        folder = report_folder(report.digest)
        scores = {"base": report.to_json()["base_score"], "adapter": report.to_json()["adapter_score"]}
        print_json({"adapter": version.id, **scores, "gate": result.to_json(), "report": str(folder / "report.html")})
    else:
        show_report(report, result)
    return version, result


def _ask_suites(
    versions: "list[AdapterVersion]", names: list[str], against: str | None, as_json: bool
) -> "list[tuple[AdapterVersion, GateResult]]":
    from lorimer.cli.show import show_progress
    from lorimer.judging import SuiteFinding, ask_suites, gate_of_findings
    from lorimer.model.base import load_base
    from lorimer.pipeline import find_version

    incumbent = find_version(against) if against else None
    with working(f"Loading base {versions[0].base_name}"):
        base = load_base(versions[0].base_name)
    num_models = 1 + len({version.digest for version in (*versions, *([incumbent] if incumbent else []))})
    asked = show_progress(ask_suites(versions, base, names, against=incumbent), quiet=True, num_models=num_models)
    findings = [made for made in asked if isinstance(made, SuiteFinding)]
    results = []
    for version in versions:
        own = [finding for finding in findings if finding.version_id == version.id]
        results.append((version, gate_of_findings(own)))
        if not as_json:
            _show(own)
    if as_json:
        print_json({"adapters": [_to_json(version, result, findings) for version, result in results]})
    return results


def _show(findings: "list[SuiteFinding]") -> None:
    from lorimer.cli.show import show_suite
    from lorimer.evaluation.page import report_folder

    for finding in findings:
        show_suite(finding)
        console.print(f"Report: {report_folder(finding.report.digest) / 'card.html'}", highlight=False)


def _to_json(version: "AdapterVersion", result: "GateResult", findings: "list[SuiteFinding]") -> dict[str, Any]:
    from lorimer.evaluation.page import report_folder

    own = [finding for finding in findings if finding.version_id == version.id]
    reports = {finding.suite.id: str(report_folder(finding.report.digest) / "card.html") for finding in own}
    return {"adapter": version.id, "gate": result.to_json(), "reports": reports}


def _write_junit(path: Path, results: "list[tuple[AdapterVersion, GateResult]]") -> None:
    from lorimer.evaluation.junit import junit_xml
    from lorimer.storage import write_text

    write_text(path, junit_xml([(version.id, result) for version, result in results]))
