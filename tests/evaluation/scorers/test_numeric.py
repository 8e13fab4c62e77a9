"""Numbers in running text, and GSM8K's two filters."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.evaluation.scorers.numeric import gsm8k_flexible, gsm8k_strict, last_number, numeric
from lorimer.evaluation.task import Sample


def wanting(target: str, **spec: Any) -> Sample:
    return Sample(id="1", prompt=(), target=target, spec=spec)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", "42"),
        ("The answer is 42.", "42"),
        ("6 x 7 is 42, so 42 it is", "42"),
        ("-3.50 EUR", "-3.5"),
        ("\u22127", "-7"),
        ("between 3-5", "5"),
        ("- 5 apples", "5"),
        ("$1,234,567.89", "1234567.89"),
        ("-$12", "-12"),
        ("$ -12", "-12"),
        ("1 234 567 people".replace(" ", "\u202f", 2), "1234567"),
        ("1,2", "2"),
        ("3/4", "3/4"),
        ("It is 3/4.", "3/4"),
        ("1 1/2 cups", "3/2"),
        ("1\u00bd cups", "3/2"),
        ("\u00bd", "1/2"),
        ("due on 3/4/2025", "2025"),
        (r"\frac{3}{8}", "3/8"),
        (r"so $\boxed{12}$ in step 3", "12"),
        (r"\boxed{1{,}200}", "1200"),
        ("#### 18\nStep 3 was hard", "18"),
        ("we add 4 + 5 = 9\n#### 1,009", "1009"),
        ("1.5e3", "1500"),
        ("6.02 \u00d7 10^23", "602000000000000000000000"),
        ("2*10^{-2}", "1/50"),
        ("\u0664\u0662", "42"),
        ("5 m\u00b2", "5"),
        (".5", "1/2"),
        ("1.2.3", "3/10"),
        ("007", "7"),
    ],
)
def test_last_number_reads_what_people_write(text: str, value: str) -> None:
    found = last_number(text)
    assert found is not None
    assert found.value == Fraction(value)


@pytest.mark.parametrize("text", ["", "none", "seven", "1e999999999", "9" * 5000, "24/0", "\u2044", "#### "])
def test_text_without_a_number_we_read_has_none(text: str) -> None:
    assert last_number(text) is None


@pytest.mark.parametrize(
    ("answer", "target", "spec", "value"),
    [
        ("about 0.33", "1/3", {"tolerance": 0.01}, 1),
        ("about 0.33", "1/3", {}, 0),
        ("0.1", "1/10", {}, 1),
        ("95", "100", {"tolerance": {"relative": 0.05}}, 1),
        ("94", "100", {"tolerance": {"relative": 0.05, "absolute": 1}}, 0),
        ("50%", "50", {}, 1),
        ("50 percent", "0.5", {}, 1),
        ("0.5", "50%", {}, 1),
        ("0.5%", "50%", {}, 0),
        ("1.234,5", "1234.5".replace(".", ","), {"decimal": ","}, 1),
        ("no idea", "4", {}, 0),
        ("4", "four", {}, None),
        ("4", "4", {"tolerance": -1}, None),
        ("4", "4", {"tolerance": float("nan")}, None),
        ("4", "4", {"tolerance": {"abs": 1}, "decimal": ";"}, None),
    ],
)
def test_numeric_compares_within_the_tolerance(answer: str, target: str, spec: dict[str, Any], value: float | None) -> None:
    assert numeric(answer, wanting(target, **spec)).value == value


def test_numeric_says_which_number_it_read() -> None:
    assert numeric("it is 41", wanting("42")).explanation == "its number is 41, not 42"
    assert numeric("4", wanting("4", tolerance="x", decimal=";")).explanation.count("spec") == 2


@pytest.mark.parametrize(
    ("answer", "strict", "flexible"),
    [
        ("6 * 3 = 18\n#### 18", 1, 1),
        ("#### $18", 0, 1),
        ("#### 18.", 1, 1),
        ("#### 18.00", 0, 0),
        ("####18", 0, 1),
        ("The answer is 18.", 0, 1),
        ("The answer is $18", 0, 1),
        ("It is 18, of 20.", 0, 0),
        ("#### 18\nQuestion: what of 7?", 1, 1),
        ("#### 17\n#### 18", 0, 1),
        ("18 . , and so on...", 0, 0),
        ("eighteen", 0, 0),
        ("", 0, 0),
    ],
)
def test_gsm8k_filters_give_the_verdicts_of_lm_eval(answer: str, strict: float, flexible: float) -> None:
    """The verdicts were made by lm-evaluation-harness 0.4.13's own filters and its exact_match."""
    sample = wanting("He sells 6 * 3 = <<6*3=18>>18.\n#### 18")
    assert (gsm8k_strict(answer, sample).value, gsm8k_flexible(answer, sample).value) == (strict, flexible)


def test_every_gsm8k_target_is_its_own_right_answer(shared_data: Path) -> None:
    with (shared_data / "gsm8k" / "test.jsonl").open() as file:
        targets = [json.loads(line)["answer"] for line in file]
    assert len(targets) == 1319
    for target in targets:
        sample = wanting(target)
        assert numeric(target, sample).value == 1
        assert gsm8k_strict(target, sample).value == 1
        assert numeric(f"So it is ${target.rpartition('#### ')[2]}.", sample).value == 1


@settings(deadline=None)
@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
def test_numeric_reads_any_decimal_however_it_is_grouped(digits: int, places: int) -> None:
    value = Fraction(digits, 10**places)
    for text in (f"{digits:,}" if places == 0 else f"{digits / 10**places:,.{places}f}", f"{digits}/{10**places}"):
        found = last_number(f"I get {text}.")
        assert found is not None
        assert float(found.value) == pytest.approx(float(value), rel=1e-9, abs=1e-9)
