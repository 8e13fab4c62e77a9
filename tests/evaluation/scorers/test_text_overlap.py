"""ROUGE, chrF and token F1 against numbers of the packages everybody cites, and against these packages where they are installed."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.evaluation.scorers.text_overlap import chrf, chrf2, common_subsequence, rouge_1, rouge_1_f1, rouge_l, rouge_l_f1, token_f1
from lorimer.evaluation.task import Sample

ASCII = st.text(st.characters(min_codepoint=9, max_codepoint=126, exclude_characters="\x0b\x0c\x1c\x1d\x1e\x1f"))


def wanting(target: str, **spec: Any) -> Sample:
    return Sample(id="1", prompt=(), target=target, spec=spec)


@pytest.mark.parametrize(
    ("answer", "target", "one", "longest", "characters"),
    [
        ("the cat sat on the mat", "the cat lay on a mat", 0.666667, 0.666667, 0.370256),
        ("On the mat the cat sat.", "The cat sat on the mat.", 1.0, 0.5, 0.657839),
        ("Refund approved: order 4471 ships back by Friday.", "The refund for order 4471 was approved.", 0.533333, 0.4, 0.465709),
        ("yes", "no", 0.0, 0.0, 0.0),
    ],
)
def test_overlap_equals_rouge_score_and_sacrebleu(answer: str, target: str, one: float, longest: float, characters: float) -> None:
    """The numbers are those of rouge-score 0.1.2 without stemmer and sacrebleu 2.6.0."""
    sample = wanting(target)
    assert rouge_1(answer, sample).value == pytest.approx(one, abs=1e-6)
    assert rouge_l(answer, sample).value == pytest.approx(longest, abs=1e-6)
    assert chrf(answer, sample).value == pytest.approx(characters, abs=1e-6)


@pytest.mark.parametrize(
    ("answer", "target", "value"),
    [
        ("Der Vertrag endet am 31. M\u00e4rz.", "Der Vertrag l\u00e4uft am 31. M\u00e4rz aus.", 0.601871),
        ("ab", "abcdefgh", 0.234043),
        ("\u8fd4\u54c1\u306f30\u65e5\u4ee5\u5185", "\u8fd4\u54c1\u306f14\u65e5\u4ee5\u5185\u306b", 0.248133),
    ],
)
def test_chrf_equals_sacrebleu_in_any_script(answer: str, target: str, value: float) -> None:
    assert chrf(answer, wanting(target)).value == pytest.approx(value, abs=1e-6)


def test_rouge_takes_letters_with_accents_as_letters() -> None:
    assert rouge_1("l\u00e4uft am M\u00e4rz", wanting("la\u0308uft am M\u00c4RZ")).value == 1


@settings(deadline=None)
@given(ASCII, ASCII)
def test_rouge_equals_rouge_score_on_any_ascii_text(answer: str, target: str) -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    theirs = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=False).score(target, answer)
    assert rouge_1_f1(answer, target) == pytest.approx(theirs["rouge1"].fmeasure)
    assert rouge_l_f1(answer, target) == pytest.approx(theirs["rougeL"].fmeasure)


@settings(deadline=None)
@given(st.text(), st.text())
def test_chrf_equals_sacrebleu_on_any_text(answer: str, target: str) -> None:
    theirs = pytest.importorskip("sacrebleu.metrics").CHRF().sentence_score(answer, [target]).score
    assert chrf2(answer, target) == pytest.approx(theirs / 100)


@pytest.mark.parametrize(
    ("answer", "target", "value"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1),
        ("in Paris, France", "Paris", 0.5),
        ("x b b", "b b c", 2 / 3),
        ("a b b", "b b c", 4 / 5),
        ("Lyon", "Paris", 0),
        ("", "", 1),
        ("the", "", 1),
        ("Paris", "", 0),
        ("", "Paris", 0),
    ],
)
def test_token_f1_normalises_as_squad_does(answer: str, target: str, value: float) -> None:
    assert token_f1(answer, wanting(target)).value == pytest.approx(value)


@pytest.mark.parametrize("scorer", [rouge_1, rouge_l, chrf, token_f1])
def test_best_of_several_references_counts(scorer: Any) -> None:
    sample = wanting("by post", references=["by letter", "in writing by letter"])
    assert scorer("by letter", sample).value == 1
    assert scorer("by letter", wanting("by post", references="by letter")).value is None


@pytest.mark.parametrize("scorer", [rouge_1, rouge_l, chrf])
def test_target_of_nothing_is_unscored(scorer: Any) -> None:
    assert scorer("text", wanting(" \n")).value is None


@settings(deadline=None)
@given(st.text("abc", max_size=30), st.text("abc", max_size=30))
def test_common_subsequence_equals_the_table_of_the_textbook(left: str, right: str) -> None:
    row = [0] * (len(right) + 1)
    for a in left:
        new = [0]
        for place, b in enumerate(right):
            new.append(row[place] + 1 if a == b else max(row[place + 1], new[-1]))
        row = new
    assert common_subsequence(left, right) == row[-1]
