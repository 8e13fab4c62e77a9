"""An evaluation report as one page a person can read: self-contained, no scripts, light or dark as the reader's screen is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lorimer.config import home
from lorimer.evaluation.gates import GateResult
from lorimer.evaluation.report import EvalReport, ItemResult, Slice
from lorimer.evaluation.scorers.confusion import OTHER, ClassificationReport, classification_report
from lorimer.storage import write_json, write_text

Outcome = Literal["won", "lost", "both_wrong", "both_right", "unscored"]
METRIC_WORDS: dict[str, str] = {
    "exact": "the answer is the wanted text",
    "exact_json": "the answer is one JSON object with exactly the wanted fields and values",
    "contains": "the wanted text appears in the answer",
    "label": "the answer is the wanted label",
}
MAX_CLASSES = 100
MAX_SHOWN = 100  # examples in one section of the page; report.json has them all


def report_folder(digest: str) -> Path:
    """Where a report is kept, by its digest."""
    return home() / "reports" / digest[:16]


def write_report(report: EvalReport, gate: GateResult | None, folder: Path) -> Path:
    """Write `report.json`, `report.html` and, with a gate, `gate.json`; returns the page's path."""
    write_json(folder / "report.json", report.to_json())
    if gate is not None:
        write_json(folder / "gate.json", gate.to_json())
    write_text(folder / "report.html", render_report(report, gate))
    return folder / "report.html"


def render_report(report: EvalReport, gate: GateResult | None) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=_percent, points=_points, seconds=_seconds)
    overall = Slice(name="all items", base=report.base_score, adapter=report.adapter_score)
    charts: list[tuple[str, Sequence[Slice]]] = [("Overall", [overall])]
    charts += [("By field of the answer", report.fields)] if report.fields else []
    charts += [(f"By {tag}", slices) for tag, slices in report.tags.items() if len(slices) > 1]
    classes = _classes(report)
    page = environment.get_template("report.html.j2").render(
        report=report,
        gate=gate,
        headline=headline(report),
        metric_words=METRIC_WORDS[report.metric],
        charts=charts,
        classes=classes,
        columns=[*(own.name for own in classes.classes), OTHER] if classes else [],
        outcomes=sort_outcomes(report.items),
        max_shown=MAX_SHOWN,
    )
    return page.strip() + "\n"


def _classes(report: EvalReport) -> ClassificationReport | None:
    """Of labels, what was taken for what; None where answers are no labels, or there are too many for a table."""
    if report.metric != "label":
        return None
    found = classification_report([item.adapter_answer for item in report.items], [item.target for item in report.items])
    return found if len(found.classes) <= MAX_CLASSES else None


def headline(report: EvalReport) -> str:
    """The finding in one sentence."""
    pair, interval = report.comparison, report.comparison.interval
    if pair.num_items == 0:
        return f"None of the {report.num_items} answers of {report.adapter_name} could be scored."
    scores = f"{report.adapter_name} is right on {_percent(report.adapter_score.value)} of {pair.num_items} items"
    against = f"its base {report.base_name} on {_percent(report.base_score.value)}"
    if interval.low > 0:
        return f"{scores}, {against}: better by {_points(pair.difference)}."
    if interval.high < 0:
        return f"{scores}, {against}: worse by {_points(-pair.difference)}."
    return f"{scores}, {against}: no difference beyond chance."


def sort_outcomes(items: Sequence[ItemResult]) -> dict[Outcome, list[ItemResult]]:
    """Items by who was right."""
    sorted_items: dict[Outcome, list[ItemResult]] = {"won": [], "lost": [], "both_wrong": [], "both_right": [], "unscored": []}
    for item in items:
        sorted_items[_outcome(item)].append(item)
    return sorted_items


def _outcome(item: ItemResult) -> Outcome:
    if not item.is_scored:
        return "unscored"
    if item.adapter_value == 1:
        return "both_right" if item.base_value == 1 else "won"
    return "lost" if item.base_value == 1 else "both_wrong"


def _percent(share: float | None) -> str:
    return "unscored" if share is None else f"{share:.1%}"


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else f"{int(value) // 60} min {int(value) % 60} s"
