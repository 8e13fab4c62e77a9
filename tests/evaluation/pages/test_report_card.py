"""The report card: self-contained, escaped, readable without colour, and saying what the evidence says."""

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_reports import error_check, make_gate, make_item, make_report

from lorimer.errors import DataError
from lorimer.evaluation.checks import check_suite, gate_of
from lorimer.evaluation.pages.charts import axis_of
from lorimer.evaluation.pages.forest import draw_panels
from lorimer.evaluation.pages.marking import HIDDEN, MAX_CHARS, mark_differences, name_hidden, show_text
from lorimer.evaluation.pages.report_card import MAX_SHOWN, Attempt, ServingCost, TrainingCost, headline, pick_examples, render_report_card
from lorimer.evaluation.pages.tally import sum_duels, tally_tasks
from lorimer.evaluation.results import Family, ItemScores, SuiteReport, TaskResult
from lorimer.evaluation.scorers.score import Score

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'></pre></details></main>"
VOID = {"meta", "br", "path", "circle", "rect", "line", "img"}


class Page(HTMLParser):
    """A page's text, tags and addresses; refuses tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action", "data", "xlink:href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.words.append(data)


def report_of(*items: ItemScores, family: Family = "safety", has_incumbent: bool = True) -> SuiteReport:
    task = TaskResult(
        name="refusal",
        family=family,
        kind="answer",
        metric="refuses",
        rule={"not_worse_than": "base", "margin": 0.02},
        task_digest="7" * 64,
        items=items,
    )
    return replace(make_report(share=0.01, has_incumbent=has_incumbent), tasks=(task,))


def page_of(report: SuiteReport) -> Page:
    return Page(render_report_card(report, make_gate(report)))


@pytest.mark.parametrize("has_incumbent", [True, False])
def test_page_asks_for_nothing_from_elsewhere(has_incumbent: bool) -> None:
    found = page_of(make_report(has_incumbent=has_incumbent, share=0.2))
    assert found.links == []
    assert found.handlers == []
    assert not {"script", "link", "img", "iframe", "object", "foreignobject"} & set(found.tags)


@pytest.mark.parametrize("has_incumbent", [True, False])
def test_every_check_is_drawn_or_listed_once_with_its_verdict_in_words(has_incumbent: bool) -> None:
    report = make_report(has_incumbent=has_incumbent, share=0.2)
    gate = make_gate(report, extra=[error_check("seal", "The reserve was opened.")])
    html = render_report_card(report, gate)
    for check in gate.checks:
        assert html.count(f"<div><b>{check.name}</b><small>") == 1 + (check.name != "seal"), check.name  # among the checks and the tasks
    drawn = re.findall(r'aria-label="(PASS|FAIL|INCONCLUSIVE|ERROR): ', html)
    assert sorted(drawn) == sorted(check.verdict for check in gate.checks if check.interval is not None)
    assert ("no incumbent: the base alone is compared with" in html) is not has_incumbent


@pytest.mark.parametrize(
    ("changes", "verdict", "says"),
    [
        ({"reading": 0.40}, "FAIL", "helpdesk:2 did not pass: 1 of 12 checks failed (reading)."),
        (
            {"reading": 0.70, "refusal": 0.97, "over-refusal": 0.95},
            "INCONCLUSIVE",
            "helpdesk:2 has not passed yet: 2 of 12 checks could not be settled with this many items (system-prompt, verbatim).",
        ),
    ],
)
def test_headline_is_the_verdict_in_a_sentence(changes: dict[str, float], verdict: str, says: str) -> None:
    report = make_report(changes=changes)
    gate = make_gate(report)
    assert gate.verdict == verdict
    assert headline(report, gate) == says


def test_headline_of_a_pass_and_of_a_fault() -> None:
    report = make_report(changes={"reading": 0.75, "over-refusal": 1.0, "arc": 0.5}, unscored=0)
    gate = make_gate(report)
    assert headline(report, gate) == "helpdesk:2 passed every check of helpdesk version 3: 12 of 12."
    assert "12 of 12." in Page(render_report_card(report, gate)).text
    report = make_report(share=0.02)
    fault = make_gate(report, extra=[error_check("digests", "Candidate and base are the same.")])
    assert headline(report, fault) == "helpdesk:2 could not be judged: 1 of 13 checks met a fault in the evidence (digests)."
    assert "Candidate and base are the same. Evaluate the adapter again." in Page(render_report_card(report, fault)).text


def test_a_gate_of_another_report_is_refused() -> None:
    report = make_report(share=0.02)
    with pytest.raises(DataError, match=r"not about .* run the gate on this report"):
        render_report_card(report, make_gate(make_report(share=0.02, seed=8)))


def test_tallies_follow_from_the_items() -> None:
    right, wrong, none = Score(value=1.0, answer="a"), Score(value=0.0, answer="b"), Score(value=None, answer="", explanation="no answer")
    items = [
        make_item("won both", candidate=right, incumbent=wrong, base=wrong),
        make_item("lost to the incumbent", candidate=wrong, incumbent=right, base=wrong),
        make_item("lost to the base", candidate=wrong, incumbent=wrong, base=right),
        make_item("same", candidate=right, incumbent=right, base=right),
        make_item("unscored", candidate=right, incumbent=none, base=right),
    ]
    report = report_of(*items)
    (tally,) = tally_tasks(report, make_gate(report))
    assert (tally.num_scored, tally.num_unscored) == (4, 1)
    assert (tally.candidate, tally.incumbent, tally.base) == (0.5, 0.5, 0.5)
    assert [(duel.against, duel.num_won, duel.num_lost, duel.num_same) for duel in tally.duels] == [
        ("incumbent", 1, 1, 2),
        ("base", 1, 1, 2),
    ]
    assert sum_duels([tally, tally], "base").num_lost == 2
    (lost,) = pick_examples(report.tasks, True, -1, ("safety",))  # the rule is about the base
    assert [example.item.id for example in lost.shown] == ["lost to the base"]


@pytest.mark.parametrize(
    ("metric", "rule", "num_won", "num_lost"),
    [
        ("perplexity", {"not_worse_than": "base", "margin": 0.1}, 1, 0),
        ("exposure", {"at_most": 3.0}, 1, 0),
        ("repeats", {"at_most": 0.1}, 1, 0),
        ("refuses", {"at_least": 0.1}, 0, 1),
    ],
)
def test_where_less_is_better_a_lower_score_wins(metric: str, rule: dict[str, object], num_won: int, num_lost: int) -> None:
    report = report_of(make_item(candidate=Score(value=0.2, answer=""), base=Score(value=0.9, answer="")))
    report = replace(report, tasks=(replace(report.tasks[0], metric=metric, rule=rule),))
    (tally,) = tally_tasks(report, make_gate(report))
    assert [(duel.num_won, duel.num_lost) for duel in tally.duels if duel.against == "base"] == [(num_won, num_lost)]


def test_membership_is_drawn_in_nats_by_item_and_as_an_area_by_check() -> None:
    items = [
        make_item(f"{tag}{n}", tags={"member": tag}, candidate=Score(value=-0.2 + n / 90, answer=""), base=Score(value=0.0, answer=""))
        for tag in ("yes", "no")
        for n in range(60)
    ]
    report = report_of(*items)
    report = replace(report, incumbent_name=None, incumbent_digest=None)
    told = replace(report.tasks[0], kind="text", metric="membership", rule={"at_most": 0.7})
    report = replace(report, tasks=(replace(told, items=tuple(replace(item, incumbent=None) for item in told.items)),))
    (tally,) = tally_tasks(report, gate_of(report, check_suite(report)))
    assert (tally.unit, tally.less_is_better) == ("nats", True)
    assert sum_duels([tally], "base").num_lost == 0  # not right or wrong: nothing is won or lost
    (panel,) = draw_panels(report, gate_of(report, check_suite(report)))
    (row,) = panel.rows
    assert (row.check.verdict, row.found) == ("PASS", "50.0%")
    text = page_of(report).text
    assert "0.128 nats" in text


def test_only_so_many_examples_are_shown_and_the_rest_counted() -> None:
    page = page_of(report_of(*(make_item(f"item{number}") for number in range(MAX_SHOWN + 7))))
    assert page.tags.count("article") == MAX_SHOWN
    assert "7 more are in report.json beside this page." in page.text


def test_families_that_were_not_measured_are_said_to_be_so() -> None:
    text = page_of(report_of(make_item())).text
    assert text.count("Not measured: the suite has no task of this family.") == 4
    assert "1 that the base handled better go worse now, and 0 go better than with the base" in text


def test_unscored_items_are_listed_with_why() -> None:
    nothing, odd = Score(value=None, answer="", explanation="no answer was given"), Score(value=float("nan"), answer="x")
    items = [make_item("a", candidate=nothing), make_item("b", incumbent=odd), make_item("c", base=nothing, incumbent=None), make_item("d")]
    report = report_of(*items)
    text = page_of(report).text
    assert "candidate: no answer was given" in text
    assert "incumbent: its score is not a number" in text
    assert "incumbent: it was not askedbase: no answer was given" in text
    assert "1 item, 3 unscored" in text


def test_page_of_a_report_without_any_score_still_says_so() -> None:
    none = Score(value=None, answer="", explanation="no answer was given")
    report = report_of(make_item(candidate=none, base=none, incumbent=none))
    text = page_of(report).text
    assert "could not be judged" in text
    assert "not scored" in text
    assert "No answer was won or lost." in text


def test_page_of_an_empty_suite_is_an_error() -> None:
    report = replace(make_report(share=0.01), tasks=())
    text = page_of(report).text
    assert "helpdesk:2 could not be judged." in text
    assert "The gate asked nothing." in text


def test_costs_are_shown_where_they_were_measured_and_missed_where_not() -> None:
    report = make_report(share=0.02)
    gate = make_gate(report)
    without = Page(render_report_card(report, gate)).text
    assert "Latency and cost per answer were not measured." in without
    assert "which attempt on it this is was not recorded" in without
    html = render_report_card(
        report,
        gate,
        training=TrainingCost(seconds=1800, num_tokens=412_000, price_per_hour=0.5),
        serving={
            "candidate": ServingCost(num_answers=1000, num_tokens=50_000, seconds=360, latency_seconds=0.84, price_per_hour=0.5),
            "base": ServingCost(num_answers=0, num_tokens=0, seconds=0),
        },
        attempt=Attempt(number=9, reserve="sealed"),
    )
    text = Page(html).text
    for words in ("30 min 0 s for 412,000 tokens and cost 0.25", "840 ms", "0.05", "no price per hour given", "not measured"):
        assert words in text, words
    assert "Attempt 9 on helpdesk version 3; the reserve is sealed." in text
    opened = render_report_card(report, gate, attempt=Attempt(number=10, reserve="opened"))
    assert "Attempt 10 on helpdesk version 3; the reserve was opened." in Page(opened).text


def test_what_strangers_wrote_is_escaped_wherever_it_stands() -> None:
    score = Score(value=0.0, answer=EVIL, explanation=EVIL)
    items = [
        make_item(EVIL, prompt=EVIL, target=EVIL, tags={EVIL: EVIL}, candidate=score, incumbent=Score(value=1.0, answer=EVIL * 40)),
        make_item("u", prompt=EVIL, candidate=replace(score, value=None)),
    ]
    report = report_of(*items)
    names = {"suite": EVIL, "candidate_name": EVIL, "base_name": EVIL, "incumbent_name": EVIL, "candidate_digest": EVIL, "created_at": EVIL}
    report = replace(report, tasks=(replace(report.tasks[0], name=EVIL, metric=EVIL),), **names)
    page = page_of(report)
    assert not {"script", "img"} & set(page.tags)
    assert page.handlers == []
    assert page.text.count("alert(1)") > 10


def test_a_megabyte_of_answer_is_clipped_counted_and_quick() -> None:
    long = "word " * 200_000
    items = [
        make_item(f"i{number}", prompt=long, candidate=Score(value=0.0, answer=long), base=Score(value=1.0, answer=long + "!"))
        for number in range(4)
    ]
    start = time.monotonic()
    html = render_report_card(*(lambda report: (report, make_gate(report)))(report_of(*items)))
    assert time.monotonic() - start < 10
    assert len(html) < 400_000
    assert "996,000 more characters are in the record. They differ only after what is shown." in Page(html).text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b", "aU+0000b"),
        ("safe\u202eexe.gpj", "safeU+202Eexe.gpj"),
        ("\u2066x\u2069\u200f", "U+2066xU+2069U+200F"),
        ("\ud800", "U+D800"),
        ("\U000e0041 tag", "U+E0041 tag"),
        ("\x1b[31mred", "U+001B[31mred"),
        ("one\r\ntwo\rthree\tx", "one\ntwoU+000Dthree\tx"),
        ("família 👩‍👩‍👧 می‌خواهم", "família 👩‍👩‍👧 می‌خواهم"),  # joiners belong to the text
        ("<b>&", "&lt;b&gt;&amp;"),
    ],
)
def test_hidden_characters_are_named(text: str, shown: str) -> None:
    assert re.sub('<span class="hidden">|</span>', "", str(name_hidden(text))) == shown


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_categories=()), max_size=60), st.text(max_size=60))
def test_any_text_is_shown_whole_and_safe(text: str, other: str) -> None:
    html = str(show_text(text, other))
    html.encode()
    assert not HIDDEN.search(html)
    words = "".join(Page(html).words)
    assert words == ((re.sub("<[^>]*>", "", str(name_hidden(text))) and "".join(Page(str(name_hidden(text))).words)) or "(empty)")


@settings(deadline=None, max_examples=50)
@given(st.text("ab <é漢\n", max_size=80), st.text("ab <é漢\n", max_size=80))
def test_marked_parts_put_together_are_the_text(text: str, other: str) -> None:
    parts = mark_differences(text, other)
    if parts is not None:
        assert "".join(part for part, _ in parts) == text
        assert any(marked for _, marked in parts) or len(text) <= len(other)


@pytest.mark.parametrize(
    ("text", "other", "marked"),
    [
        ("take the blue card now", "take the red card now", ["blue"]),
        ("same", "same", []),
        ("请打开门吧", "请关上门吧", ["打开"]),
        ("Press 1. " * 6, "Press 1. ", ["Press 1. " * 5]),
        ("one two three four", "one two three four five", []),
    ],
)
def test_differences_are_marked_word_by_word(text: str, other: str, marked: Sequence[str]) -> None:
    assert [part for part, is_different in mark_differences(text, other) or [] if is_different] == list(marked)


@pytest.mark.parametrize(("text", "other"), [("w " * 900, "v " * 900), ("I cannot help with that.", "Zuerst öffnen Sie die Einstellungen")])
def test_texts_too_long_or_unlike_are_not_marked(text: str, other: str) -> None:
    assert mark_differences(text, other) is None
    assert "<mark>" not in show_text(text, other)


def test_a_long_text_is_folded_and_a_longer_one_clipped() -> None:
    assert "<details" not in show_text("short")
    assert "all 500 characters" in show_text("x" * 500)
    assert f"{1000:,} more characters are in the record." in show_text("x" * (MAX_CHARS + 1000))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-1e6, 1e6).map(lambda value: round(value, 4)), min_size=1, max_size=6))
def test_an_axis_holds_its_values_and_few_round_ticks(values: list[float]) -> None:
    axis = axis_of(values)
    spread = max(values) - min(values)
    assert axis.low <= min(values) + 1e-6 * max(spread, 1e-3)
    assert axis.high >= max(values) - 1e-6 * max(spread, 1e-3)
    assert 2 <= len(axis.ticks) <= 8
    places = [axis.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
