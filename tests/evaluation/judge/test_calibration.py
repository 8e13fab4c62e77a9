"""Judges beside people: kappa against published values, biases that are found, and who may decide a gate."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from judges import Rule, always_first, by_quality, impatient, is_right, longest, make_spec, make_task, serve_judge

from fakes import tiny_base
from lorimer.cli.main import run
from lorimer.errors import ConfigError, DataError, IntegrityError, LorimerError
from lorimer.evaluation.judge.calibration import (
    Calibration,
    Weights,
    calibrate,
    check_judge,
    cohen_kappa,
    compare_labels,
    find_calibration,
    find_objection,
)
from lorimer.evaluation.judge.judge import Item, Reading, judge_answers, judge_pairs
from lorimer.evaluation.judge.labels import MIN_LABELS, Label, read_labels
from lorimer.evaluation.judge.record import open_judge
from lorimer.inference.engine import Engine, EngineConfig
from lorimer.registry.registry import Registry
from lorimer.serving.app import create_app
from lorimer.serving.server import background_server
from lorimer.serving.worker import EngineWorker

SAS = [[0, 4, 1], [0, 8, 0], [0, 1, 5]]  # the table of statsmodels' tests, with what SAS prints for it


@pytest.mark.parametrize(
    ("table", "weights", "value", "low", "high"),
    [
        (SAS, "none", 0.4842, 0.2137, 0.7547),
        (SAS, "linear", 0.4701, 0.1845, 0.7558),
        ([[75, 1, 4], [5, 4, 1], [0, 0, 10]], "none", 0.676, 0.504, 0.848),  # Fleiss 1981, table 13.1; its standard error is 0.088
        ([[20, 5], [10, 15]], "none", 0.4, 0.1526, 0.6474),  # the usual example of 50 grant proposals
    ],
)
def test_kappa_is_the_published_one(table: list[list[int]], weights: Weights, value: float, low: float, high: float) -> None:
    found = cohen_kappa(table, weights)
    assert found is not None
    assert found.value == pytest.approx(value, abs=6e-4)
    assert found.interval.low == pytest.approx(low, abs=2e-3)
    assert found.interval.high == pytest.approx(high, abs=2e-3)


@pytest.mark.parametrize("weights", ["linear", "quadratic"])
def test_weights_make_no_difference_for_two_labels(weights: Weights) -> None:
    plain, found = cohen_kappa([[20, 5], [10, 15]]), cohen_kappa([[20, 5], [10, 15]], weights)
    assert plain is not None
    assert found is not None
    assert found.value == pytest.approx(plain.value)
    assert found.interval.low == pytest.approx(plain.interval.low)


def test_kappa_interval_covers_the_truth() -> None:
    draw, truth = random.Random(1), 0.6  # two labels, evenly spread: kappa is 2 po - 1
    num_covered = 0
    for _ in range(500):
        table = [[0, 0], [0, 0]]
        for _ in range(200):
            label = draw.randrange(2)
            table[label][label if draw.random() < 0.8 else 1 - label] += 1
        found = cohen_kappa(table)
        assert found is not None
        num_covered += found.interval.low <= truth <= found.interval.high
    assert 0.925 <= num_covered / 500 <= 0.975


@pytest.mark.parametrize("table", [[[0, 0], [0, 0]], [[9, 0], [0, 0]], [[5]]])
def test_kappa_of_one_label_alone_is_none(table: list[list[int]]) -> None:
    assert cohen_kappa(table) is None


def pairs(num: int = 120) -> list[dict[str, Any]]:
    """Answers whose numbers say how good they are; the better one is as often the longer as not."""
    draw = random.Random(0)
    rows = []
    for n in range(num):
        a, b = draw.sample(range(10), 2) if n % 6 else [4, 4]
        texts = [f"answer {value}{' well' * draw.randrange(1, 30)}" for value in (a, b)]
        label = "A" if a > b else "B" if b > a else "tie"
        rows.append({"question": f"question {n}?", "answer_a": texts[0], "answer_b": texts[1], "label": label})
    return rows


def answers(num: int = 120) -> list[dict[str, Any]]:
    rows = [{"question": f"question {n}?", "answer": f"{'good' if n % 3 else 'bad'} {n}", "reference": "x"} for n in range(num)]
    return [row | {"label": "yes" if "good" in row["answer"] else "no"} for row in rows]


def write(folder: Path, rows: list[Any]) -> Path:
    path = folder / "labels.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def calibrated(rule: Rule, rows: list[dict[str, Any]], folder: Path, kind: str = "pair") -> tuple[Calibration, str, str]:
    """What came out, why it may not decide, and the check's verdict."""
    with serve_judge(rule) as server:
        spec = make_spec(server.url, kind)
        judge = impatient(open_judge(spec))
        assert check_judge(judge).verdict == "ERROR"
        assert "never calibrated" in check_judge(judge).reason
        found = calibrate(judge, read_labels(write(folder, rows), spec))
        assert find_calibration(judge) == found
        return found, find_objection(spec, found), check_judge(judge).verdict


