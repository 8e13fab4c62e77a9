"""Suites as files: what is read, what is refused and how it is said, what is sealed, how they are kept."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.errors import ConfigError, DataError, LorimerError, NotFoundError
from lorimer.evaluation.checks import check_task
from lorimer.evaluation.foresight import foresee
from lorimer.evaluation.items import read_items
from lorimer.evaluation.results import ItemScores, TaskResult, unit_of
from lorimer.evaluation.scorers.score import Score
from lorimer.evaluation.suite import SuiteTask, add_suite, added_suites, find_suite, read_suite, shipped_suites, texts_by_suite

ITEMS = [{"prompt": f"What is {n} plus {n}?", "target": str(2 * n), "group": f"g{n // 3}"} for n in range(60)]
TASK = {"name": "sums", "family": "general", "data": "sums.jsonl", "metric": "exact", "rule": {"not_worse_than": "base"}}


def write(folder: Path, *, items: list[dict[str, Any]] | str = ITEMS, tasks: list[dict[str, Any]] | None = None, **keys: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = items if isinstance(items, str) else "".join(json.dumps(item) + "\n" for item in items)
    (folder / "sums.jsonl").write_text(text)
    (folder / "desk.yaml").write_text(yaml.safe_dump({"suite": "desk", "version": 1, "tasks": tasks or [TASK], **keys}))
    return folder / "desk.yaml"


def unchanged(one: SuiteTask) -> TaskResult:
    """What an adapter that is just like its base is found to score."""
    is_share = unit_of(one.task.metric) == "share"
    items = []
    for number, sample in enumerate(one.task.samples):
        # shares are equal item by item; where nats are counted no two models agree to the last digit
        base = Score(value=number % 2 if is_share else 1.0, answer="said")
        own = base if is_share else Score(value=1.0 + number % 5 / 1000, answer="said")
        item = ItemScores(id=sample.id, group=sample.group, tags={}, prompt="?", target="!", candidate=own, base=base, incumbent=None)
        items.append(item)
    return TaskResult(
        name=one.task.name,
        family=one.family,
        kind=one.task.kind,
        metric=one.task.metric,
        rule=one.rule.model_dump(exclude_none=True, exclude_unset=True),
        task_digest=one.digest,
        items=tuple(items),
    )


def test_a_suite_is_its_tasks_items_and_rules(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path))
    (one,) = suite.tasks
    assert (suite.id, one.task.name, len(one.task.samples), one.rule.margin) == ("desk@v1", "sums", 60, 0.02)
    assert one.task.samples[3].prompt[0].content == "What is 3 plus 3?"
    assert len({sample.id for sample in one.task.samples}) == 60


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"reserve": 0.1}, {"tasks": [{**TASK, "rule": {"better_than": "base"}}]}, {"tasks": [{**TASK, "max_tokens": 9}]},
     {"items": ITEMS[:-1]}, {"items": [{**ITEMS[0], "target": "7"}, *ITEMS[1:]]}, {"tasks": [{**TASK, "template": "none"}]}],
)  # fmt: skip
def test_whatever_decides_a_verdict_is_in_the_digest(tmp_path: Path, change: dict[str, Any]) -> None:
    assert read_suite(write(tmp_path / "a")).digest != read_suite(write(tmp_path / "b", **change)).digest
    assert read_suite(write(tmp_path / "a")).digest == read_suite(write(tmp_path / "c")).digest


def test_a_part_is_sealed_and_groups_are_whole(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path, reserve=0.4))
    samples = suite.tasks[0].task.samples
    sealed = [sample for sample in samples if suite.is_reserved(sample)]
    assert 6 <= len(sealed) <= 42
    assert {sample.group for sample in sealed}.isdisjoint({s.group for s in samples if s not in sealed})
    assert [s for s in samples if s not in sealed] == list(suite.open_part().tasks[0].task.samples)
    assert read_suite(write(tmp_path, reserve=0.0)).open_part().tasks[0].task.samples == samples


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tasks": [{**TASK, "rule": {}}]}, "exactly one of better_than"),
        ({"tasks": [{**TASK, "rule": {"better_than": "base", "never": 0.1}}]}, "exactly one of"),
        ({"tasks": [{**TASK, "rule": {"better_than": "base", "margin": 0.1}}]}, "a margin goes with not_worse_than"),
        ({"tasks": [{**TASK, "metric": "vibes"}]}, "'vibes' is not one of kind 'answer'"),
        ({"tasks": [{**TASK, "kind": "choice"}]}, "'exact' is not one of kind 'choice'"),
        ({"tasks": [{**TASK, "dataset": "d"}]}, "either `data` or `dataset`"),
        ({"tasks": [TASK, TASK]}, "named more than once: sums"),
        ({"tasks": [{**TASK, "marging": 1}]}, "unknown key `tasks.0.marging` .did you mean `margin`|unknown key `tasks.0.marging`"),
        ({"tasks": [{**TASK, "data": "../sums.jsonl"}]}, "lies outside the suite's folder"),
        ({"tasks": [{**TASK, "data": "none.jsonl"}]}, "none.jsonl cannot be read"),
        ({"tasks": [{**TASK, "data": None, "dataset": "nowhere"}]}, "nowhere"),
        ({"reserve": 0.9}, "reserve"),
        ({"items": ""}, "it is empty"),
        ({"items": "[1]\n{}\nnot json\n"}, r"line 1.*line 2: it needs `prompt` or `messages`.*line 3"),
        ({"items": [ITEMS[0], ITEMS[0]]}, "line 2 asks what line 1 asks"),
        ({"items": [{**ITEMS[0], "answer": "x"}]}, "line 1: answer Extra inputs"),
        ({"items": [{**ITEMS[0], "target": 7}]}, "line 1: target"),
        ({"items": [{"messages": [{"role": "assistant", "content": "x"}], "target": "y"}]}, "its last message is not the user's"),
        ({"tasks": [{**TASK, "kind": "choice", "metric": "choice"}]}, "its `choices` are two or more"),
        ({"tasks": [{**TASK, "kind": "text", "metric": "perplexity"}], "items": [{"prompt": "x"}]}, "its `target` is the text"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_place(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        read_suite(write(tmp_path, **change))


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300))
def test_any_file_is_items_or_an_error_that_names_lines(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    path.write_bytes(data)
    with contextlib.suppress(DataError):
        assert len(read_items(path, "answer", "chat")) == sum(bool(line.strip()) for line in data.split(b"\n"))
        return
    with pytest.raises(DataError, match=r"line |empty"):
        read_items(path, "answer", "chat")


def test_a_suite_once_added_does_not_change(tmp_path: Path, home: Path) -> None:
    first = add_suite(write(tmp_path / "a"))
    assert add_suite(write(tmp_path / "a")) == first
    assert (home / "suites" / "desk@v1" / "sums.jsonl").is_file()
    with pytest.raises(ConfigError, match="desk@v1 is there and asks something else"):
        add_suite(write(tmp_path / "b", items=ITEMS[:9]))
    second = add_suite(write(tmp_path / "b", items=ITEMS[:9], version=12))
    assert find_suite("desk") == second
    assert find_suite("desk@v1") == first
    assert sorted(added_suites()) == ["desk@v1", "desk@v12"]
    assert "What is 3 plus 3?" in set(texts_by_suite()["suite 'desk@v1'"])
    with pytest.raises(NotFoundError, match="there is no suite 'desk@v3'; there are desk@v1, desk@v12"):
        find_suite("desk@v3")


@pytest.mark.parametrize("name", shipped_suites())
def test_shipped_suites_can_be_asked(name: str, tmp_path: Path) -> None:
    suite = find_suite(name)
    assert suite.name == name
    assert all(one.task.samples for one in suite.tasks)
    with pytest.raises(LorimerError, match="comes with the product"):
        add_suite(write(tmp_path, suite=name))


@pytest.mark.parametrize(("margin", "num_items"), [(0.3, 25), (0.15, 25), (0.1, 29), (0.08, 36), (0.05, 59)])
@pytest.mark.parametrize("is_grouped", [False, True])
def test_foresight_and_check_agree_on_the_fewest_that_can_pass(tmp_path: Path, margin: float, num_items: int, is_grouped: bool) -> None:
    for fewer in (0, 1):
        items = [{**item, "group": f"g{n}" if is_grouped else ""} for n, item in enumerate(ITEMS[: num_items - fewer])]
        path = write(tmp_path / str(fewer), items=items, tasks=[{**TASK, "rule": {"not_worse_than": "base", "margin": margin}}])
        suite = read_suite(path)
        (foreseen,) = foresee(suite, 1e-9).tasks
        verdict = check_task(unchanged(suite.tasks[0]), has_incumbent=False).verdict
        assert (foreseen.passes is not None and foreseen.passes > 0) == (verdict == "PASS")
        if is_grouped:
            assert verdict == ("INCONCLUSIVE" if fewer else "PASS")


@pytest.mark.parametrize(("name", "task"), [(name, one.task.name) for name in shipped_suites() for one in find_suite(name).tasks])
def test_a_shipped_task_can_pass_without_its_sealed_items(name: str, task: str) -> None:
    """Asked by `evaluate`, which leaves them out, an adapter just like its base gets a PASS: no task is too small for its own rule."""
    one = next(one for one in find_suite(name).open_part().tasks if one.task.name == task)
    found = check_task(unchanged(one), has_incumbent=False)
    assert found.verdict == "PASS", found.reason
