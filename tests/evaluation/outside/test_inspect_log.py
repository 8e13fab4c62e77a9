"""Inspect's logs are read whole in both forms; archives made to hurt are refused before they do."""

import contextlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.errors import DataError
from lorimer.evaluation.outside import inspect_log
from lorimer.evaluation.outside.imported import ImportedTask, pair_imports
from lorimer.evaluation.outside.inspect_log import read_inspect_log


def header(**more: Any) -> dict[str, Any]:
    spec = {"task": "returns", "task_version": 0, "task_args": {"hard": True}, "model": "openai/helpdesk", "dataset": {}, "config": {}}
    return {"version": 2, "status": "success", "eval": {**spec, **more.pop("eval", {})}, **more}


def sample(name: str | int, value: Any = "C", *, epoch: int = 1, **more: Any) -> dict[str, Any]:
    own = {
        "id": name,
        "epoch": epoch,
        "input": [{"role": "user", "content": [{"type": "text", "text": f"May I return {name}?"}]}],
        "target": ["yes", "Yes"],
        "output": {"model": "m", "choices": [{"message": {"role": "assistant", "content": "Yes, you may."}}]},
        "scores": {"match": {"value": value, "answer": "yes", "explanation": "it agrees"}},
    }
    return {**own, **more}


def write_eval(path: Path, samples: list[dict[str, Any]], *, head: str = "header.json", **more: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(head, json.dumps(header(**more)))
        archive.writestr("summaries.json", "[]")
        for one in samples:
            archive.writestr(f"samples/{one.get('id')}_epoch_{one.get('epoch', 1)}.json", json.dumps(one))
    return path


def write_json(path: Path, samples: list[dict[str, Any]], **more: Any) -> Path:
    path.write_text(json.dumps({**header(**more), "samples": samples}))
    return path


def read(tmp_path: Path, form: str, samples: list[dict[str, Any]], **more: Any) -> ImportedTask:
    write = write_eval if form == "eval" else write_json
    return read_inspect_log(write(tmp_path / f"log.{form}", samples, **more))


@pytest.mark.parametrize("form", ["eval", "json"])
def test_samples_have_their_scores(tmp_path: Path, form: str) -> None:
    task = read(tmp_path, form, [sample("a"), sample(7, "I", epoch=2)])
    assert (task.source, task.name, task.metrics) == ("inspect", "returns", ("match",))
    assert [(item.key, item.group, item.scores["match"]) for item in task.items] == [("a:1", "a", 1.0), ("7:2", "7", 0.0)]
    first = task.items[0]
    assert (first.prompt, first.target, first.answer, first.explanation) == ("May I return a?", "yes\nYes", "yes", "it agrees")


@pytest.mark.parametrize(
    ("value", "scores"),
    [
        ("C", {"match": 1.0}),
        ("I", {"match": 0.0}),
        ("P", {"match": 0.5}),
        ("N", {"match": 0.0}),
        (True, {"match": 1.0}),
        ("no", {"match": 0.0}),
        ("0.25", {"match": 0.25}),
        (0.75, {"match": 0.75}),
        (float("nan"), {"match": None}),
        ("maybe", {"match": None}),
        (None, {"match": None}),
        ({"f1": 0.5, "em": "C"}, {"match.f1": 0.5, "match.em": 1.0}),
        ([1, "I"], {"match.0": 1.0, "match.1": 0.0}),
    ],
)
def test_values_count_as_inspect_counts_them(tmp_path: Path, value: Any, scores: dict[str, float | None]) -> None:
    assert read(tmp_path, "json", [sample("a", value)]).items[0].scores == scores


def test_what_failed_or_never_ran_is_unscored_and_there(tmp_path: Path) -> None:
    failed = sample("b", error={"message": "the sandbox broke", "traceback": ""})
    samples = [sample("a"), failed, sample("c", scores=None)]
    told = {"dataset": {"sample_ids": ["a", "b", "c", "d"]}, "config": {"epochs": 1}}
    task = read(tmp_path, "eval", samples, eval=told, status="cancelled", head="_journal/start.json")
    assert {item.key: (item.scores, item.explanation) for item in task.items} == {
        "a:1": ({"match": 1.0}, "it agrees"),
        "b:1": ({"match": None}, "the sample failed: the sandbox broke"),
        "c:1": ({}, "it was not scored"),
        "d:1": ({}, "the run ended before this sample"),
    }
    (found,) = pair_imports([task], [task])
    assert [item.is_scored for item in found.items] == [True, False, False, False]


@pytest.mark.parametrize("name", ["../../outside.json", "samples/../../outside.json", "/samples/x.json"])
def test_names_in_an_archive_are_no_paths(tmp_path: Path, name: str) -> None:
    path = write_eval(tmp_path / "log.eval", [sample("a")])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, json.dumps(sample("b")))
    read_inspect_log(path)
    assert [one.name for one in tmp_path.rglob("*")] == ["log.eval"]
    assert not (tmp_path.parent / "outside.json").exists()


def test_a_zip_bomb_is_read_no_further_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_log, "MAX_MEMBER_BYTES", 10_000)
    path = write_eval(tmp_path / "log.eval", [sample("a", pad="0" * 50_000)])
    with pytest.raises(DataError, match="has more than 10,000 bytes"):
        read_inspect_log(path)
    monkeypatch.setattr(inspect_log, "MAX_ALL_BYTES", 20_000)
    with pytest.raises(DataError, match="would be more than"):
        read_inspect_log(path)


@pytest.mark.parametrize("keep", [0, 30, 0.3, 0.6, 0.95])
def test_archives_that_are_cut_off_are_refused(tmp_path: Path, keep: float) -> None:
    path = write_eval(tmp_path / "log.eval", [sample("a")])
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(DataError, match=r"log.eval is no whole zip archive"):
        read_inspect_log(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "does not say which task"),
        ({"eval": {"task": "t"}, "samples": [1]}, "no list of objects"),
        ({"eval": {"task": "t"}, "samples": []}, "holds no samples"),
        ({"eval": {"task": "t"}, "samples": [{"epoch": 1}]}, "sample 1 has no id"),
        ({"eval": {"task": "t"}, "samples": [{"id": 1, "epoch": 1, "scores": []}]}, "its scores are no object"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, value: Any, said: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DataError) as caught:
        read_inspect_log(path)
    assert said in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "text", "content", "choices", "message"]), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(changes=st.dictionaries(st.sampled_from([*sample("a"), "error"]), json_values, max_size=4))
def test_any_sample_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]) -> None:
    path = write_json(tmp_path_factory.mktemp("log") / "log.json", [{**sample("a"), **changes}])
    with contextlib.suppress(DataError):
        task = read_inspect_log(path)
        assert len(task.items) == 1


@settings(deadline=None, max_examples=60)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_an_archive_with_a_wrong_byte_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, place: int, value: int) -> None:
    path = write_eval(tmp_path_factory.mktemp("log") / "log.eval", [sample("a"), sample("b")])
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(bytes(data))
    with contextlib.suppress(DataError):
        task = read_inspect_log(path)
        assert 1 <= len(task.items) <= 2
