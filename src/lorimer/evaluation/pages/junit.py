"""A gate's verdict as JUnit XML, which every CI reads. What did not pass is never green there: an inconclusive check is a failure too."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from lorimer.evaluation.gates import Check, GateResult
from lorimer.evaluation.pages.tally import require_same, task_of, worst
from lorimer.evaluation.results import FAMILIES, SuiteReport

NO_FAMILY = "gate"  # what is asked of the evidence as a whole, not of one task
OUTCOMES = {"FAIL": "failure", "INCONCLUSIVE": "failure", "ERROR": "error"}
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


def junit_xml(gate: GateResult, report: SuiteReport) -> str:
    """One test suite for each family, one test case for each check, in the form of Jenkins' junit-10.xsd.

    FAIL is a `failure` of type FAIL, INCONCLUSIVE a `failure` of type INCONCLUSIVE (a `skipped` one would leave the build green though
    nothing was shown), ERROR an `error`. A gate without checks, or whose verdict is worse than all of them, has one more case that says so.

    Raises:
        DataError: if the gate held another report.
    """
    require_same(report, gate)
    places: dict[str, list[Check]] = {family: [] for family in (*FAMILIES, NO_FAMILY)}
    for check in gate.checks:
        task = task_of(check, report)
        places[task.family if task is not None else NO_FAMILY].append(check)
    if not gate.checks or (gate.verdict != "PASS" and worst(gate.checks) == "PASS"):
        places[NO_FAMILY].append(_whole(gate))
    root = ElementTree.Element("testsuites", {"name": _xml(f"{report.suite} version {report.version}")})
    all_checks = [check for checks in places.values() for check in checks]
    _count(root, all_checks)
    for family, checks in places.items():
        if checks:
            root.append(_suite(family, checks, gate, report))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False).join(('<?xml version="1.0" encoding="UTF-8"?>\n', "\n"))


def _suite(family: str, checks: Sequence[Check], gate: GateResult, report: SuiteReport) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", {"name": _xml(f"{report.suite}.{family}"), "timestamp": gate.created_at})
    _count(suite, checks)
    suite.set("skipped", "0")
    known = {
        "verdict": gate.verdict,
        "candidate": report.candidate_name,
        "candidate_digest": report.candidate_digest,
        "base": report.base_name,
        "base_digest": report.base_digest,
        "incumbent": report.incumbent_name or "",
        "incumbent_digest": report.incumbent_digest or "",
        "suite_digest": report.suite_digest,
        "report_digest": gate.report_digest,
    }
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in known.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": _xml(value)})
    for check in checks:
        suite.append(_case(check, f"{report.suite}.{family}"))
    return suite


def _case(check: Check, class_name: str) -> ElementTree.Element:
    case = ElementTree.Element("testcase", {"classname": _xml(class_name), "name": _xml(check.name)})
    if check.verdict in OUTCOMES:
        attributes = {"type": check.verdict, "message": _xml(check.reason)}
        ElementTree.SubElement(case, OUTCOMES[check.verdict], attributes).text = _xml(f"{check.reason}\n{check.remedy}".strip())
    figures: dict[str, float | None] = {"value": check.value, "threshold": check.threshold, "num_items": check.num_items}
    if check.interval is not None:
        figures |= {"low": check.interval.low, "high": check.interval.high, "confidence": check.interval.confidence}
    lines = [f"{name}: {number}" for name, number in figures.items() if number is not None]
    ElementTree.SubElement(case, "system-out").text = _xml("\n".join([check.reason, *lines]))
    return case


def _whole(gate: GateResult) -> Check:
    verdict = "ERROR" if not gate.checks and gate.verdict == "PASS" else gate.verdict
    reason = f"The gate says {gate.verdict}, but none of its checks does." if gate.checks else "The gate made no checks."
    return Check(name="verdict", verdict=verdict, value=None, interval=None, threshold=None, num_items=0, reason=reason)


def _count(element: ElementTree.Element, checks: Sequence[Check]) -> None:
    outcomes = [OUTCOMES.get(check.verdict) for check in checks]
    counts = {"tests": len(outcomes), "failures": outcomes.count("failure"), "errors": outcomes.count("error")}
    for name, number in counts.items():
        element.set(name, str(number))


def _xml(text: str) -> str:
    """Text as XML can hold it: control characters, which it forbids even as references, are spelled out."""
    return NOT_XML.sub(lambda match: f"U+{ord(match.group()):04X}", text)
