"""JUnit XML: what Jenkins' junit-10.xsd allows and nothing else, one case for each check, and never green where nothing was shown."""

from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_reports import error_check, make_gate, make_report

from lorimer.errors import DataError
from lorimer.evaluation.gates import Check, GateResult, Verdict
from lorimer.evaluation.pages.junit import junit_xml
from lorimer.evaluation.results import SuiteReport

# Of the schema that Jenkins' xunit plugin checks files with: element -> (attributes it must have, others it may have, children).
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "testcase": ({"name"}, {"time", "classname", "group"}, {"skipped", "error", "failure", "system-out", "system-err"}),
    "failure": (set(), {"type", "message"}, set()),
    "error": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}


def read(text: str) -> ElementTree.Element:
    """Parse, and hold every element against the schema."""
    root = ElementTree.fromstring(text.encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        required, allowed, children = SCHEMA[element.tag]
        assert required <= set(element.attrib) <= required | allowed, (element.tag, element.attrib)
        assert {child.tag for child in element} <= children, element.tag
    for element in [root, *root.iter("testsuite")]:
        counts = [int(element.attrib[name]) for name in ("tests", "failures", "errors")]
        assert counts == [len(list(element.iter(tag))) for tag in ("testcase", "failure", "error")]
    return root


def check(name: str, verdict: Verdict, reason: str = "It was found.", remedy: str = "") -> Check:
    return Check(name=name, verdict=verdict, value=0.5, interval=None, threshold=0.4, num_items=10, reason=reason, remedy=remedy)


def gate_of(report: SuiteReport, verdict: Verdict, checks: Sequence[Check]) -> GateResult:
    return replace(make_gate(report), verdict=verdict, checks=tuple(checks))


REPORT = make_report(share=0.02)


def test_one_suite_for_each_family_and_one_case_for_each_check() -> None:
    report = make_report()
    gate = make_gate(report)
    root = read(junit_xml(gate, report))
    names = {suite.attrib["name"]: [case.attrib["name"] for case in suite.iter("testcase")] for suite in root}
    assert names == {
        "helpdesk.domain": ["intent", "extraction"],
        "helpdesk.general": ["arc", "reading", "drift", "neutral-text"],
        "helpdesk.safety": ["refusal", "over-refusal", "system-prompt"],
        "helpdesk.fidelity": ["abstention"],
        "helpdesk.memory": ["verbatim", "canaries"],
    }
    by_name = {case.attrib["name"]: case for case in root.iter("testcase")}
    for one in gate.checks:
        bad = [child for child in by_name[one.name] if child.tag != "system-out"]
        assert bool(bad) == (one.verdict != "PASS"), one.name
    properties = {part.attrib["name"]: part.attrib["value"] for part in next(iter(root)).iter("property")}
    assert properties["verdict"] == gate.verdict == "FAIL"
    assert properties["report_digest"] == report.digest


@pytest.mark.parametrize(
    ("verdict", "tag", "kind"),
    [("PASS", None, None), ("FAIL", "failure", "FAIL"), ("INCONCLUSIVE", "failure", "INCONCLUSIVE"), ("ERROR", "error", "ERROR")],
)
def test_only_a_passed_check_is_green(verdict: Verdict, tag: str | None, kind: str | None) -> None:
    found = check("refusal", verdict, "It refuses 3 of 10.", "Add items.")
    (case,) = read(junit_xml(gate_of(REPORT, verdict, [found]), REPORT)).iter("testcase")
    outcomes = [child for child in case if child.tag != "system-out"]
    assert [child.tag for child in outcomes] == ([tag] if tag else [])
    for child in outcomes:
        assert child.attrib == {"type": kind, "message": "It refuses 3 of 10."}
        assert child.text == "It refuses 3 of 10.\nAdd items."
    assert "value: 0.5\nthreshold: 0.4\nnum_items: 10" in str(case.findtext("system-out"))


@pytest.mark.parametrize(
    ("verdict", "checks", "num_failures", "num_errors"),
    [
        ("PASS", [], 0, 1),  # a gate that asked nothing shows nothing
        ("ERROR", [], 0, 1),
        ("FAIL", [check("refusal", "PASS")], 1, 0),  # a verdict worse than every check: still not green
        ("INCONCLUSIVE", [check("refusal", "PASS")], 1, 0),
        ("PASS", [check("refusal", "PASS")], 0, 0),
    ],
)
def test_a_whole_that_did_not_pass_is_not_green(verdict: Verdict, checks: list[Check], num_failures: int, num_errors: int) -> None:
    root = read(junit_xml(gate_of(REPORT, verdict, checks), REPORT))
    assert (root.attrib["failures"], root.attrib["errors"]) == (str(num_failures), str(num_errors))


def test_a_check_of_no_task_has_a_suite_of_its_own() -> None:
    gate = make_gate(REPORT, extra=[error_check("digests", "Candidate and base are the same.")])
    (suite,) = [suite for suite in read(junit_xml(gate, REPORT)) if suite.attrib["name"] == "helpdesk.gate"]
    assert [case.attrib["name"] for case in suite.iter("testcase")] == ["digests"]
    assert suite.attrib["errors"] == "1"


def test_a_gate_of_another_report_is_refused() -> None:
    with pytest.raises(DataError, match="not about"):
        junit_xml(make_gate(make_report(share=0.02, seed=8)), REPORT)


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=())))
def test_any_text_is_valid_xml(name: str, reason: str) -> None:
    report = replace(REPORT, candidate_name=name, suite=reason)
    gate = gate_of(report, "FAIL", [check(name, "FAIL", reason, remedy=reason)])
    (case,) = read(junit_xml(gate, report)).iter("testcase")
    if name.isprintable():
        assert case.attrib["name"] == name
