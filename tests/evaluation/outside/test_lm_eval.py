"""Samples as lm-eval 0.4.13 writes them are read whole, or refused with their line; with LORIMER_LM_EVAL, lm-eval itself asks a server."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import save_tiny_base
from lorimer.cli.main import run
from lorimer.errors import DataError, UsageError
from lorimer.evaluation.outside.imported import pair_imports
from lorimer.evaluation.outside.lm_eval import LmEvalModel, read_lm_eval, run_lm_eval, served_model
from lorimer.inference.engine import Engine
from lorimer.model.base import load_base
from lorimer.registry.registry import Registry
from lorimer.serving.app import create_app
from lorimer.serving.server import background_server
from lorimer.serving.worker import EngineWorker

STAMP = "2026-11-22T10-00-00.123456"


def choice(number: int, *, acc: Any = 1.0, **more: Any) -> dict[str, Any]:
    """A line of a multiple-choice task."""
    sample = {
        "doc_id": number, "doc": {"question": f"q{number}"}, "target": "0",
        "arguments": {"gen_args_0": {"arg_0": f"Question: q{number}\nAnswer:", "arg_1": " yes"}},
        "resps": [[["-1.5", "True"]], [["-2.25", "False"]]], "filtered_resps": [["-1.5", "True"], ["-2.25", "False"]],
        "filter": "none", "metrics": ["acc", "acc_norm"],
        "doc_hash": str(number) * 64, "prompt_hash": "b" * 64, "target_hash": "c" * 64, "acc": acc, "acc_norm": 0.0,
    }  # fmt: skip
    return {**sample, **more}


def answer(number: int, step: str, match: float) -> dict[str, Any]:
    """A line of a task whose answers are generated, as one of its filters sees it."""
    own = {"filter": step, "metrics": ["exact_match"], "exact_match": match, "resps": [[" so 4.\n#### 4"]], "filtered_resps": ["4"]}
    return {**{k: v for k, v in choice(number).items() if not k.startswith("acc")}, **own}


def write_run(folder: Path, tasks: dict[str, list[dict[str, Any]]], *, effective: int | None = None, **results: Any) -> Path:
    """A folder as lm-eval leaves it."""
    own = folder / "model"
    own.mkdir(parents=True)
    for name, samples in tasks.items():
        (own / f"samples_{name}_{STAMP}.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    found = {
        "results": {}, "n-shot": dict.fromkeys(tasks, 0), "versions": dict.fromkeys(tasks, 1.0), "task_hashes": dict.fromkeys(tasks, "d"),
        "n-samples": {name: {"original": 9, "effective": effective or len({s["doc_hash"] for s in own})} for name, own in tasks.items()},
        "configs": {name: {"output_type": "multiple_choice" if "acc" in own[0] else "generate_until"} for name, own in tasks.items()},
        "chat_template_sha": None, "system_instruction_sha": None, "model_name": "m", "lm_eval_version": "0.4.13",
    }  # fmt: skip
    (own / f"results_{STAMP}.json").write_text(json.dumps({**found, **results}))
    return folder


def samples_file(folder: Path) -> Path:
    return next(folder.rglob("samples_*"))


def test_choices_have_their_scores_and_log_likelihoods(tmp_path: Path) -> None:
    (task,) = read_lm_eval(write_run(tmp_path, {"arc_easy": [choice(1), choice(2, acc=0.0)]}))
    assert (task.name, task.kind, task.metrics) == ("arc_easy", "choice", ("acc", "acc_norm"))
    assert [item.scores for item in task.items] == [{"acc": 1.0, "acc_norm": 0.0}, {"acc": 0.0, "acc_norm": 0.0}]
    assert task.items[0].answer == "[-1.5, -2.25]"
    assert task.items[0].prompt == "Question: q1\nAnswer:"
    assert task.conditions["num_shots"] == "0"


def test_filters_of_one_answer_are_one_item_with_a_score_each(tmp_path: Path) -> None:
    lines = [answer(n, step, float(step == "loose")) for step in ("strict", "loose") for n in (1, 2)]
    (task,) = read_lm_eval(write_run(tmp_path, {"gsm8k": lines}))
    assert task.kind == "answer"
    assert [item.scores for item in task.items] == [{"exact_match@strict": 0.0, "exact_match@loose": 1.0}] * 2
    assert task.items[0].answer == " so 4.\n#### 4"


def test_an_item_that_the_data_hold_twice_is_two(tmp_path: Path) -> None:
    (task,) = read_lm_eval(write_run(tmp_path, {"arc": [choice(1), choice(1, acc=0.0)]}, effective=2))
    assert [item.scores["acc"] for item in task.items] == [1.0, 0.0]
    assert len({item.key for item in task.items}) == 2


def test_two_runs_are_paired_by_their_hashes(tmp_path: Path) -> None:
    own = read_lm_eval(write_run(tmp_path / "own", {"arc": [choice(1), choice(2)]}))
    base = read_lm_eval(write_run(tmp_path / "base", {"arc": [choice(2, acc=0.0), choice(1)]}))
    found = pair_imports(own, base)
    assert [result.name for result in found] == ["arc:acc", "arc:acc_norm"]
    assert [(item.candidate.value, item.base.value) for item in found[0].items] == [(1.0, 1.0), (1.0, 0.0)]


@pytest.mark.parametrize("value", [None, float("nan"), "so", [1]])
def test_a_score_that_is_no_number_is_unscored(tmp_path: Path, value: Any) -> None:
    (task,) = read_lm_eval(write_run(tmp_path, {"arc": [choice(1, acc=value)]}))
    assert task.items[0].scores == {"acc": None, "acc_norm": 0.0}
    assert task.items[0].explanation == "lm-eval gave no number for acc"


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"tasks": {"arc": [choice(1), choice(1)]}, "effective": 1}, "holds 2 items, its results tell of 1"),
        ({"tasks": {"arc": [choice(1)]}, "effective": 2}, "holds 1 items, its results tell of 2"),
        ({"tasks": {"arc": [choice(1, metrics=[])]}}, "line 1 names no metrics"),
        ({"tasks": {"arc": [choice(1)]}, "configs": []}, "tells nothing of 'configs'"),
        ({"tasks": {"arc": [choice(1)]}, "n-samples": {"arc": {}, "boolq": {}}}, "tells of boolq, of which there are no samples"),
        ({"tasks": {}}, "tells of no task"),
    ],
)
def test_runs_that_are_not_whole_are_refused(tmp_path: Path, run: dict[str, Any], said: str) -> None:
    write_run(tmp_path, **run)
    with pytest.raises(DataError) as caught:
        read_lm_eval(tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"doc_id": 1}\n', "line 2 has no doc_hash, prompt_hash, target_hash, metrics, arguments"),
        ('{"doc_id": 1, "doc', "line 2 is cut off: the run was interrupted while it wrote"),
        ('{"doc_id": 1, "doc\n', "line 2 is no JSON"),
        ("[1]\n", "line 2 is no JSON object, found list"),
        ("[" * 100_000 + "\n", "line 2 is no JSON"),
        ("\xff\xfe\n", "line 2 is no JSON"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, text: str, said: str) -> None:
    with samples_file(write_run(tmp_path, {"arc": [choice(1)]})).open("ab") as file:
        file.write(text.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        read_lm_eval(tmp_path)
    assert said in str(caught.value)


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no results of lm-eval"):
        read_lm_eval(tmp_path)
    write_run(tmp_path / "a", {"arc": [choice(1)]})
    write_run(tmp_path / "b", {"arc": [choice(1)]})
    with pytest.raises(DataError, match="holds results of 2 runs"):
        read_lm_eval(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*choice(1), "arg_0", "gen_args_0"]), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(changes=st.dictionaries(st.sampled_from([*choice(1)]), json_values, max_size=4))
def test_any_line_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]) -> None:
    folder = write_run(tmp_path_factory.mktemp("run"), {"arc": [choice(1)]})
    samples_file(folder).write_text(json.dumps({**choice(1), **changes}) + "\n")
    with contextlib.suppress(DataError):
        (task,) = read_lm_eval(folder)
        assert len(task.items) == 1


def test_lm_eval_is_not_asked_for_what_it_cannot_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIMER_LM_EVAL", "/bin/true")
    with pytest.raises(UsageError, match="no comma"):
        run_lm_eval(LmEvalModel(kind="hf", arguments={"pretrained": "a,b"}), ["arc"], tmp_path)
    write_run(tmp_path, {"arc": [choice(1)]})
    with pytest.raises(UsageError, match="holds results"):
        run_lm_eval(LmEvalModel(kind="hf", arguments={}), ["arc"], tmp_path)
    monkeypatch.delenv("LORIMER_LM_EVAL")
    with pytest.raises(UsageError, match="LORIMER_LM_EVAL is not set"):
        run_lm_eval(LmEvalModel(kind="hf", arguments={}), ["arc"], tmp_path)


TASK = """
task: own_colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
num_fewshot: 0
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{gold}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1.0}}
"""
ROWS = [
    {"question": "What colour is the sky on a clear day?", "choices": ["blue", "green", "très rouge"], "gold": 0},
    {"question": "What colour is grass?", "choices": ["black", "green"], "gold": 1},
    {"question": "What colour is milk?", "choices": ["white", "brown"], "gold": 0},
]


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LORIMER_LM_EVAL"), reason="needs lm-eval: name the Python of its environment in LORIMER_LM_EVAL")
def test_lm_eval_finds_the_same_through_our_server_as_through_transformers(tmp_path: Path, registry: Registry) -> None:
    """Log-likelihoods of every choice, asked by lm-eval itself; nothing of it is ours but the server."""
    folder = tmp_path / "base"
    save_tiny_base(folder)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "tasks" / "own.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    worker = EngineWorker(Engine(load_base(str(folder), dtype=torch.float32)))
    with background_server(create_app(worker, registry)) as url:
        model = served_model(url, "base", folder, max_len=512)
        (served,) = run_lm_eval(model, ["own_colours"], tmp_path / "served", definitions=tmp_path / "tasks", seconds=1000)
    alone = LmEvalModel(kind="hf", arguments={"pretrained": str(folder), "dtype": "float32"})
    options = ["--device", "cpu"]
    (plain,) = run_lm_eval(alone, ["own_colours"], tmp_path / "plain", definitions=tmp_path / "tasks", seconds=1000, options=options)
    (acc, _) = pair_imports([served], [plain])
    assert [item.candidate.value for item in acc.items] == [item.base.value for item in acc.items]
    for one, other in zip(served.items, plain.items, strict=True):
        assert json.loads(one.answer) == pytest.approx(json.loads(other.answer), abs=1e-3)


@pytest.mark.parametrize(
    ("own", "num_items", "code"), [(1.0, 300, 0), (0.0, 300, 3), (1.0, 20, 5)], ids=["as good", "worse", "too few to tell"]
)
def test_two_runs_are_held_to_a_rule(own: float, num_items: int, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run_of(name: str, value: float) -> str:
        return str(write_run(tmp_path / name, {"arc": [choice(n, acc=value, doc_hash=f"{n:064d}") for n in range(num_items)]}))

    candidate, base = run_of("candidate", own), run_of("base", 1.0)
    assert run(["suites", "compare", "lm-eval", candidate, base, "--json"]) == code
    checks = json.loads(capsys.readouterr().out)["gate"]["checks"]
    assert [check["name"] for check in checks] == ["general/arc:acc", "general/arc:acc_norm"]
    assert run(["suites", "compare", "lm-eval", candidate, str(tmp_path / "nowhere")]) == 1
    assert run(["suites", "compare", "helm", candidate, base]) == 2
    capsys.readouterr()
