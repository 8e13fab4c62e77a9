"""The page: self-contained, escaped, and saying what the report says."""

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lorimer.config import GateRecipe
from lorimer.data.example import Message
from lorimer.evaluation.gates import check
from lorimer.evaluation.pages.page import headline, render_report, report_folder, sort_outcomes, write_report
from lorimer.evaluation.report import EvalReport, build_report, report_from_json
from lorimer.evaluation.task import Sample, Task


def report(
    adapter: Sequence[str | None], base: Sequence[str | None], question: str = "Where is my card?", language: str = "en"
) -> EvalReport:
    samples = tuple(
        Sample(
            id=f"item{n}",
            prompt=(Message(role="user", content=f"{question} {n}"),),
            target='{"queue": "cards"}',
            tags={"language": language if n % 2 else "de"},
        )
        for n in range(len(adapter))
    )
    return build_report(
        Task(name="helpdesk", metric="exact_json", samples=samples, dataset_digest="d" * 64),
        base_answers=base,
        adapter_answers=adapter,
        base_name="gemma3-270m",
        base_digest="b" * 64,
        adapter_name="helpdesk",
        adapter_digest="a" * 64,
        seconds=75.0,
        tokens_per_second=41.6,
    )


RIGHT, WRONG = '{"queue": "cards"}', '{"queue": "loans"}'


class Links(HTMLParser):
    """What a page asks for from elsewhere, and the tags it has."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


def read(page: str) -> Links:
    parser = Links()
    parser.feed(page)
    return parser


def test_page_asks_for_nothing_from_elsewhere() -> None:
    found = read(render_report(report([RIGHT] * 4, [WRONG] * 4), None))
    assert found.links == []
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert found.tags.count("svg") == 3  # overall, by field, by language


def test_page_shows_headline_gate_and_examples() -> None:
    evidence = report([RIGHT] * 30 + [WRONG, WRONG], [WRONG] * 30 + [RIGHT, "no idea"])
    page = render_report(evidence, check(evidence, GateRecipe(at_least=0.5)))
    assert page.startswith("<!doctype html>")
    for text in (headline(evidence), '"badge PASS"', "at least the 50.0% asked for", "no idea", "&#39;queue&#39; differs", "1 min 15 s"):
        assert text in page, text


@pytest.mark.parametrize(
    ("adapter", "base", "says"),
    [
        ([RIGHT] * 20, [WRONG] * 20, "helpdesk is right on 100.0% of 20 items, its base gemma3-270m on 0.0%: better by 100.0 points."),
        ([WRONG] * 20, [RIGHT] * 20, "helpdesk is right on 0.0% of 20 items, its base gemma3-270m on 100.0%: worse by 100.0 points."),
        (
            [RIGHT] * 20,
            [RIGHT] * 20,
            "helpdesk is right on 100.0% of 20 items, its base gemma3-270m on 100.0%: no difference beyond chance.",
        ),
        ([None] * 3, [WRONG] * 3, "None of the 3 answers of helpdesk could be scored."),
    ],
)
def test_headline_says_what_was_found(adapter: list[str | None], base: list[str | None], says: str) -> None:
    assert headline(report(adapter, base)) == says


def test_page_escapes_what_strangers_wrote() -> None:
    evil = "<script>alert(1)</script>"
    page = render_report(report([evil], [evil], question=evil, language=evil), None)
    assert evil not in page
    assert "script" not in read(page).tags


def test_page_of_a_report_without_scores_still_renders() -> None:
    evidence = report([None], [None])
    page = render_report(evidence, check(evidence, GateRecipe()))
    assert "unscored" in page
    assert '"badge ERROR"' in page


def test_page_says_how_many_examples_it_leaves_out() -> None:
    assert "30 more are in report.json" in render_report(report([WRONG] * 130, [WRONG] * 130), None)


def test_outcomes_sort_every_item_once() -> None:
    evidence = report([RIGHT, WRONG, WRONG, RIGHT, None], [WRONG, RIGHT, WRONG, RIGHT, RIGHT])
    assert {name: [item.id for item in items] for name, items in sort_outcomes(evidence.items).items()} == {
        "won": ["item0"],
        "lost": ["item1"],
        "both_wrong": ["item2"],
        "both_right": ["item3"],
        "unscored": ["item4"],
    }


def test_write_report_keeps_record_page_and_gate(home: Path) -> None:
    evidence = report([RIGHT] * 4, [WRONG] * 4)
    gate = check(evidence, GateRecipe(min_items=1))
    page = write_report(evidence, gate, report_folder(evidence.digest))
    assert page == home / "reports" / evidence.digest[:16] / "report.html"
    assert report_from_json(json.loads((page.parent / "report.json").read_text())) == evidence
    assert json.loads((page.parent / "gate.json").read_text())["verdict"] == gate.verdict


def test_labels_have_a_table_of_what_was_taken_for_what() -> None:
    wanted, said = ["lost", "late", "lost", "fee"], ["lost", "lost", "cash", "fee"]
    samples = tuple(Sample(id=str(n), prompt=(Message(role="user", content=f"q{n}"),), target=own) for n, own in enumerate(wanted))
    task = Task(name="cards", metric="label", samples=samples, dataset_digest="d" * 64)
    own = build_report(
        task, base_answers=["x"] * 4, adapter_answers=said, base_name="b", base_digest="b" * 64, adapter_name="a", adapter_digest="a" * 64,
        seconds=1.0,
    )  # fmt: skip
    page = " ".join(render_report(own, None).split())
    assert "<h2>By class</h2>" in page
    assert "<tr><th>late</th><td>1</td> <td>0.0%" in page
    assert "lost 1 </td></tr>" in page  # late was taken for lost
    assert "other 1 </td></tr>" in page
    assert "1 name no known class" in page
    assert "By class" not in render_report(report([RIGHT], [WRONG]), None)