def test_fair_judge_may_decide(tmp_path: Path) -> None:
    found, objection, verdict = calibrated(by_quality, pairs(), tmp_path)
    assert (objection, verdict) == ("", "PASS")
    assert found.kappa is not None
    assert found.kappa.value == pytest.approx(1)
    assert (found.num_labels, found.num_unscored, found.num_inconsistent, found.num_asked_twice) == (120, 0, 0, 120)
    assert found.first_share == 0.5
    assert found.length_bias is not None
    assert found.length_bias.value == 0


def test_judge_that_prefers_the_first_may_not(tmp_path: Path) -> None:
    found, objection, verdict = calibrated(always_first, pairs(), tmp_path)
    assert verdict == "ERROR"
    assert "agrees with people too little" in objection
    assert (found.num_inconsistent, found.first_share) == (120, 1.0)


def test_judge_that_prefers_the_longer_is_seen(tmp_path: Path) -> None:
    found, objection, verdict = calibrated(longest, pairs(), tmp_path)
    assert verdict == "ERROR"
    assert "too little" in objection
    assert found.length_bias is not None
    assert found.length_bias.interval.low > 0.3
    assert found.num_inconsistent == 0


def test_judge_that_leaves_out_the_hard_ones_may_not(tmp_path: Path) -> None:
    found, objection, verdict = calibrated(
        lambda prompt, index: "Hard to say." if "question 1" in prompt else is_right(prompt, index), answers(), tmp_path, "yes-no"
    )
    assert found.kappa is not None
    assert found.kappa.value == pytest.approx(1)
    assert verdict == "ERROR"
    assert "gave no verdict on 31 of the 120" in objection


@pytest.mark.parametrize("said", ["Verdict: yes", "", "Verdict: yes\nVerdict: no"])
def test_judge_that_says_one_thing_or_garbage_may_not(said: str, tmp_path: Path) -> None:
    found, objection, verdict = calibrated(lambda prompt, index: said, answers(), tmp_path, "yes-no")
    assert verdict == "ERROR"
    assert objection
    assert found.num_unscored == (0 if said == "Verdict: yes" else 120)


def test_length_bias_of_single_answers_is_seen(tmp_path: Path) -> None:
    spec = make_spec("http://127.0.0.1:1/v1", "1-5")
    labels = [Label(item=Item(question=str(n), answers=("x" * (n + 1),)), label="3") for n in range(100)]
    readings = [Reading(label="5" if n >= 50 else "3", explanation="") for n in range(100)]
    found = compare_labels(spec, labels, readings)
    assert found.length_bias is not None
    assert found.length_bias.value == 0.5
    assert found.kappa is not None
    assert found.kappa.value == pytest.approx(0)
    assert found.kappa.weights == "quadratic"


def changed(index: int, change: Callable[[dict[str, Any]], Any]) -> list[Any]:
    rows: list[Any] = pairs()
    rows[index] = change(rows[index])
    return rows


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (pairs(MIN_LABELS - 1), ["hold 99 items", "100 or more"]),
        ([], ["hold 0 items"]),
        (changed(2, lambda row: "{"), ["line 3: not JSON"]),
        (changed(2, lambda row: [1]), ["line 3: holds list"]),
        (changed(2, lambda row: row | {"label": "C"}), ["line 3: label 'C' is none of A, B, tie"]),
        (changed(2, lambda row: row | {"label": float("nan")}), ["line 3: label nan"]),
        (changed(2, lambda row: row | {"label": True}), ["line 3: label True"]),
        (changed(2, lambda row: row | {"lable": "A"}), ["line 3: unknown key 'lable'"]),
        (changed(2, lambda row: {"question": "q", "answer": "a", "label": "A"}), ["line 3: answer_a, answer_b missing", "kind 'pair'"]),
        (changed(2, lambda row: row | {"answer_a": 7}), ["line 3: answer_a must be text"]),
        (changed(2, lambda row: pairs()[0] | {"label": "B"}), ["line 3: the same item as line 1"]),
        (["x"] * 9, ["line 1", "line 5", "and 4 more"]),
    ],
)
def test_wrong_labels_are_all_named(rows: list[Any], says: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read_labels(write(tmp_path, rows), make_spec("http://127.0.0.1:1/v1"))
    assert all(one in str(raised.value) for one in says)


def test_missing_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="do not exist"):
        read_labels(tmp_path / "none.jsonl", make_spec("http://127.0.0.1:1/v1"))


