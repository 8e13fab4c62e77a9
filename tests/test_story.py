"""The whole story on a tiny base: raw rows to a registered, promoted, evaluated adapter, through the command line."""

import json
from pathlib import Path

import pytest
import torch

from fakes import save_tiny_base
from lorimer.cli.main import run
from lorimer.config import read_recipe
from lorimer.evaluation.report import EvalReport
from lorimer.inference.composition import alone
from lorimer.inference.engine import Engine, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.adapter import load_adapter
from lorimer.model.base import load_base
from lorimer.pipeline import build, find_version
from lorimer.registry.records import AdapterVersion, Alias
from lorimer.training.loop import StepMetrics


def write_rows(folder: Path, num_rows: int) -> None:
    rows = [{"prompt": f"ticket number {i}", "completion": "ok"} for i in range(num_rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe, rows that all want the same answer, and a tiny base, in one folder."""
    save_tiny_base(tmp_path / "base", "gemma3")
    write_rows(tmp_path, 400)
    text = f"base: {tmp_path / 'base'}\ndataset: rows.jsonl\nname: demo\nmetric: exact\nlearning_rate: 0.02\nrank: 8\nsteps: 60\n"
    (tmp_path / "recipe.yaml").write_text(text + "gate: {beats_base: true, min_items: 5}\n")
    return tmp_path / "recipe.yaml"


def test_pipeline_ends_with_a_promoted_version(recipe: Path) -> None:
    made = list(build(read_recipe(recipe)))
    kinds = [type(thing).__name__ for thing in made]
    assert list(dict.fromkeys(kinds)) == [
        "Dataset", "Base", "TrainingPlan", "Run", "StepMetrics", "RunResult", "AdapterVersion", "Task", "Answer", "EvalReport",
        "GateResult", "Alias",
    ]  # fmt: skip
    report = next(thing for thing in made if isinstance(thing, EvalReport))
    assert (report.base_score.value, report.adapter_score.value) == (0.0, 1.0)
    version, alias = made[-2:]
    assert isinstance(version, AdapterVersion)
    assert isinstance(alias, Alias)
    assert find_version("demo@champion") == version
    assert version.gate_verdict == "PASS"


def test_lineage_reaches_from_version_to_rows(recipe: Path, home: Path) -> None:
    made = {type(thing).__name__: thing for thing in build(read_recipe(recipe))}
    version, run_, dataset, report = (made[kind] for kind in ("AdapterVersion", "Run", "Dataset", "EvalReport"))
    assert version.dataset_digest == dataset.digest == report.dataset_digest == run_.dataset_digest
    assert version.base_digest == made["Base"].digest == report.base_digest
    assert version.digest == report.adapter_digest
    assert version.run_id == run_.id
    lock = json.loads((version.path / "adapter.lock.json").read_text())
    assert lock["dataset_digest"] == dataset.digest
    assert json.loads((run_.folder / "run.json").read_text())["state"] == "succeeded"
    steps = [json.loads(line) for line in (run_.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 60


def test_evaluated_answers_are_what_the_saved_files_say(recipe: Path) -> None:
    made = list(build(read_recipe(recipe)))
    version = next(thing for thing in made if isinstance(thing, AdapterVersion))
    report = next(thing for thing in made if isinstance(thing, EvalReport))
    base = load_base(version.base_name)
    engine = Engine(base)
    engine.adapters.add("x", load_adapter(version.path, base))
    from lorimer.data.example import Message

    for item in report.items:
        prompt = base.renderer.render_prompt([Message(role="user", content=item.prompt)])
        (sequence,) = generate(engine, [Sequence(prompt_ids=prompt, params=SamplingParams(max_tokens=20), composition=alone("x"))])
        assert base.renderer.decode(sequence.output_ids) == item.adapter_answer


def test_served_answers_are_the_evaluated_ones(recipe: Path) -> None:
    from openai import OpenAI

    from lorimer.serving.server import background_server, open_app

    write_rows(recipe.parent, 120)  # in more the random base has a tie of one bfloat16 step, which batches of other sizes round otherwise
    made = list(build(read_recipe(recipe)))
    version = next(thing for thing in made if isinstance(thing, AdapterVersion))
    report = next(thing for thing in made if isinstance(thing, EvalReport))
    with background_server(open_app(load_base(version.base_name))) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        for item in report.items:
            for model, evaluated in ((version.id, item.adapter_answer), ("base", item.base_answer)):
                messages = [{"role": "user", "content": item.prompt}]
                reply = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=11)  # target, <bos>, 8
                assert reply.choices[0].message.content == evaluated


def test_same_recipe_same_bytes(recipe: Path) -> None:
    first, second = (next(t for t in build(read_recipe(recipe)) if isinstance(t, AdapterVersion)) for _ in range(2))
    assert first.digest == second.digest
    assert first.version == second.version == 1


def test_interrupted_run_registers_nothing_and_says_so(recipe: Path, home: Path) -> None:
    story = build(read_recipe(recipe))
    while not isinstance(next(story), StepMetrics):
        pass
    story.close()
    (folder,) = (home / "runs").iterdir()
    assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"
    assert not (folder / "adapter").exists()
    assert run(["adapters", "list", "--json"]) == 0


def test_verbs_of_the_command_line(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", str(recipe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_steps"] == 60
    assert run(["train", str(recipe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "demo@v1"
    assert run(["evaluate", "demo", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert evaluated["gate"]["verdict"] == "PASS"
    assert Path(evaluated["report"]).is_file()
    assert run(["adapters", "promote", "demo@v1", "--reason", "first"]) == 0
    capsys.readouterr()
    assert run(["adapters", "show", "demo", "--json"]) == 0
    assert "champion" in capsys.readouterr().out
    assert run(["chat", "demo", "--message", "ticket number 3"]) == 0
    assert capsys.readouterr().out.strip() == "ok"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda r: r.write_text(r.read_text() + "rnak: 8\n"), 2, ["unknown key `rnak`", "did you mean `rank`"]),
        (lambda r: r.write_text(r.read_text().replace("base: ", "base: /nowhere", 1)), 2, ["base '/nowhere"]),
        (lambda r: (r.parent / "rows.jsonl").write_text(""), 1, ["rows.jsonl", "holds no rows"]),
        (lambda r: (r.parent / "rows.jsonl").write_text('{"prompt": "a"\n' * 20), 1, ["rows.jsonl:1"]),
        (
            lambda r: (
                r.write_text(r.read_text().replace("base: ", "base: /nowhere", 1)),
                (r.parent / "rows.jsonl").write_text('{"prompt": "a"\n' * 20),
            ),
            1,
            ["base '/nowhere", "rows.jsonl:1"],
        ),
        (lambda r: r.write_text(r.read_text() + "columns: {prompt: question}\n"), 2, ["question", "prompt"]),
        (lambda r: r.unlink(), 2, ["recipe.yaml", "lorimer init"]),
    ],
)
def test_bad_input_is_one_line_with_its_exit_code(
    change: object, code: int, words: list[str], recipe: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(recipe)  # type: ignore[operator]
    assert run(["train", str(recipe)]) == code
    error = capsys.readouterr().err.strip()
    assert error.startswith("lorimer: ")
    assert len(error.splitlines()) == 1
    assert all(word in error for word in words)
    assert not (home / "runs").exists()


def test_full_disk_in_the_middle_leaves_no_adapter(
    recipe: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import errno

    from lorimer.model import adapter

    def full(*_: object, **__: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(adapter, "save", full)
    assert run(["train", str(recipe)]) == 1
    assert "disk is full" in capsys.readouterr().err
    (folder,) = (home / "runs").iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["learning.json", "metrics.jsonl", "plan.json", "recipe.yaml", "run.json"]
    assert not (home / "adapters").exists()


def test_ctrl_c_is_one_line(recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lorimer.training import train

    def interrupted(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupted)
    assert run(["train", str(recipe)]) == 1
    assert "interrupted" in capsys.readouterr().err.splitlines()[-1]


def test_trained_adapter_loads_in_peft_with_equal_logits(recipe: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from lorimer.model.attention import PackedSegments, whole
    from lorimer.model.lora import AdapterRows

    version = next(thing for thing in build(read_recipe(recipe)) if isinstance(thing, AdapterVersion))
    base = load_base(version.base_name, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(version.base_name, dtype=torch.float32, attn_implementation="eager")
    peft = PeftModel.from_pretrained(plain, version.path).eval()
    ids = torch.arange(5, 45)
    with torch.no_grad():
        rows = [AdapterRows(start=0, stop=40, adapter=load_adapter(version.path, base))]
        ours = base.head.logits(base.hidden_states(ids, torch.arange(40), PackedSegments(whole([40])), rows))
        torch.testing.assert_close(ours, peft(ids[None]).logits[0], rtol=1e-5, atol=1e-4)
