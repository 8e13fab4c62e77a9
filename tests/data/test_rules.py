"""What each rule takes out, changes or reports."""

import pytest

from lorimer.data.example import Example, Message
from lorimer.data.rules import (
    apply_rules,
    drop_exact_duplicates,
    drop_too_long,
    flag_conflicts,
    fold,
    folded_prompt,
    keep_languages,
    speaks,
    strip_whitespace,
)
from lorimer.errors import DataError


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


@pytest.mark.parametrize(
    ("second", "is_duplicate"),
    [
        (ask("q ", "A"), True),
        (ask("Q", "A\n"), True),
        (ask("Q", "a"), False),
        (ask("R", "A"), False),
        (ask("Q", "A", system="S"), False),
        (Example(text="Q", source="f:2"), False),
    ],
)
def test_duplicates_are_dropped_and_the_first_is_kept(second: Example, is_duplicate: bool) -> None:
    kept, finding = drop_exact_duplicates([ask("Q", "A"), second])
    assert kept == ((ask("Q", "A"),) if is_duplicate else (ask("Q", "A"), second))
    assert finding.num_removed == int(is_duplicate)
    assert finding.examples == ((second.source,) if is_duplicate else ())


@pytest.mark.parametrize(("second", "is_duplicate"), [("B", True), ("B\n", True), ("b", False), ("C", False), (None, False)])
def test_duplicate_pairs_have_the_same_rejected_answer_too(second: str | None, is_duplicate: bool) -> None:
    kept = drop_exact_duplicates([ask("Q", "A", "B"), ask("q", "A", second)]).examples
    assert len(kept) == (1 if is_duplicate else 2)


def test_duplicate_texts_are_dropped() -> None:
    texts = [Example(text="Once upon", source="f:1"), Example(text="once  upon", source="f:2"), Example(text="once", source="f:3")]
    assert [example.source for example in drop_exact_duplicates(texts).examples] == ["f:1", "f:3"]


def test_conflicts_are_reported_and_kept() -> None:
    examples = [ask("Q", "A", line=1), ask("R", "A", line=2), ask("q", "B", line=3), ask("R", " A", line=4)]
    kept, finding = flag_conflicts(examples)
    assert kept == tuple(examples)
    assert finding.examples == ("f:1", "f:3")
    assert finding.message.startswith("1 prompt had more than one answer (2 rows), all kept")


def test_no_conflicts_are_said_so() -> None:
    assert flag_conflicts([ask("Q"), ask("R")]).finding.message == "no prompt had more than one answer"


def test_white_space_is_taken_off_both_ends() -> None:
    kept, finding = strip_whitespace([ask(" Q", "A\n"), ask("Q x", "A"), Example(text="\tt ", source="f:3")])
    assert [example.content() for example in kept] == [ask("Q").content(), ask("Q x").content(), {"text": "t"}]
    assert (finding.num_changed, finding.num_removed) == (2, 0)
    assert strip_whitespace([ask("Q", "A", " B\n")]).examples == (ask("Q", "A", "B"),)


def test_too_long_rows_are_dropped() -> None:
    kept, finding = drop_too_long(10)([ask("x" * 9, "A"), ask("x" * 10, "A", line=2), Example(text="x" * 11, source="f:3")])
    assert [example.source for example in kept] == ["f:1"]
    assert (finding.num_removed, finding.examples) == (2, ("f:2", "f:3"))


def test_pair_is_as_long_as_its_longer_answer() -> None:
    pairs = [ask("Q", "A" * 9, "B" * 9), ask("Q", "A", "B" * 10, line=2), ask("Q", "A" * 10, "B", line=3)]
    assert drop_too_long(10)(pairs).examples == tuple(pairs[:1])


def test_other_languages_are_dropped_and_untagged_rows_stay() -> None:
    kept, finding = keep_languages(["en", "pt"])([ask("a", language="en"), ask("b", language="de"), ask("c"), ask("d", language="pt-BR")])
    assert [example.tags.get("language") for example in kept] == ["en", None, "pt-BR"]
    assert finding.num_removed == 1
    assert "1 row without a language tag" in finding.message


def test_language_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match=r"no example is tagged 'fr', only en \(2\), de \(1\)"):
        keep_languages(["en", "fr"])([ask("a", language="en"), ask("b", language="en"), ask("c", language="de")])


def test_language_cannot_be_checked_without_tags() -> None:
    assert len(keep_languages(["fr"])([ask("a"), ask("b")]).examples) == 2


@pytest.mark.parametrize(
    ("tag", "wanted", "matches"),
    [("en", "en", True), ("pt-BR", "pt", True), ("pt", "pt-BR", False), ("eng", "en", False), ("EN", "en", True)],
)
def test_language_tags_match_by_prefix(tag: str, wanted: str, matches: bool) -> None:
    assert speaks(tag, wanted) is matches


def test_rules_see_what_the_one_before_kept() -> None:
    cleaned = apply_rules([ask("Q"), ask("Q "), ask("R")], [strip_whitespace, drop_exact_duplicates])
    assert len(cleaned.examples) == 2
    assert [(finding.rule, finding.num_removed) for finding in cleaned.findings] == [("strip_whitespace", 0), ("drop_exact_duplicates", 1)]


def test_finding_names_at_most_five_rows() -> None:
    assert len(drop_exact_duplicates([ask("Q", line=line) for line in range(20)]).finding.examples) == 5
