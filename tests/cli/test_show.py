"""What a suite found, on the terminal: every task with its verdict, and names that look like markup as they are."""

from dataclasses import replace

import pytest
from rich.console import Console
from suite_reports import make_gate, make_report

from lorimer.cli import show


@pytest.mark.parametrize("has_incumbent", [True, False])
def test_every_task_is_shown_with_its_verdict(monkeypatch: pytest.MonkeyPatch, has_incumbent: bool) -> None:
    console = Console(width=160, record=True)
    monkeypatch.setattr(show, "console", console)
    report = make_report(share=0.2, has_incumbent=has_incumbent)
    report = replace(report, candidate_name="[red]helpdesk[/red]")
    gate = make_gate(report)
    show.show_suite_report(report, gate)
    text = console.export_text()
    assert "[red]helpdesk[/red] on helpdesk version 3" in text
    assert ("incumbent" in text) is has_incumbent
    for check in gate.checks:
        (line,) = [line for line in text.splitlines() if f" {check.name} " in line and "│" in line]
        assert line.rstrip(" │").endswith(check.verdict), line
    assert "(3 unscored)" in text
    assert f"Gate: {gate.verdict}." in text
