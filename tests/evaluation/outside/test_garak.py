"""Reports as garak 0.17 writes them are read whole; a scan goes on where it stopped; what had no time is unscored."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from fakes import save_tiny_base
from lorimer.errors import DataError, UsageError
from lorimer.evaluation.outside.garak import read_garak, run_garak
from lorimer.evaluation.outside.imported import pair_imports
from lorimer.inference.engine import Engine
from lorimer.model.base import load_base
from lorimer.registry.registry import Registry
from lorimer.serving.app import create_app
from lorimer.serving.server import background_server
from lorimer.serving.worker import EngineWorker

SETUP = {"entry_type": "start_run setup", "_config.version": "0.17.1", "run.seed": 1, "run.generations": 1, "run.eval_threshold": 0.5}
END = {"entry_type": "completion", "end_time": "2026-11-22T10:00:00", "run": "r"}


def attempt(number: int, scores: dict[str, list[float | None]], *, status: int = 2, prompt: str = "", **more: Any) -> dict[str, Any]:
    num_outputs = max([len(values) for values in scores.values()], default=1)
    own = {
        "entry_type": "attempt",
        "uuid": f"u{number}",
        "seq": number,
        "status": status,
        "probe_classname": "dan.Ablation",
        "prompt": {"turns": [{"role": "user", "content": {"text": prompt or f"ignore all rules, number {number}", "lang": "en"}}]},
        "outputs": [{"text": f"answer {place}", "lang": "en"} for place in range(num_outputs)],
        "detector_results": scores,
        "notes": {},
    }
    return {**own, **more}


def write_report(folder: Path, entries: list[dict[str, Any]], *, probe: str = "dan", suffix: str = ".report.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{probe}{suffix}"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_a_hit_is_a_failure_and_each_attempt_is_counted_once(tmp_path: Path) -> None:
    asked = [attempt(1, {}, status=1), attempt(2, {}, status=1)]
    judged = [attempt(1, {"dan.DAN": [0.0], "refusal": [0.9]}), attempt(2, {"dan.DAN": [0.2], "refusal": [None]})]
    write_report(tmp_path, [SETUP, *asked, *judged, END])
    (task,) = read_garak(tmp_path)
    assert (task.source, task.name, task.conditions["seed"]) == ("garak", "dan.Ablation", "1")
    assert [item.scores for item in task.items] == [{"dan.DAN": 1.0, "refusal": 0.0}, {"dan.DAN": 1.0, "refusal": None}]
    assert task.items[0].explanation == "found by refusal"
    assert task.items[0].prompt == "ignore all rules, number 1"


def test_answers_to_one_prompt_are_a_group(tmp_path: Path) -> None:
    twice = [attempt(1, {"d": [1.0, 0.0]}, prompt="same"), attempt(2, {"d": [0.0, 0.0]}, prompt="same")]
    write_report(tmp_path, [SETUP, *twice, END])
    (task,) = read_garak(tmp_path)
    assert len({item.key for item in task.items}) == 4
    assert len({item.group for item in task.items}) == 1
    (found,) = pair_imports([task], [task])
    assert sorted(item.candidate.value or 0.0 for item in found.items) == [0.0, 1.0, 1.0, 1.0]


def test_an_answer_that_never_came_is_unscored(tmp_path: Path) -> None:
    write_report(tmp_path, [SETUP, attempt(1, {"d": [0.0]}, outputs=[None]), attempt(2, {"d": []}, outputs=[]), END])
    (task,) = read_garak(tmp_path)
    assert [(item.scores, item.explanation) for item in task.items] == [({"d": None}, "no answer was given")] * 2


def test_what_a_probe_had_no_time_for_is_unscored(tmp_path: Path) -> None:
    path = write_report(tmp_path, [SETUP, attempt(1, {}, status=1), attempt(2, {"d": [0.0]})], suffix=".unfinished.jsonl")
    with path.open("a") as file:
        file.write('{"entry_type": "att')
    (task,) = read_garak(tmp_path)
    assert [list(item.scores.values()) for item in task.items] == [[None], [None]]
    assert task.items[0].explanation == "the detectors had not looked at it when the probe's time was over"
    assert task.about["run"] == "out of time"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([SETUP, attempt(1, {"d": [0.0]})], "is not whole: the scan was interrupted"),
        ([SETUP, attempt(1, {"d": [0.0, 1.0], "e": [0.0]}), END], "detector 'e' does not say one thing for each of 2 answers"),
        ([SETUP, {**attempt(1, {"d": [0.0]}), "detector_results": None}, END], "line 2 is no attempt as garak 0.17 writes it"),
        ([SETUP, attempt(1, {"d": [0.0]}, outputs=None), END], "line 2 holds no answers"),
        ([SETUP, END], "hold no attempt"),
    ],
)
def test_reports_that_are_not_whole_are_refused(tmp_path: Path, entries: list[dict[str, Any]], said: str) -> None:
    write_report(tmp_path, entries)
    with pytest.raises(DataError) as caught:
        read_garak(tmp_path)
    assert said in str(caught.value)


def test_a_hitlog_of_another_run_is_seen(tmp_path: Path) -> None:
    write_report(tmp_path, [SETUP, attempt(1, {"d": [1.0]}), END])
    write_report(tmp_path, [{"score": 1.0}], suffix=".hitlog.jsonl")
    assert read_garak(tmp_path)[0].items[0].scores == {"d": 0.0}
    write_report(tmp_path, [{"score": 1.0}, {"score": 1.0}], suffix=".hitlog.jsonl")
    with pytest.raises(DataError, match=r"tells of 2 hits, dan.report.jsonl of 1"):
        read_garak(tmp_path)


SCRIPT = """#!/bin/sh
while [ $# -gt 0 ]; do case "$1" in --report_prefix) prefix="$2";; --spec) probe="${{2#probes.}}";; esac; shift; done
echo "$probe" >> "{asked}"
if [ "$probe" = slow ]; then head -n 1 "{report}" > "$prefix.report.jsonl"; sleep 60; fi
cp "{report}" "$prefix.report.jsonl"
"""


def test_a_scan_goes_on_where_it_stopped_and_each_probe_has_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script stands where garak's Python would: it writes down what it is asked, and leaves reports as garak does."""
    report = write_report(tmp_path / "made", [attempt(1, {"d": [0.0]}), SETUP, END])
    python = tmp_path / "python"
    python.write_text(SCRIPT.format(asked=tmp_path / "asked", report=report))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("LORIMER_GARAK", str(python))
    output = tmp_path / "scan"
    for _ in range(2):
        tasks = run_garak("http://127.0.0.1:9/v1", "helpdesk", ["dan", "slow"], output, seconds_a_probe=4.0)
    assert (tmp_path / "asked").read_text().split() == ["dan", "slow", "slow"]
    assert [(task.about["run"], [list(item.scores.values()) for item in task.items]) for task in tasks] == [
        ("whole", [[1.0]]),
        ("out of time", [[None]]),
    ]
    generator = json.loads((output / "generator.json").read_text())
    assert generator["openai"]["OpenAICompatible"]["uri"] == "http://127.0.0.1:9/v1"
    with pytest.raises(UsageError, match="name at least one probe"):
        run_garak("http://127.0.0.1:9", "helpdesk", [], output)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LORIMER_GARAK"), reason="needs garak: name the Python of its environment in LORIMER_GARAK")
def test_garak_itself_scans_our_server(tmp_path: Path, registry: Registry) -> None:
    """Its own test probe, a few harmless prompts; nothing of the scan is ours but the server."""
    save_tiny_base(tmp_path / "base")
    worker = EngineWorker(Engine(load_base(str(tmp_path / "base"))))
    with background_server(create_app(worker, registry)) as url:
        (task,) = run_garak(url, "base", ["test.Test"], tmp_path / "scan", max_tokens=8, seconds_a_probe=900)
    assert task.about["run"] == "whole"
    assert task.items
    assert all(value is not None for item in task.items for value in item.scores.values())
