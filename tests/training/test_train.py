"""Runs from start to end: what each method saves, what is kept, and that nothing is lost on the way."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from fakes import byte_tokenizer, tiny_base, tiny_model
from lorimer.config import Recipe
from lorimer.data.dataset import Dataset
from lorimer.data.example import Example, Message
from lorimer.errors import ConfigError, IntegrityError, TrainingError
from lorimer.model.adapter import load_adapter
from lorimer.model.base import Base
from lorimer.model.lora import LoRA
from lorimer.pipeline import register
from lorimer.storage import read_json, read_jsonl
from lorimer.training import train as train_module
from lorimer.training.checkpoints import find_checkpoints
from lorimer.training.loop import RunFailure, StepMetrics
from lorimer.training.plan import plan
from lorimer.training.preference import LN_2
from lorimer.training.rank import RankChoice
from lorimer.training.runs import Run, cancel_run, open_run, read_run, reopen_run
from lorimer.training.train import RunEvent, RunResult, train_run, train_runs
from lorimer.training.validation import Validation

COLOURS = ("red", "blue", "green")


def example(i: int, rejected: bool = False) -> Example:
    question = Message(role="user", content=f"what has number {i}?")
    answer = Message(role="assistant", content=COLOURS[i % 3])
    return Example(messages=(question, answer), source=f"t.jsonl:{i + 1}", rejected="purple" if rejected else None)


def dataset(num_train: int = 40, num_validation: int = 32, rejected: bool = False) -> Dataset:
    rows = [example(i, rejected) for i in range(num_train + num_validation)]
    train, validation = tuple(rows[:num_train]), tuple(rows[num_train:])
    return Dataset(name="t", digest="d" * 64, train=train, validation=validation, test=(), card={}, path=Path())


def recipe(**keys: Any) -> Recipe:
    return Recipe(**{"base": "tiny", "dataset": "t", "rank": 4, "batch_size": 8, "steps": 12, "learning_rate": 5e-3, **keys})


def begin(base: Base, rows: Dataset | None = None, **keys: Any) -> Run:
    rows, asked = rows or dataset(), recipe(**keys)
    return open_run(asked, plan(asked, rows, base), rows, base)


def finish(run: Run, base: Base, reference: LoRA | None = None) -> list[RunEvent]:
    return list(train_run(run, base, reference))


def result_of(events: list[RunEvent]) -> RunResult:
    assert isinstance(events[-1], RunResult)
    return events[-1]


def adapter_bytes(run: Run) -> bytes:
    return (run.adapter_folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["lora", "rslora", "lora_plus", "dora", "pissa"])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
def test_every_method_learns_and_loads_in_peft_with_equal_logits(method: str, architecture: str) -> None:
    base = tiny_base(architecture)
    run = begin(base, method=method, rank=8, rank_pattern={"down_proj": 3}, steps=25, learning_rate=2e-2 if method != "pissa" else 2e-3)
    events = finish(run, base)
    losses = [event.loss for event in events if isinstance(event, StepMetrics)]
    assert losses[-1] < losses[0] - 0.1
    peft = PeftModel.from_pretrained(tiny_model(architecture, attention="eager"), run.adapter_folder).eval()
    ids = torch.arange(5, 35)
    ours = load_adapter(run.adapter_folder, base)
    with torch.no_grad():
        from lorimer.model.attention import PackedSegments, whole
        from lorimer.model.lora import AdapterRows

        rows = [AdapterRows(start=0, stop=30, adapter=ours)]
        found = base.head.logits(base.hidden_states(ids, torch.arange(30), PackedSegments(whole([30])), rows))
        torch.testing.assert_close(found, peft(ids[None]).logits[0], rtol=1e-4, atol=1e-4)


def test_pissa_leaves_the_base_as_it_is_and_is_plain_on_disk() -> None:
    base = tiny_base("llama")
    run = begin(base, method="pissa", rank=4)
    events = finish(run, base)
    first = next(event for event in events if isinstance(event, StepMetrics))
    plain = finish(begin(base, rank=4), base)[0]
    assert isinstance(plain, StepMetrics)
    assert first.loss == pytest.approx(plain.loss, rel=1e-4)  # both begin where the base is
    config = read_json(run.adapter_folder / "adapter_config.json")
    assert (config["r"], config["use_dora"], config["use_rslora"]) == (8, False, False)
    assert result_of(events).rank == 8


def assert_recorded_as_saved(run: Run, base: Base, result: RunResult) -> None:
    """Result, run folder and registry say of the adapter what its files say."""
    version = register(run, result, base)
    config = read_json(version.path / "adapter_config.json")
    weights = load_file(version.path / "adapter_model.safetensors")
    saved = {"rank": config["r"], "alpha": config["lora_alpha"], "num_parameters": sum(tensor.numel() for tensor in weights.values())}
    assert saved["rank"] == max(tensor.shape[0] for name, tensor in weights.items() if "lora_A" in name)
    assert {key: getattr(result, key) for key in saved} == saved
    assert {key: read_run(run.id)["actual"][key] for key in saved} == saved
    assert {key: getattr(version, key) for key in saved} == saved


@pytest.mark.parametrize(
    ("keys", "rank", "alpha"),
    [
        ({}, 4, 32.0),
        ({"alpha": 7.0}, 4, 7.0),
        ({"rank_pattern": {"down_proj": 2, "q_proj": 8}}, 8, 64.0),  # one scale for all layers
        ({"method": "rslora"}, 4, 64.0),
        ({"method": "pissa"}, 8, 64.0),
        ({"method": "dora"}, 4, 32.0),
    ],
)
def test_what_is_recorded_is_what_the_saved_files_say(keys: dict[str, Any], rank: int, alpha: float) -> None:
    base = tiny_base("llama")
    run = begin(base, steps=6, **keys)
    result = result_of(finish(run, base))
    assert (result.rank, result.alpha) == (rank, alpha)
    assert_recorded_as_saved(run, base, result)


def test_what_is_recorded_of_an_automatic_rank_is_what_the_saved_files_say() -> None:
    base = tiny_base("gemma3")
    run = begin(base, rank="auto", rank_margin=0.9, steps=10, learning_rate=2e-2)
    result = result_of(finish(run, base))
    assert result.rank < run.plan.lora.rank
    assert_recorded_as_saved(run, base, result)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_base_in_few_bits_is_trained_on(kind: str) -> None:
    base = tiny_base("llama")
    before = sum(layer.weight.numel() for layer in base.layers.values())
    base.quantise(kind)  # type: ignore[arg-type]
    assert before
    assert not any(layer.weight.numel() for layer in base.layers.values())
    run = begin(base, quantise=kind, steps=20, learning_rate=2e-2)
    losses = [event.loss for event in finish(run, base) if isinstance(event, StepMetrics)]
    assert losses[-1] < losses[0] - 0.1
    assert read_json(run.adapter_folder / "adapter.lock.json")["quantisation"] == kind


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_weights_in_few_bits_are_near_the_full_ones(kind: str) -> None:
    from lorimer.model.quantised import quantise

    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    packed = quantise(weight, kind)  # type: ignore[arg-type]
    error = float((packed.dequantise() - weight).norm() / weight.norm())
    assert error < {"int8": 0.01, "nf4": 0.12}[kind]
    assert packed.num_bytes < {"int8": 0.27, "nf4": 0.16}[kind] * 4 * weight.numel()


def test_only_upper_layers_learn_and_lower_ones_run_once() -> None:
    base = tiny_base("gemma3")
    run = begin(base, layers="last 1", steps=15)
    assert run.plan.from_layer == 2
    kept = finish(run, base)
    again = begin(base, layers=[2], steps=15)
    object.__setattr__(again, "plan", _without_frozen_states(again.plan))
    computed = finish(again, base)
    assert {name.split(".")[2] for name in load_adapter(run.adapter_folder, base).weights} == {"2"}
    for one, other in zip(kept, computed, strict=True):
        if isinstance(one, StepMetrics) and isinstance(other, StepMetrics):
            assert one.loss == pytest.approx(other.loss, rel=1e-4)


def _without_frozen_states(made: Any) -> Any:
    from dataclasses import replace

    return replace(made, from_layer=0)


@pytest.mark.parametrize("architecture", ["gemma3", "phi"])
def test_layers_computed_twice_learn_the_same(architecture: str) -> None:
    from dataclasses import replace

    base = tiny_base(architecture)
    once = begin(base)
    finish(once, base)
    twice = begin(base)
    object.__setattr__(twice, "plan", replace(twice.plan, is_checkpointed=True))
    finish(twice, base)
    base.is_checkpointed = False
    assert adapter_bytes(once) == adapter_bytes(twice)


def test_best_weights_are_kept_and_a_run_that_gains_nothing_stops() -> None:
    base = tiny_base("llama")
    run = begin(base, steps=200, learning_rate=0.3, validate_every=4, patience=3)
    events = finish(run, base)
    looks = [event for event in events if isinstance(event, Validation)]
    best = min(looks, key=lambda look: look.loss)
    found = result_of(events)
    assert found.num_steps < 200
    assert (found.kept_step, found.validation_loss) == (best.step, pytest.approx(best.loss, rel=1e-6))
    assert [look.is_best for look in looks].index(True) == 0
    rows = list(read_jsonl(run.folder / "metrics.jsonl"))
    assert [row["validation_loss"] for row in rows if "validation_loss" in row] == [look.loss for look in looks]
    assert {"loss.svg", "learning_rate.svg"} <= {path.name for path in run.folder.iterdir()}


def test_a_run_writes_down_what_it_needed_beside_its_plan(home: Path) -> None:
    base = tiny_base("llama")
    run = begin(base)
    found = result_of(finish(run, base))
    recorded = read_run(run.id)
    assert recorded["state"] == "succeeded"
    assert recorded["actual"]["peak_bytes"] == found.peak_bytes > 0
    (actual,) = read_jsonl(home / "calibration.jsonl")
    assert actual["seconds"] == found.seconds
    asked = recipe()
    assert "corrected" in plan(asked, dataset(), base).reasons["seconds"]


def break_off(run: Run, base: Base, at_step: int) -> None:
    """Leave a run's folder as a kill would: after a step and its checkpoint, before anything else."""
    events = train_run(run, base)
    while not (isinstance(event := next(events), StepMetrics) and event.step == at_step):
        pass
    events.close()


