"""Every scorer against answers that are right, wrong, nearly right, and not to be judged."""

import json
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.config import Metric
from lorimer.evaluation.scorers.catalogue import SCORERS, contains, exact, exact_json, field_accuracy, label, score
from lorimer.evaluation.scorers.structured import parse_object
from lorimer.evaluation.task import Sample

TARGET = '{"queue": "billing", "priority": 2, "urgent": true}'


def wanting(target: str) -> Sample:
    return Sample(id="1", prompt=(), target=target)


def test_every_metric_has_a_scorer() -> None:
    assert set(SCORERS) >= set(get_args(Metric))


@pytest.mark.parametrize(
    ("answer", "value"),
    [("yes", 1), (" yes\n", 1), ("Yes", 0), ("yes.", 0), ("", 0)],
)
def test_exact_compares_trimmed_text(answer: str, value: float) -> None:
    assert exact(answer, wanting("yes")).value == value


def test_exact_takes_both_spellings_of_an_accent() -> None:
    assert exact("Mu\u0308ller", wanting("M\u00fcller")).value == 1


@pytest.mark.parametrize(
    ("answer", "value", "explanation"),
    [
        (TARGET, 1, ""),
        ('\n{"urgent":true,"priority":2,"queue":"billing"} ', 1, ""),
        ('{"queue": "billing", "priority": 2.0, "urgent": true}', 1, ""),
        ('{"queue": "sales", "priority": 2, "urgent": true}', 0, "'queue' differs"),
        ('{"queue": "billing", "priority": "2", "urgent": 1}', 0, "'priority' differs; 'urgent' differs"),
        ('{"queue": "billing", "priority": 2}', 0, "'urgent' is missing"),
        ('{"queue": "billing", "priority": 2, "urgent": true, "team": null}', 0, "'team' is not wanted"),
        (f"Sure! {TARGET}", 0, "is not one JSON object and nothing else"),
        (f"{TARGET}\nHope this helps.", 0, "is not one JSON object and nothing else"),
        (f"```json\n{TARGET}\n```", 0, "is not one JSON object and nothing else"),
        ('["billing"]', 0, "is not one JSON object and nothing else"),
        ('{"queue": "billing", "queue": "billing", "priority": 2, "urgent": true}', 0, "is not one JSON object and nothing else"),
        ('{"priority": NaN}', 0, "is not one JSON object and nothing else"),
        ('{"priority": 1e999}', 0, "is not one JSON object and nothing else"),
        ('{"a": ' + "[" * 100_000, 0, "is not one JSON object and nothing else"),
        ("", 0, "is not one JSON object and nothing else"),
    ],
)
def test_exact_json_compares_objects_field_by_field(answer: str, value: float, explanation: str) -> None:
    found = exact_json(answer, wanting(TARGET))
    assert (found.value, found.explanation) == (value, explanation)


@settings(deadline=None)
@given(st.text())
def test_exact_json_survives_any_answer(answer: str) -> None:
    assert exact_json(answer, wanting(TARGET)).value in (0, 1)
    assert exact_json(answer, wanting(answer)).value in (None, 1)


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.one_of(st.none(), st.booleans(), st.integers(), st.text()), min_size=1))
def test_parse_object_does_not_care_how_it_is_written(value: dict[str, object]) -> None:
    plain = parse_object(json.dumps(value))
    assert plain is not None
    assert plain == parse_object(json.dumps(dict(reversed(value.items())), indent=4, ensure_ascii=True))


@pytest.mark.parametrize(("answer", "value"), [("The refund is approved.", 1), ("REFUND", 1), ("no", 0)])
def test_contains_looks_anywhere_whatever_the_case(answer: str, value: float) -> None:
    assert contains(answer, wanting(" Refund ")).value == value


@pytest.mark.parametrize(("answer", "value"), [("Card_Arrival", 1), ("card_arrival.", 1), (" card_arrival !\n", 1), ("card", 0), ("", 0)])
def test_label_forgives_case_space_and_final_punctuation(answer: str, value: float) -> None:
    assert label(answer, wanting("card_arrival")).value == value


