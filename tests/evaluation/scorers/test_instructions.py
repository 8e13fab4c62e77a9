"""The 25 kinds of verifiable instructions: answers that follow and answers that do not, for each."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.evaluation.scorers.instruction_kinds import KINDS, count_sentences, language_of
from lorimer.evaluation.scorers.instructions import instructions, instructions_loose
from lorimer.evaluation.task import Sample

TALK = "We will send the parcel again tomorrow morning and let you know by mail when it has left our house."
GERMAN = "Wir schicken das Paket morgen noch einmal und schreiben Ihnen, sobald es unser Haus verlassen hat."


def told(*each: tuple[str, dict[str, Any]]) -> Sample:
    return Sample(
        id="1", prompt=(), target="", spec={"instruction_id_list": [name for name, _ in each], "kwargs": [own for _, own in each]}
    )


CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["refund", "post"]}, ["Refunds go by POST."], ["A refund.", "By mail."]),
    ("keywords:existence", {"keywords": ["C++ (2023)"]}, ["It is c++ (2023)."], ["It is C 2023."]),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, ["Tea? teapot!"], ["Tea."]),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "less than"}, ["Tea.", "no"], ["tea tea"]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat", "dog"]}, ["A category."], ["A Cat.", "dog!"]),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, ["Quite quick"], ["quite"]),
    ("keywords:letter_frequency", {"letter": "Q", "let_frequency": 2, "let_relation": "less than"}, ["quite"], ["Quite quick"]),
    ("language:response_language", {"language": "de"}, [GERMAN, GERMAN * 9], [TALK]),
    ("language:response_language", {"language": "ko"}, ["내일 아침에 소포를 다시 보내 드리겠습니다."], [GERMAN]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a\n***\nb", "***\na\n***\nb\n***"], ["a", "a\n\nb", "a******b"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["one two three", "one-two three"], ["one two"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["one two"], ["one two three"]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, ["Yes. It is."], ["Dr. Who came."]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, ["It costs 3.50 e.g. here"], ["Yes! No?"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Next"},
        ["One.\n\nnext, two.", 'One.\n\n"Next" is two.'],
        ["One.\n\nThen two.", "Next.", "One.\n\nNext.\n\nThree.", "One.\nNext."],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[name], [town]", "[a][b][c]"], ["[name]", "(a) (b)"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Bye\nP.S. Write.", "p. s. more"], ["Bye", "PS: more"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["Bye\nP.P.S. Write."], ["Bye\nP.S. Write."]),
    ("detectable_content:postscript", {"postscript_marker": "Note:"}, ["Bye\nnote: this"], ["Bye"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n* b", "x\n - a\n- b\n"], ["* a", "* a\n* b\n* c", "** a\n** b"]),
    ("detectable_format:constrained_response", {}, ["My answer is no.", "Well: My answer is maybe."], ["No.", "my answer is no."]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*a* and *b*", "**a**, *b*"], ["*a*", "* a\n* b", "****"]),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        ["Part 1\na\nPart 2\nb"],
        ["Part 1", "PART 1 PART 2"],
    ),
    ("detectable_format:json_format", {}, ['{"a": 1}', '```json\n{"a": [1]}\n```', "3"], ['Here: {"a": 1}', "{'a': 1}", '{"a": 1']),
    ("detectable_format:title", {}, ["<<Our tea>>\nGood."], ["<Our tea>", "<< >>", "Our tea"]),
    ("combination:two_responses", {}, ["a\n******\nb", "a******b******"], ["a", "a******a", "a******b******c", "a******"]),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say hello."},
        ["Say hello.\nHello!", " say hello. Hi"],
        ["Hello!", "You ask: Say hello."],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Any questions?"},
        ["Done. any questions?\n", 'Done. Any questions?"'],
        ["Any questions? No.", "Done"],
    ),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, ["STOP. DON'T go"], ["STOP it"]),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}, ["STOP it"], ["STOP NOW"]),
    ("change_case:english_capital", {}, [TALK.upper()], [TALK, GERMAN.upper()]),
    ("change_case:english_lowercase", {}, [TALK.lower()], [TALK, GERMAN.lower()]),
    ("punctuation:no_comma", {}, ["a b; c"], ["a, b"]),
    ("startend:quotation", {}, ['"All of it."', ' "All" and "it" '], ['"Half', "'All'", '"']),
]


def test_all_kinds_of_the_paper_are_known_and_tried() -> None:
    assert len(KINDS) == 25
    assert {name for name, *_ in CASES} == set(KINDS)


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), CASES)
def test_kind_tells_answers_that_follow_from_others(name: str, arguments: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    sample = told((name, arguments))
    assert [instructions(answer, sample).value for answer in right] == [1] * len(right)
    for answer in wrong:
        found = instructions(answer, sample)
        assert (found.value, found.explanation.startswith(f"{name}: ")) == (0, True), answer
    assert instructions("", sample).value == instructions_loose(" \n", sample).value == 0


def test_all_instructions_must_be_followed_and_those_that_are_not_are_named() -> None:
    sample = told(("en:punctuation:no_comma", {}), ("startend:quotation", {"language": None}), ("detectable_format:title", {}))
    assert instructions('"<<Tea>> is good"', sample).value == 1
    found = instructions("Tea, good", sample)
    assert found.value == 0
    assert found.explanation == (
        "punctuation:no_comma: has 1 commas, not 0; startend:quotation: is not wrapped in double quotation marks; "
        "detectable_format:title: has no title in double angular brackets"
    )


@pytest.mark.parametrize(
    ("answer", "name", "arguments"),
    [
        ("Sure, here it is:\nTea is good", "punctuation:no_comma", {}),
        ("My letter\nBye\nHope, this helps", "punctuation:no_comma", {}),
        ('Sure:\n"Tea"\nEnjoy', "startend:quotation", {}),
        ('**"Tea"**', "startend:quotation", {}),
        ('Sure:\n*"Tea"*', "startend:quotation", {}),
    ],
)
def test_loose_forgives_an_introduction_a_farewell_and_asterisks(answer: str, name: str, arguments: dict[str, Any]) -> None:
    sample = told((name, arguments))
    assert (instructions(answer, sample).value, instructions_loose(answer, sample).value) == (0, 1)


def test_language_of_too_few_letters_is_unscored_unless_something_else_fails() -> None:
    german = ("language:response_language", {"language": "de"})
    assert instructions("Ja.", told(german)).value is None
    assert instructions("Ja, so", told(german, ("punctuation:no_comma", {}))).value == 0
    assert instructions_loose("Ja.", told(german)).value is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, ["instruction_id_list"]),
        ({"instruction_id_list": [], "kwargs": []}, ["instruction_id_list"]),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, ["kwargs"]),
        (
            {"instruction_id_list": ["rhyme", "length_constraints:number_words"], "kwargs": [{}, {"num_words": "ten", "words": 3}]},
            ["'rhyme' is no kind", "needs the argument 'relation'", "knows no argument 'words'", "'num_words' cannot be 'ten'"],
        ),
        ({"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "xx"}]}, ["'language' cannot be 'xx'"]),
        ({"instruction_id_list": ["language:response_language"], "kwargs": [{"language": []}]}, ["'language' cannot be []"]),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": []}]}, ["'keywords' cannot be []"]),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [None]}, ["an object, not None"]),
    ],
)
def test_instruction_that_is_not_understood_leaves_the_sample_unscored(spec: dict[str, Any], words: list[str]) -> None:
    found = instructions("an answer", Sample(id="1", prompt=(), target="", spec=spec))
    assert found.value is None
    assert [word for word in words if word not in found.explanation] == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two", 2),
        ("One.Two", 1),
        ("Really?! Yes... maybe not. (So it is.) End", 4),
        ("Mr. and Mrs. J. Smith met at 3.15 p.m. in Paris.", 1),
        ('He said "Stop!" She did.', 2),
        ("1. Open it.\n2. Close it.", 2),
        ("今日は晴れ。明日は雨。", 2),
        ("Heading\nA line\nA line", 1),
        ("...", 1),
    ],
)
def test_sentences_are_counted(text: str, number: int) -> None:
    assert count_sentences(text) == number


def test_language_is_that_of_most_of_a_text() -> None:
    assert language_of(TALK * 10 + GERMAN) == "en"
    assert language_of(GERMAN * 10 + TALK) == "de"


def test_every_instruction_of_ifeval_is_understood(shared_data: Path) -> None:
    with (shared_data / "ifeval" / "ifeval_en.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 541
    kinds = set()
    for row in rows:
        sample = Sample(id="1", prompt=(), target="", spec={"instruction_id_list": row["instruction_id_list"], "kwargs": row["kwargs"]})
        assert instructions(TALK, sample).value is not None, row
        kinds |= set(row["instruction_id_list"])
    assert {kind.removeprefix("en:") for kind in kinds} == set(KINDS)


@settings(deadline=None, max_examples=60)
@given(st.text() | st.text("*-.\n \"<>[]{}'!aA1,"))
def test_kinds_survive_any_answer(answer: str) -> None:
    for name, arguments, *_ in CASES:
        sample = told((name, arguments))
        strict, loose = instructions(answer, sample).value, instructions_loose(answer, sample).value
        assert strict in (0, 1, None)
        assert loose in (0, 1, None)
        assert strict != 1 or loose == 1
