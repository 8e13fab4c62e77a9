"""A report of classes, counted by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.evaluation.scorers.confusion import classification_report
from lorimer.evaluation.statistics.proportions import wilson_interval

TARGETS = ["spam", "spam", "spam", "ham", "ham", "news", "news", "?!"]
ANSWERS = ["Spam.", "spam", "ham", "ham", "advert", "spam", None, "spam"]


def test_report_counts_what_was_taken_for_what() -> None:
    report = classification_report(ANSWERS, TARGETS, classes=["draft"])
    assert [one.name for one in report.classes] == ["draft", "ham", "news", "spam"]
    assert report.matrix == ((0, 0, 0, 0, 0), (0, 1, 0, 0, 1), (0, 0, 0, 1, 0), (0, 1, 0, 2, 0))
    assert (report.num_other, report.num_unscored) == (1, 2)
    draft, ham, news, spam = report.classes
    assert (ham.precision.value, ham.recall.value, ham.f1) == (1 / 2, 1 / 2, 1 / 2)
    assert (news.precision.value, news.recall.value, news.f1) == (None, 0, 0)
    assert (spam.precision.value, spam.recall.value, spam.f1) == (2 / 3, 2 / 3, pytest.approx(2 / 3))
    assert draft.f1 is None
    assert spam.recall.interval == wilson_interval(2, 3)
    assert report.macro_f1 == pytest.approx((1 / 2 + 0 + 2 / 3) / 3)
    assert (report.accuracy.num_correct, report.accuracy.num_items) == (3, 6)
    assert report.to_json()["columns"] == ["draft", "ham", "news", "spam", "other"]
    assert report.to_json()["accuracy"]["value"] == 0.5


def test_report_of_nothing_says_nothing() -> None:
    report = classification_report([], [])
    assert (report.classes, report.matrix, report.macro_f1, report.accuracy.value) == ((), (), None, None)


@settings(deadline=None)
@given(st.lists(st.tuples(st.none() | st.text("abc.", max_size=3), st.text("abc.", max_size=2))))
def test_report_leaves_no_item_out(pairs: list[tuple[str | None, str]]) -> None:
    report = classification_report([answer for answer, _ in pairs], [target for _, target in pairs])
    assert sum(map(sum, report.matrix)) + report.num_unscored == len(pairs)
    assert sum(report.matrix[place][place] for place in range(len(report.classes))) == report.accuracy.num_correct
    assert report.macro_f1 is None or 0 <= report.macro_f1 <= 1