def test_command_calibrates_and_a_changed_judge_has_to_be_calibrated_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write(tmp_path, answers())
    file = tmp_path / "good.yaml"
    with serve_judge(is_right) as server:
        text = (
            f"judge: good\nendpoint: {server.url}\nmodel: judge\nkind: score\nscale: yes-no\n"
            'prompt: "Is it good? {question} <<A>>{answer}<<END>>"\n'
        )
        file.write_text(text)
        assert run(["judges", "calibrate", str(file), "--labels", str(labels)]) == 0
        printed = capsys.readouterr().out
        for one in (
            "kappa 1.00 (95% interval 1.00 to 1.00; asked for 0.60)",
            "unscored 0 of 120",
            "It may decide a gate.",
            "pins: {model:",
        ):
            assert one in printed
        file.write_text(text + printed[printed.index("pins: {") :].strip() + "\n")
        assert run(["judges", "calibrate", str(file), "--labels", str(labels), "--json"]) == 0
        value = json.loads(capsys.readouterr().out)
        assert (value["may_decide"], value["endpoint"], value["calibration"]["num_labels"]) == (True, server.url, 120)
        assert len(server.asked) == 120  # the second time nothing was asked
        server.model = "judge-2026-02"
        assert run(["judges", "calibrate", str(file), "--labels", str(labels)]) == 6
        assert "model was judge-2026-01 and is judge-2026-02" in capsys.readouterr().err
        file.write_text(text)
        assert run(["judges", "calibrate", str(file), "--labels", str(labels)]) == 0
        assert len(server.asked) == 240


def test_damaged_calibration_is_an_error(tmp_path: Path) -> None:
    with serve_judge(is_right) as server:
        spec = make_spec(server.url, "yes-no")
        judge = open_judge(spec)
        calibrate(judge, read_labels(write(tmp_path, answers()), spec))
        record = json.loads(judge.record_path.read_text())
        del record["calibration"]["kappa"]["interval"]
        judge.record_path.write_text(json.dumps(record))
        with pytest.raises(IntegrityError, match="damaged"):
            check_judge(judge)


def test_babbling_model_of_ours_scores_nothing_and_lets_nothing_pass(registry: Registry, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = tiny_base()
    config = EngineConfig(max_sequences=8, max_tokens_per_step=256, cache_bytes=8_000_000, uses_kernels=False)
    worker = EngineWorker(Engine(base, config))
    with background_server(create_app(worker, registry)) as url:
        spec = make_spec(f"{url}/v1", model="base", max_tokens=8, prompt="{question} {answer_a} {answer_b}", timeout_seconds=60)
        judge = open_judge(spec)
        assert judge.pins.root == base.digest  # its card names the weights
        assert judge.pins.fingerprint
        assert not judge.pins.is_weak
        scores = list(judge_pairs(judge, make_task(4), [f"better {n}" for n in range(4)], [f"worse {n}" for n in range(4)]))
        assert [score.value for score in scores] == [None] * 4
        assert all(score.explanation.startswith("no verdict") for score in scores)
        with pytest.raises(LorimerError, match="kind 'pair'"):
            list(judge_answers(judge, make_task(1), ["a"]))
        labels = read_labels(write(tmp_path, pairs(MIN_LABELS)), spec)
        calibration = calibrate(judge, labels[:10])
        assert calibration.num_unscored == 10
        check = check_judge(judge)
        assert (check.verdict, check.value, check.threshold) == ("ERROR", None, 0.6)
        assert "10 labels; 100 are needed" in check.reason