def test_a_resumed_run_ends_with_the_bytes_it_would_have_had() -> None:
    base, keys = tiny_base("gemma3"), {"steps": 20, "validate_every": 3, "checkpoint_every": 2}
    whole = begin(base, **keys)
    finish(whole, base)
    broken = begin(base, **keys)
    break_off(broken, base, 12)
    asked = recipe(**keys)
    again = reopen_run(broken.id, asked, plan(asked, dataset(), base), dataset(), base)
    events = finish(again, base)
    assert next(event.step for event in events if isinstance(event, StepMetrics)) == 11
    assert adapter_bytes(again) == adapter_bytes(whole)
    assert [row["step"] for row in read_jsonl(again.folder / "metrics.jsonl")] == list(range(1, 21))


def test_a_run_is_resumed_only_as_it_was_planned() -> None:
    base = tiny_base("llama")
    run = begin(base, checkpoint_every=2)
    break_off(run, base, 5)
    other = recipe(checkpoint_every=2, learning_rate=1e-4)
    with pytest.raises(TrainingError, match="differ in optimizer"):
        reopen_run(run.id, other, plan(other, dataset(), base), dataset(), base)


def test_a_damaged_checkpoint_is_refused_with_the_one_before_it() -> None:
    base = tiny_base("llama")
    run = begin(base, checkpoint_every=2)
    break_off(run, base, 9)
    newest = find_checkpoints(run.folder / "checkpoints")[-1]
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(bytes(content))
    with pytest.raises(
        IntegrityError, match=r"step-00000008.safetensors.* is damaged: delete it to go on from 'step-00000006.safetensors'"
    ):
        finish(run, base)
    newest.write_bytes(b"")
    with pytest.raises(IntegrityError, match="is damaged"):
        finish(run, base)
    newest.unlink()
    assert result_of(finish(run, base)).num_steps == 12


