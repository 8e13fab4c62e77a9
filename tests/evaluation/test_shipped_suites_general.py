"""The items of the general and the fidelity suite: whole, each once, fair to a guesser, frozen where they must be, and our own."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorimer.evaluation.items import read_items
from lorimer.evaluation.scorers.abstention import find_abstention
from lorimer.evaluation.scorers.fidelity import abstains, finds_answer, grounded
from lorimer.evaluation.scorers.instruction_kinds import KINDS
from lorimer.evaluation.suite import SHIPPED, find_suite
from lorimer.evaluation.task import Sample
from lorimer.storage import digest_of

SUITES = ("general", "fidelity")
TASKS = [(suite, task) for suite in SUITES for task in yaml.safe_load((SHIPPED / f"{suite}.yaml").read_text(encoding="utf-8"))["tasks"]]
TEXT_DIGEST = "233c4d3c7249233f899c3291c849b27254a5735ca35b9d38d8ad7f9f05538502"
CHOICES = ("choice", "reading", "maths")


def items(suite: str, task: dict[str, Any]) -> tuple[Sample, ...]:
    return read_items(SHIPPED / task["data"], task["kind"], task["template"])


def named(name: str) -> tuple[Sample, ...]:
    return next(items(suite, task) for suite, task in TASKS if task["name"] == name)


@pytest.mark.parametrize(("suite", "task"), TASKS, ids=[task["name"] for _, task in TASKS])
def test_every_item_can_be_asked_and_is_asked_once(suite: str, task: dict[str, Any]) -> None:
    samples = items(suite, task)
    assert len(samples) >= 40
    asked = Counter(("\n".join(message.content for message in sample.prompt), sample.target) for sample in samples)
    assert [text for text, count in asked.items() if count > 1] == []
    assert task["family"] == suite


@pytest.mark.parametrize("suite", SUITES)
def test_a_shipped_suite_is_read_whole(suite: str) -> None:
    found = find_suite(suite)
    assert (found.name, len(found.tasks)) == (suite, sum(name == suite for name, _ in TASKS))


@pytest.mark.parametrize("name", CHOICES)
def test_no_place_is_right_more_often_than_another(name: str) -> None:
    samples = named(name)
    for num_choices in {len(sample.choices) for sample in samples}:
        places = Counter(sample.choices.index(sample.target) for sample in samples if len(sample.choices) == num_choices)
        assert len(places) == num_choices
        assert max(places.values()) - min(places.values()) <= 1
    assert all(choice.startswith(" ") and choice.strip() for sample in samples for choice in sample.choices)


def test_yes_and_no_are_right_equally_often() -> None:
    count = Counter(sample.target for sample in named("reading") if len(sample.choices) == 2)
    assert abs(count[" yes"] - count[" no"]) <= 1


def test_the_sums_are_right() -> None:
    signs = {"plus": "+", "minus": "-", "times": "*", "divided by": "//"}
    checked = 0
    for sample in (*named("maths"), *named("sums")):
        match = re.search(r"What is (\d+) (plus|minus|times|divided by) (\d+)\?\nAnswer:$", sample.prompt[0].content)
        if match:
            checked += 1
            left, sign, right = int(match[1]), signs[match[2]], int(match[3])
            value = {"+": left + right, "-": left - right, "*": left * right, "//": left // right}[sign]
            assert int(sample.target) == value, sample.id
    assert checked > 120


def test_the_neutral_text_is_frozen() -> None:
    """Divergence and perplexity are compared over years: whoever changes the text gives the suite its next version."""
    texts = [sample.target for sample in named("divergence")]
    assert digest_of(texts) == TEXT_DIGEST
    assert all(60 <= len(text.split()) <= 120 for text in texts if text.isascii())


def test_the_instructions_have_arguments_each() -> None:
    for sample in (*named("instructions"), *named("adherence")):
        assert len(sample.spec["instruction_id_list"]) == len(sample.spec["kwargs"]) > 0
        for name, told in zip(sample.spec["instruction_id_list"], sample.spec["kwargs"], strict=True):
            assert KINDS[name].problems(told) == [], sample.id


def test_the_context_bears_out_its_own_facts() -> None:
    for sample in named("grounded"):
        assert sample.spec["context"] in sample.prompt[0].content
        assert grounded(sample.spec["context"], sample).value == 1.0, sample.id
        for fact in sample.spec["facts"]:
            assert grounded(fact, sample).value == 1.0, (sample.id, fact)


def test_whoever_always_abstains_loses_as_much_as_they_win() -> None:
    can, cannot = named("answers"), named("abstains")
    assert len(can) == len(cannot) == 74
    assert Counter(sample.group for sample in can) == Counter(sample.group for sample in cannot)
    for sample in can:
        assert finds_answer(sample.target, sample).value == 1.0, sample.id
        assert finds_answer(sample.spec["context"], sample).value == 1.0, sample.id
        assert finds_answer("Not stated.", sample).value == 0.0
    for sample in cannot:
        assert abstains(sample.target, sample).value == 1.0, sample.id
        assert abstains("90", sample).value == 0.0
        assert find_abstention(sample.spec["context"]) is None, sample.id


def test_no_item_stands_in_a_public_set(shared_data: Path) -> None:
    """A set that models have seen would measure memory; and what others wrote is not ours to ship."""
    ours = {}
    for suite, task in TASKS:
        for sample in items(suite, task):
            asked = sample.prompt[-1].content if sample.prompt else sample.target
            question = asked.rpartition("Question: ")[2].removesuffix("\nAnswer:")
            ours[_plain(question)] = sample.id
            if task["name"] in ("reading", "grounded"):
                ours[_plain(asked.partition("\nQuestion:")[0])] = sample.id
    public = set()
    for folder in ("arc", "boolq", "gsm8k", "truthfulqa", "ifeval", "mt_bench", "self_instruct", "dolly_sample"):
        for path in sorted((shared_data / folder).iterdir()):
            if path.suffix in (".json", ".jsonl"):
                raw = path.read_text(encoding="utf-8")
                rows = json.loads(raw) if path.suffix == ".json" else [json.loads(line) for line in raw.splitlines() if line.strip()]
                public.update(_plain(text) for text in _texts(rows))
    assert len(public) > 5000
    assert {text: name for text, name in ours.items() if text in public} == {}


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _texts(part)]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
