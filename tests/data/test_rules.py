"""What each rule takes out, changes or reports."""

import pytest

from lorimer.data.example import Example, Message
from lorimer.data.rules import (
    DropTooLong,
    Judged,
    KeepLanguages,
    RowRule,
    StripWhitespace,
    Tally,
    fold,
    folded_prompt,
    judge_row,
    speaks,
)


def ask(
    prompt: str,
    answer: str = "A",
    rejected: str | None = None,
    *,
    line: int = 1,
    language: str | None = None,
    system: str | None = None,
) -> Example:
    before = (Message(role="system", content=system),) if system else ()
    messages = (*before, Message(role="user", content=prompt), Message(role="assistant", content=answer))
    return Example(messages=messages, rejected=rejected, source=f"f:{line}", tags={"language": language} if language else {})


@pytest.mark.parametrize(
    ("left", "right"), [("  Two\n words ", "two WORDS"), ("Stra\u00dfe", "STRASSE"), ("cafe\u0301", "caf\u00e9"), ("a\u00a0b", "a b")]
)
def test_fold_makes_what_reads_alike_equal(left: str, right: str) -> None:
    assert fold(left) == fold(right)


def test_folded_prompt_tells_systems_apart_when_asked() -> None:
    left, right = ask("Q", system="S"), ask("q", system="T")
    assert folded_prompt(left) != folded_prompt(right)
    assert folded_prompt(left, with_system=False) == folded_prompt(right, with_system=False)


def judged(rule: RowRule, example: Example) -> tuple[Example | None, str]:
    found = rule(example)
    return found.example, found.reason


def test_white_space_is_taken_off_both_ends() -> None:
    rule = StripWhitespace()
    assert judged(rule, ask(" Q", "A\n")) == (ask("Q", "A"), "had white space at an end, which was taken off")
    assert judged(rule, ask("Q", "A", " B\n"))[0] == ask("Q", "A", "B")
    assert judged(rule, Example(text="\tt ", source="f:3"))[0] == Example(text="t", source="f:3")
    assert rule(untouched := ask("Q x", "A")).example is untouched


@pytest.mark.parametrize(
    ("example", "is_kept"),
    [
        (ask("x" * 9, "A"), True),
        (ask("x" * 10, "A"), False),
        (Example(text="x" * 11, source="f:3"), False),
        # a pair is as long as its longer answer
        (ask("Q", "A" * 9, "B" * 9), True),
        (ask("Q", "A", "B" * 10), False),
        (ask("Q", "A" * 10, "B"), False),
    ],
)
def test_too_long_rows_are_dropped(example: Example, is_kept: bool) -> None:
    found, reason = judged(DropTooLong(10), example)
    assert (found, reason) == ((example, "") if is_kept else (None, "had more than 10 characters"))


@pytest.mark.parametrize(("tag", "is_kept"), [("en", True), ("de", False), (None, True), ("pt-BR", True)])
def test_other_languages_are_dropped_and_untagged_rows_stay(tag: str | None, is_kept: bool) -> None:
    found, reason = judged(KeepLanguages(("en", "pt")), ask("a", language=tag))
    assert ((found is not None), reason) == (is_kept, "" if is_kept else "had languages other than en, pt")


@pytest.mark.parametrize(
    ("tag", "wanted", "matches"),
    [("en", "en", True), ("pt-BR", "pt", True), ("pt", "pt-BR", False), ("eng", "en", False), ("EN", "en", True)],
)
def test_language_tags_match_by_prefix(tag: str, wanted: str, matches: bool) -> None:
    assert speaks(tag, wanted) is matches


def test_rules_see_what_the_one_before_made_and_are_counted() -> None:
    tallies: dict[str, Tally] = {}
    rules = (StripWhitespace(), DropTooLong(2))
    rows = [judge_row(ask(f"{'Q' * number} ", "A", line=number), rules, tallies) for number in range(1, 10)]
    assert [row.example and row.example.source for row in rows][:2] == ["f:1", None]
    assert (rows[5].rule, rows[5].reason) == ("drop_too_long", "had more than 2 characters")
    finding = tallies["drop_too_long"].finding("drop_too_long")
    assert (finding.num_removed, finding.message) == (8, "8 rows had more than 2 characters")
    assert finding.examples == ("f:2", "f:3", "f:4", "f:5", "f:6")
    assert tallies["strip_whitespace"].num_changed == 9


def test_finding_ranks_reasons_and_says_why_of_each_example() -> None:
    tally = Tally()
    for number in range(20):
        tally.add(f"f:{number}", Judged(None, f"reason {min(number % 9, 7)}"), ask("Q"))
    finding = tally.finding("r")
    assert finding.message.startswith("4 rows: reason 7; 3 rows: reason 0; 3 rows: reason 1; ")
    assert finding.message.endswith("; 4 rows for other reasons")
    assert finding.reasons == tuple(f"reason {number}" for number in range(5))


def test_tallies_of_chunks_add_up() -> None:
    first, second = Tally(), Tally()
    first.add("f:1", Judged(ask("R"), "changed"), ask("Q"))
    flagged = ask("Q")
    second.add("f:2", Judged(flagged, "flagged"), flagged)
    first.merge(second)
    assert (first.num_removed, first.num_changed, first.num_flagged) == (0, 1, 1)
    assert first.examples == [("f:1", "changed"), ("f:2", "flagged")]
    assert Tally().finding("r").message == "no row"