def test_a_cancelled_run_stops_after_its_step_and_can_go_on() -> None:
    base = tiny_base("llama")
    run = begin(base)
    for event in train_run(run, base):
        if isinstance(event, StepMetrics) and event.step == 5:
            cancel_run(run.id)
    assert read_run(run.id)["state"] == "cancelled"
    assert not run.adapter_folder.exists()
    asked = recipe()
    again = reopen_run(run.id, asked, plan(asked, dataset(), base), dataset(), base)
    assert result_of(finish(again, base)).num_steps == 12


def test_a_run_cancelled_after_its_last_step_is_finished_when_resumed() -> None:
    base = tiny_base("llama")
    run = begin(base)
    for event in train_run(run, base):
        if isinstance(event, StepMetrics) and event.step == 12:
            cancel_run(run.id)
    asked = recipe()
    again = reopen_run(run.id, asked, plan(asked, dataset(), base), dataset(), base)
    (found,) = finish(again, base)
    assert isinstance(found, RunResult)
    whole = begin(base)
    finish(whole, base)
    assert adapter_bytes(again) == adapter_bytes(whole)


def test_a_run_killed_after_it_stopped_early_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    base, keys = tiny_base("llama"), {"steps": 200, "learning_rate": 0.3, "validate_every": 4, "patience": 3, "checkpoint_every": 4}
    whole = begin(base, **keys)
    finish(whole, base)
    broken = begin(base, **keys)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "save_adapter", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
        with pytest.raises(OSError, match="killed here"):
            finish(broken, base)
    asked = recipe(**keys)
    again = reopen_run(broken.id, asked, plan(asked, dataset(), base), dataset(), base)
    assert not any(isinstance(event, StepMetrics) for event in finish(again, base))
    assert adapter_bytes(again) == adapter_bytes(whole)