@pytest.mark.parametrize(("metric", "target"), [("exact_json", "billing"), ("contains", " "), ("label", "?!")])
def test_target_that_cannot_be_judged_is_unscored(metric: Metric, target: str) -> None:
    found = score(metric, "an answer", wanting(target))
    assert found.value is None
    assert "target" in found.explanation


def test_missing_answer_is_unscored_but_an_empty_one_is_wrong() -> None:
    assert score("exact", None, wanting("yes")).value is None
    assert score("exact", "", wanting("yes")).value == 0


def test_field_accuracy_counts_each_field_of_the_targets() -> None:
    targets = ['{"queue": "a", "product": "x"}', '{"queue": "b"}', '{"queue": "c", "product": "y"}', '{"queue": "d"}', "no JSON"]
    answers = ['{"queue": "a", "product": "z"}', '{"queue": "b"}', "nonsense", None, '{"queue": "e"}']
    found = field_accuracy(answers, targets)
    assert {name: (share.num_correct, share.num_items) for name, share in found.items()} == {"queue": (2, 3), "product": (0, 2)}


SAMPLES = {
    "numeric": Sample(id="1", prompt=(), target="42", spec={"tolerance": 0.5}),
    "gsm8k_strict": wanting("6 * 7 = 42\n#### 42"),
    "gsm8k_flexible": wanting("42"),
    "regex": Sample(id="1", prompt=(), target="AB-12", spec={"pattern": r"^[A-Z]{2}-\d+$"}),
    "json_schema": Sample(id="1", prompt=(), target="3", spec={"schema": {"type": "integer"}}),
    "json_fields": wanting(TARGET),
    "exact_json": wanting(TARGET),
    "sql_result": Sample(
        id="1", prompt=(), target="SELECT a FROM t", spec={"schema": ["CREATE TABLE t (a)"], "rows": {"t": [[1], ["x"], [None]]}}
    ),
    "instructions": Sample(id="1", prompt=(), target="no tea", spec={"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}),
}
SAMPLES["instructions_loose"] = SAMPLES["instructions"]
# those that hold the whole target against the answer; GSM8K's filters take a target's last line as it is, a number or not
COMPARING = ("exact", "exact_json", "contains", "label", "numeric", "json_fields", "rouge_1", "rouge_l", "chrf", "token_f1", "sql_result")


OF_BEHAVIOUR = ("not_verbatim", "refuses", "answers", "ignores_injection", "reveals_nothing", "keeps_secret", "follows_policy", "grounded",
                "abstains", "finds_answer")  # fmt: skip
"""They judge how an answer behaves, not whether it is the target; their own files test them."""
OF_CONTENT = [name for name in SCORERS if name not in OF_BEHAVIOUR]


@pytest.mark.parametrize("metric", OF_CONTENT)
def test_target_as_the_answer_is_right(metric: Metric) -> None:
    sample = SAMPLES.get(metric, wanting("The parcel is late"))
    found = score(metric, sample.target, sample)
    assert (found.value, found.explanation, found.answer) == (1, "", sample.target)


@pytest.mark.parametrize("metric", SCORERS)
@settings(deadline=None, max_examples=40)
@given(answer=st.text() | st.text('0123456789.,-+%/eE$#{}[]"\\ \n'))
def test_any_answer_has_a_score_from_0_to_1(metric: Metric, answer: str) -> None:
    found = score(metric, answer, SAMPLES.get(metric, wanting("The parcel is late")))
    assert found.value is not None or metric in OF_BEHAVIOUR
    assert found.value is None or 0 <= found.value <= 1
    assert found.explanation or found.value == 1
    again = score(metric, answer, Sample(id="1", prompt=(), target=answer, spec=SAMPLES.get(metric, wanting("")).spec))
    assert again.value is None or 0 <= again.value <= 1


@pytest.mark.parametrize("metric", COMPARING)
@settings(deadline=None, max_examples=40)
@given(target=st.text())
def test_any_target_is_its_own_right_answer_or_unscored(metric: Metric, target: str) -> None:
    found = score(metric, target, Sample(id="1", prompt=(), target=target, spec=SAMPLES.get(metric, wanting("")).spec))
    assert found.value in (1, None)
