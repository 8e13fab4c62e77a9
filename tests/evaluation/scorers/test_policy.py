"""Policies that users write: read, refused with every reason, and followed or broken."""

from pathlib import Path

import pytest

from lorimer.errors import ConfigError
from lorimer.evaluation.scorers.policy import follows_policy, policy_items
from lorimer.evaluation.task import Sample

POLICY = """
policy: desk
system: You are the help desk.
rules:
  - rule: No promise.
    forbidden: [guarantee, '/by (mon|tues)day/']
    required: [estimate]
    prompts: ['When does it come?', 'Is it here tomorrow?']
  - rule: Greet.
    language: de
    required: [Guten Tag]
    prompts: [Hallo]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def ruled(**spec: object) -> Sample:
    return Sample(id="1", prompt=(), target="", spec=dict(spec))


def test_a_policy_is_one_item_a_prompt_and_one_group_a_rule(tmp_path: Path) -> None:
    items = policy_items(written(tmp_path, POLICY))
    assert [item["id"] for item in items] == ["desk-01-1", "desk-01-2", "desk-02-1"]
    assert [item["group"] for item in items] == ["desk-01", "desk-01", "desk-02"]
    assert items[0]["messages"][0] == {"role": "system", "content": "You are the help desk."}
    assert items[2]["tags"]["language"] == "de"
    assert items[2]["spec"] == {"rule": "Greet.", "forbidden": [], "required": ["Guten Tag"]}


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("policy: x\nrules: []", ["rules"]),
        ("rules: 3", ["policy", "rules"]),
        ("[1]", ["valid dictionary"]),
        ("", ["valid dictionary"]),
        ("policy: [", ["cannot read"]),
        ("policy: x\nrules: [{rule: a, prompts: [b]}]", ["'a' names nothing forbidden or required"]),
        ("policy: x\nrules: [{rule: a, prompts: [b, b], forbidden: [c]}]", ["'b' stands there twice"]),
        ("policy: x\nrules: [{rule: a, prompts: [], forbiden: [c]}]", ["prompts", "forbiden"]),
        ("policy: x\nrules: [{rule: a, prompts: [b], forbidden: ['/(/', ' ']}]", ["no regular expression", "is empty"]),
        ("policy: x\nrules: [{rule: a, prompts: [b], required: ['/x*/']}]", ["fits an empty text"]),
    ],
)
def test_what_is_no_policy_is_refused_with_every_reason(tmp_path: Path, text: str, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        policy_items(written(tmp_path, text))
    assert all(problem in str(caught.value) for problem in problems)


def test_a_policy_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the policy"):
        policy_items(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Our estimate is two days.", 1),
        ("I guarantee the estimate.", 0),
        ("Nobody guaranteed an ESTIMATE.", 1),  # whole words: another word is another phrase
        ("The estimate: by Monday.", 0),
        ("Two days.", 0),
        ("", 0),  # something was required
    ],
)
def test_follows_policy(answer: str, value: float) -> None:
    found = follows_policy(answer, ruled(rule="No promise.", forbidden=["guarantee", "/by (mon|tues)day/"], required=["estimate"]))
    assert found.value == value
    assert bool(found.explanation) == (value == 0)


@pytest.mark.parametrize(
    ("phrase", "answer", "is_found"),
    [
        ("money back", "Get your money\n back now", True),
        ("C++", "I like C++.", True),
        ("sure", "Am I unsure?", False),
        ("保証", "必ず保証します。", True),
        ("größe", "GRÖSSE oder Größe", True),
        ("/^no/", "No.", True),
        ("a/b", "a/b", True),
    ],
)
def test_phrases_are_whole_words_where_words_are_spaced(phrase: str, answer: str, is_found: bool) -> None:
    assert follows_policy(answer, ruled(forbidden=[phrase])).value == float(not is_found)


def test_an_empty_answer_keeps_no_rule() -> None:
    assert follows_policy("", ruled(forbidden=["guarantee"])).value is None