def test_saved_files_that_answer_otherwise_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    run = begin(base, learning_rate=5e-2)

    def wrong(folder: Path, base: Base) -> LoRA:
        lora = load_adapter(folder, base)
        with torch.no_grad():
            next(iter(lora.weights.values())).b.add_(1.0)
        return lora

    monkeypatch.setattr(train_module, "load_adapter", wrong)
    with pytest.raises(IntegrityError, match="the saved adapter scores"):
        finish(run, base)
    assert read_run(run.id)["state"] == "failed"


def test_automatic_rank_keeps_the_smallest_that_is_not_worse() -> None:
    base = tiny_base("gemma3")
    run = begin(base, rank="auto", rank_margin=0.1, steps=40, learning_rate=2e-2)
    events = finish(run, base)
    choice = next(event for event in events if isinstance(event, RankChoice))
    first, kept = choice.points[0], choice.points[choice.chosen]
    assert kept.num_parameters < first.num_parameters
    assert first.exact - kept.exact <= 0.1
    assert all(point.exact < first.exact - 0.1 for point in choice.points[choice.chosen + 1 :])
    assert (run.folder / "rank.svg").is_file()
    config = read_json(run.adapter_folder / "adapter_config.json")
    ranks = {name: weights.a.shape[0] for name, weights in load_adapter(run.adapter_folder, base).weights.items()}
    assert ranks == read_json(run.folder / "rank.json")["ranks"]
    assert config["rank_pattern"] == {name: rank for name, rank in ranks.items() if rank != max(ranks.values())}
    PeftModel.from_pretrained(tiny_model("gemma3", attention="eager"), run.adapter_folder)


def test_automatic_rank_needs_enough_validation_rows() -> None:
    with pytest.raises(TrainingError, match="has 5 rows; it needs 30"):
        plan(recipe(rank="auto"), dataset(num_validation=5), tiny_base())


@pytest.mark.parametrize("with_reference", [False, True])
def test_preferences_begin_at_ln_2_and_are_learned(with_reference: bool) -> None:
    base, rows = tiny_base("llama"), dataset(rejected=True)
    reference = None
    if with_reference:
        first = begin(base, dataset(), steps=10)
        finish(first, base)
        reference = load_adapter(first.adapter_folder, base)
    run = begin(base, rows, preference={"reference": "base", "beta": 0.5}, steps=30, learning_rate=5e-3)
    losses = [event.loss for event in finish(run, base, reference) if isinstance(event, StepMetrics)]
    assert losses[0] == pytest.approx(LN_2, abs=1e-4)
    assert losses[-1] < LN_2 - 0.1


