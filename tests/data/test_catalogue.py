"""Rules are chosen by name, their settings checked, and what is printed to begin with is what is done anyway."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorimer.config import Curation, read_curation
from lorimer.data.catalogue import ROW_RULES, choose_rules, describe_rules, rules_yaml
from lorimer.data.curate import curate
from lorimer.errors import ConfigError


def choose(**rules: Any) -> dict[str, dict[str, Any]]:
    return choose_rules(Curation(rules=rules)).settings


def test_rules_run_in_the_order_of_the_catalogue_and_can_be_sent_away() -> None:
    chosen = choose_rules(Curation(rules={"language": {"keep": ["en"]}, "length": True}), ["en"])
    names = [rule.name for rule in chosen.on_rows]
    assert names == [name for name in ROW_RULES if name in names]
    assert {"language", "length", "keep_languages", "secrets", "pii"} <= set(names)
    assert [rule.name for rule in pickle.loads(pickle.dumps(chosen.on_rows))] == names
    assert [rule.name for rule in chosen.on_test] == ["encoding", "strip_whitespace", "keep_languages", "secrets", "pii"]


def test_settings_that_are_not_named_stay_as_unasked() -> None:
    assert choose()["pii"] == {"default": "keep"}
    assert choose(pii={"actions": {"EMAIL": "drop"}})["pii"] == {"default": "keep", "actions": {"EMAIL": "drop"}}
    assert choose(pii={"default": "mask"})["pii"] == {"default": "mask"}
    assert "pii" not in choose(pii=False)
    assert choose(length={"min_prompt": 3})["length"] == {"min_prompt": 3}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"pi": True}, r"no rule is called `pi` \(did you mean `pii`\?\)"),
        ({"xyzzy": True}, r"no rule is called `xyzzy` \(there are encoding, "),
        ({"drop_too_long": {"max_char": 3}}, r"rule `drop_too_long`: unknown setting `max_char` \(did you mean `max_chars`\?\)"),
        ({"drop_too_long": {"max_chars": "many"}}, "rule `drop_too_long`: setting `max_chars`: input should be a valid integer"),
        ({"keep_languages": True}, "rule `keep_languages`: setting `languages` is missing"),
        ({"pii": {"default": "hide"}}, "rule `pii`: "),
        ({"pii": {"actions": {"EMALE": "drop"}}}, "rule `pii`: kind 'EMALE' is none of"),
        ({"pi": True, "length": {"x": 1}}, "no rule is called `pi`.*; rule `length`: unknown setting"),
    ],
)
def test_rules_that_cannot_be_are_all_named(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_rules(Curation(rules=rules))


def test_language_is_said_once() -> None:
    with pytest.raises(ConfigError, match="say it once"):
        choose_rules(Curation(rules={"keep_languages": {"languages": ["en"]}}), ["en"])


def test_printed_rules_are_what_is_done_anyway(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(rules_yaml())
    read = read_curation(path)
    assert read.model_copy(update={"rules": {}}) == Curation()
    assert set(read.rules) == {rule["name"] for rule in describe_rules() if rule["by_default"]}
    unasked, asked = choose_rules(Curation()), choose_rules(read)
    assert asked.on_rows == unasked.on_rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rulez: {}", r"unknown key `rulez` \(did you mean `rules`\?\)"),
        ("duplicates: {near: maybe}", "key `duplicates.near`: input should be 'drop', 'report' or 'off', found 'maybe'"),
        ("duplicates: {nearr: drop}", r"unknown key `duplicates.nearr` \(did you mean `near`\?\)"),
        ("- 1", "holds list, not keys"),
        ("{", "line 1: not valid YAML"),
    ],
)
def test_rules_file_that_is_wrong_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_curation(path)


def test_empty_rules_file_asks_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("")
    assert read_curation(path) == Curation()
    with pytest.raises(ConfigError, match="`lorimer data rules` prints one"):
        read_curation(tmp_path / "absent.yaml")


def test_every_rule_reports_what_it_did(tmp_path: Path) -> None:
    lines = [
        "Mail me at jane.doe@acme.io please,Fine",
        "My key is AKIAIOSFODNN7EXAMPLF ok,Fine",
        "Hello how are you,Dear {{first_name}}",
        "It is cafÃ© time,Fine",
        *(f"question {number},answer {number % 2}" for number in range(60)),
    ]
    path = tmp_path / "t.csv"
    path.write_text("prompt,completion\n" + "\n".join(lines), encoding="utf-8")
    dataset = curate([path], name="t")
    found = {finding["rule"]: finding for finding in dataset.card["findings"]}
    assert found["pii"]["examples"] == ["t.csv:2"]
    assert (found["pii"]["num_flagged"], found["pii"]["num_changed"]) == (1, 0)
    assert (found["secrets"]["num_changed"], found["secrets"]["examples"]) == (1, ["t.csv:3"])
    assert found["template_remnants"]["examples"] == ["t.csv:4"]
    assert found["encoding"]["examples"] == ["t.csv:5"]
    texts = " ".join(row.prompt[-1].content for row in (*dataset.train, *dataset.validation, *dataset.test))
    assert "AKIA" not in texts
    assert "café" in texts
    assert yaml.safe_load(rules_yaml())["rules"]["pii"]["default"] == "keep"


def test_labels_are_judged_where_answers_are_labels(tmp_path: Path) -> None:
    kinds = {"card": "my card was lost or stolen somewhere", "loan": "what is the interest rate on a loan"}
    rows = [(f"{kinds[label]} in town {number}, please help number {number}", label) for number in range(60) for label in kinds]
    rows[40] = (rows[40][0], "loan")
    path = tmp_path / "t.csv"
    path.write_text("prompt,completion\n" + "".join(f'"{text}",{label}\n' for text, label in rows))
    dataset = curate([path], name="t", rules=Curation.model_validate({"duplicates": {"across_splits": "off"}}))
    found = {finding["rule"]: finding for finding in dataset.card["findings"]}
    assert found["imbalance"]["message"].startswith("2 labels, evenness 1.00 of 1: 'loan' has 61 rows, 'card' 59")
    assert "t.csv:42" in found["near_conflicts"]["examples"]
    assert (found["label_noise"]["examples"], found["label_noise"]["reasons"]) == (["t.csv:42"], ["loan -> card"])
    off = curate([path], name="off", rules=Curation.model_validate({"labels": "off", "duplicates": {"across_splits": "off"}}))
    assert not {"imbalance", "label_noise"} & {finding["rule"] for finding in off.card["findings"]}