@pytest.mark.parametrize("method", ["lora", "rslora", "pissa", "dora"])
def test_preferences_go_on_from_all_that_the_reference_learned(method: str) -> None:
    base = tiny_base("llama")
    first = begin(base, method=method, rank=16, alpha=9.0, steps=6)
    before = result_of(finish(first, base))
    run = begin(base, dataset(rejected=True), preference={"reference": "base", "beta": 0.5}, steps=10)
    result = result_of(finish(run, base, load_adapter(first.adapter_folder, base)))
    assert (result.rank, result.alpha, result.num_parameters) == (before.rank, before.alpha, before.num_parameters)
    assert_recorded_as_saved(run, base, result)
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (first.adapter_folder, run.adapter_folder))
    assert not [name for name in new if torch.equal(old[name], new[name])]  # with DoRA the magnitudes too
    assert any("magnitude" in name for name in new) == (method == "dora")


def test_a_wrong_reference_stops_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from lorimer.training import preference

    base = tiny_base("llama")
    run = begin(base, dataset(rejected=True), preference={"reference": "base"})
    honest = preference.score_rows
    other = tiny_base("llama", seed=7)
    monkeypatch.setattr(preference, "score_rows", lambda _, lora, rows, budget: honest(other, lora, rows, budget))
    with pytest.raises(TrainingError, match=r"the first loss is .*, not 0.6931: adapter and reference differ"):
        finish(run, base)


@pytest.mark.parametrize(
    ("keys", "rejected", "error", "reason"),
    [
        ({}, True, ConfigError, "has chosen and rejected answers"),
        ({"preference": {"reference": "base"}}, False, ConfigError, "has no rejected answers"),
        ({"preference": {"reference": "base"}, "dropout": 0.1}, True, ConfigError, "`dropout` does not go with `preference`"),
        ({"preference": {"reference": "a@v1"}, "rank": 8}, True, ConfigError, "`rank` of an adapter that goes on from 'a@v1'"),
        ({"rank": 64}, False, ConfigError, r"rank 64 is impossible for .* take at most"),
        ({"rank_pattern": {"q_porj": 2}}, False, ConfigError, r"`rank_pattern`: .*'q_porj'"),
        ({"layers": "top 2"}, False, ConfigError, "`layers` is 'top 2'"),
        ({"layers": [0, 9]}, False, ConfigError, r"names \[9\]: the base has 3"),
        ({"rank": "auto", "method": "dora"}, False, ConfigError, "does not go with DoRA"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_computed(
    keys: dict[str, Any], rejected: bool, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        plan(recipe(**keys), dataset(rejected=rejected), tiny_base("llama"))


def test_runs_that_do_not_fit_together_wait_for_each_other() -> None:
    base = tiny_base("llama")
    runs = [begin(base, seed=seed, steps=4 + seed) for seed in range(3)]
    order = [event.run_id for event in train_runs(runs, base, memory_bytes=1.0) if isinstance(event, StepMetrics)]
    assert order == [run.id for seed, run in enumerate(runs) for _ in range(4 + seed)]
    together = [begin(base, seed=seed, steps=4) for seed in range(2)]
    order = [event.run_id for event in train_runs(together, base) if isinstance(event, StepMetrics)]
    assert order == [run.id for _ in range(4) for run in together]


def test_a_pack_goes_on_without_the_run_that_fails() -> None:
    base = tiny_base("llama")
    good, bad = begin(base, seed=1), begin(base, seed=2, learning_rate=0.999, alpha=1e38)
    events = list(train_runs([bad, good], base, mode="fused"))
    assert [event.run_id for event in events if isinstance(event, RunFailure)] == [bad.id]
    assert [event.run_id for event in events if isinstance(event, RunResult)] == [good.id]
    assert (read_run(bad.id)["state"], read_run(good.id)["state"]) == ("failed", "succeeded")
    assert not bad.adapter_folder.exists()


def test_learning_report_lies_beside_the_run() -> None:
    base = tiny_base("llama")
    run = begin(base)
    learning = json.loads((run.folder / "learning.json").read_text())
    assert learning["num_rows"] == 40
    assert math.isfinite(learning["capacity"]["bits_to_learn"])
    assert byte_tokenizer().bos_token == "<bos>"
