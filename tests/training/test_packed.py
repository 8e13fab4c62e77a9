"""Adapters trained together are those trained alone: the suite no packed trainer should be without.

The letters are those of the reference: (a) forward, (b) gradients, (c) trajectories, (d) who else is there, (e) isolation,
(f) accumulation, (g) a kill in the middle, (h) files that stock PEFT reads, (i) dropout.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from fakes import ARCHITECTURES, tiny_base, tiny_model
from lorimer.model.adapter import Lock, save_adapter
from lorimer.model.base import Base
from lorimer.model.chat import Rendered
from lorimer.model.lora import AdapterRows, LoRAConfig, initialise
from lorimer.training.batching import batches, fuse, make_batch
from lorimer.training.checkpoints import TrainingState, load_checkpoint, save_checkpoint
from lorimer.training.loop import Learner, Mode, RunFailure, StepMetrics, accumulate, hidden_states, train
from lorimer.training.optim import OptimizerConfig, make_optimizer

BUDGET = 4096


def rows_of(seed: int, num_rows: int = 9, longest: int = 30) -> list[Rendered]:
    """Random rows, half of which share an instruction."""
    generator = torch.Generator().manual_seed(100 + seed)
    instruction = torch.randint(5, 260, (25,), generator=generator).tolist()
    rows = []
    for i in range(num_rows):
        length = int(torch.randint(4, longest, (1,), generator=generator))
        ids = (*(instruction if i % 2 else ()), *torch.randint(5, 260, (length,), generator=generator).tolist())
        rows.append(Rendered(ids=ids, supervised=tuple(place >= len(ids) - 3 for place in range(len(ids)))))
    return rows


def learner(
    base: Base, seed: int, *, num_steps: int = 20, targets: Sequence[str] = (), rows: list[Rendered] | None = None, **keys: float
) -> Learner:
    """One of several runs that differ in everything: rank, alpha, layers, rate, batch size, data, length."""
    rank, size = [(4, 3), (1, 5), (16, 2), (8, 9)][seed % 4]
    chosen = targets or [name for i, name in enumerate(base.layers) if seed % 4 != 2 or i % 2]
    config = LoRAConfig(
        rank=rank, alpha=8.0 * (seed + 1), target_modules=tuple(chosen), rank_stabilised=seed % 2 == 1, dropout=keys.get("dropout", 0.0)
    )
    lora = initialise(config, base.layers, seed)
    optimizer = OptimizerConfig(learning_rate=keys.get("rate", 1e-3 * (1 + seed)), max_grad_norm=[1.0, 0.1][seed % 2])
    steps = batches(
        rows or rows_of(seed), batch_size=size, num_steps=num_steps, tokens_per_micro_batch=int(keys.get("budget", BUDGET)), seed=seed,
        share_prefixes=not config.dropout,
    )  # fmt: skip
    return Learner(
        run_id=f"run-{seed}",
        lora=lora,
        optimizer=make_optimizer(lora, optimizer),
        config=optimizer,
        batches=steps,
        num_steps=num_steps,
        seed=seed,
    )


def tensors(run: Learner) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.lora.parameters()]


def finish(base: Base, runs: list[Learner], mode: Mode) -> list[StepMetrics | RunFailure]:
    return list(train(base, runs, mode=mode, tokens_per_micro_batch=BUDGET))


def alone(base: Base, seed: int, **keys: float) -> list[torch.Tensor]:
    run = learner(base, seed, **keys)  # type: ignore[arg-type]
    finish(base, [run], "strict")
    return tensors(run)


def assert_close(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], tolerance: float) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * max(1e-3, float(theirs.abs().max())))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_b_forward_and_gradients_of_one_stream_are_those_of_each_alone(architecture: str) -> None:
    base = tiny_base(architecture)
    runs = [learner(base, seed) for seed in range(4)]
    for run in runs:
        with torch.no_grad():
            for weights in run.lora.weights.values():
                weights.b.normal_(0, 0.1)
    steps = [next(run.batches) for run in runs]
    losses = accumulate(base, runs, steps, fuse([step.micro_batches[0].owned_by(i, 0) for i, step in enumerate(steps)]))
    together = [[p.grad.clone() for p in run.lora.parameters()] for run in runs]
    for i, run in enumerate(runs):
        run.optimizer.zero_grad(set_to_none=True)
        (loss,) = accumulate(base, runs, steps, steps[i].micro_batches[0].owned_by(i, 0))
        assert losses[i] == pytest.approx(loss, rel=1e-5)
        assert_close(together[i], [p.grad for p in run.lora.parameters()], 1e-5)


@pytest.mark.parametrize("architecture", ["gemma3", "qwen2"])
def test_c_strict_mode_ends_with_the_bytes_of_training_alone(architecture: str) -> None:
    base = tiny_base(architecture)
    runs = [learner(base, seed, num_steps=10 + 5 * seed) for seed in range(3)]  # they leave at different steps
    finish(base, list(runs), "strict")
    for seed, run in enumerate(runs):
        assert all(torch.equal(a, b) for a, b in zip(tensors(run), alone(base, seed, num_steps=10 + 5 * seed), strict=True))


@pytest.mark.parametrize("architecture", ["gemma3", "qwen2"])
def test_c_fused_mode_follows_training_alone(architecture: str) -> None:
    base = tiny_base(architecture)
    runs = [learner(base, seed) for seed in range(4)]
    events = finish(base, list(runs), "fused")
    single = [list(train(base, [learner(base, seed)])) for seed in range(4)]
    for seed in range(4):
        losses = [event.loss for event in events if isinstance(event, StepMetrics) and event.run_id == f"run-{seed}"]
        wanted = [event.loss for event in single[seed] if isinstance(event, StepMetrics)]
        assert losses == pytest.approx(wanted, rel=1e-5)


def test_d_it_does_not_matter_who_else_is_there_or_in_which_order() -> None:
    base = tiny_base("llama")
    found = []
    for seeds in ([0], [0, 1], [2, 0, 1], [1, 3, 2, 0]):
        runs = {seed: learner(base, seed, rate=1e-4) for seed in seeds}
        finish(base, list(runs.values()), "fused")
        found.append(tensors(runs[0]))
    for other in found[1:]:
        assert_close(other, found[0], 1e-4)


def test_d_a_run_may_join_others_between_steps() -> None:
    base = tiny_base("qwen3")
    runs, late = [learner(base, 0), learner(base, 1)], learner(base, 3)
    for event in train(base, runs, mode="strict"):
        if isinstance(event, StepMetrics) and (event.run_id, event.step) == ("run-1", 5):
            runs.append(late)
    assert (late.step, runs[0].step) == (20, 20)
    assert all(torch.equal(a, b) for a, b in zip(tensors(late), alone(base, 3), strict=True))


@pytest.mark.parametrize("mode", ["strict", "fused"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_e_what_is_not_finite_in_one_run_never_reaches_another(mode: Mode, poison: float) -> None:
    base = tiny_base("gemma3")
    sick, runs = learner(base, 2), [learner(base, 0), learner(base, 1)]
    with torch.no_grad():
        next(iter(sick.lora.weights.values())).a[0, 0] = poison
        for weights in sick.lora.weights.values():
            weights.b.fill_(0.1)
    events = finish(base, [runs[0], sick, runs[1]], mode)
    (failure,) = [event for event in events if isinstance(event, RunFailure)]
    assert (failure.run_id, failure.step, "finite" in failure.reason) == ("run-2", 1, True)
    for seed, run in enumerate(runs):
        assert run.step == 20
        assert all(math.isfinite(float(p.abs().max())) for p in tensors(run))
        assert_close(tensors(run), alone(base, seed), 0.0 if mode == "strict" else 1e-2)


def test_e_rows_without_anything_to_learn_and_single_layers_go_along() -> None:
    base = tiny_base("phi")
    one_layer = learner(base, 1, targets=["model.layers.2.mlp.fc2"])
    silent = [Rendered(ids=(7, 8, 9), supervised=(False, False, False)), *rows_of(3)]
    runs = [learner(base, 3, rows=silent), one_layer]
    events = finish(base, list(runs), "fused")
    assert not any(isinstance(event, RunFailure) for event in events)
    assert runs[0].step == runs[1].step == 20


def test_f_micro_batches_add_up_to_the_whole_step() -> None:
    base = tiny_base("mistral")
    assert_close(alone(base, 3, rate=1e-4, budget=40), alone(base, 3, rate=1e-4), 1e-3)


@pytest.mark.parametrize("mode", ["strict", "fused"])
def test_g_a_pack_killed_in_the_middle_ends_with_the_same_bytes(mode: Mode, tmp_path: Path) -> None:
    base = tiny_base("gemma3")
    whole = [learner(base, seed) for seed in range(3)]
    finish(base, list(whole), mode)
    killed = [learner(base, seed) for seed in range(3)]
    for event in train(base, killed, mode=mode, tokens_per_micro_batch=BUDGET):
        if isinstance(event, StepMetrics) and (event.run_id, event.step) == ("run-2", 7):
            break
    again = []
    for seed, run in enumerate(killed):
        path = save_checkpoint(TrainingState(learner=run), tmp_path / str(seed), "plan")
        state = TrainingState(learner=learner(base, seed))
        load_checkpoint(path, state, "plan")
        assert state.learner.step == 7
        for _ in range(7):
            next(state.learner.batches)
        again.append(state.learner)
    finish(base, again, mode)
    for resumed, uninterrupted in zip(again, whole, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(resumed), tensors(uninterrupted), strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_h_what_is_trained_together_loads_in_peft_with_equal_logits(seed: int, tmp_path: Path) -> None:
    base = tiny_base("qwen2")
    runs = [learner(base, seed) for seed in range(3)]
    finish(base, list(runs), "fused")
    lock = Lock(base_name="tiny", base_digest=base.digest, template_digest="", dataset_digest="", run_id="")
    save_adapter(runs[seed].lora, tmp_path / "adapter", base, lock)
    peft = PeftModel.from_pretrained(tiny_model("qwen2", attention="eager"), tmp_path / "adapter").eval()
    (micro,) = make_batch(rows_of(seed)[:1], [0], BUDGET).micro_batches
    with torch.no_grad(), base.routed([AdapterRows(start=0, stop=len(micro.ids), adapter=runs[seed].lora)]):
        found = base.head.logits(hidden_states(base, micro))
        torch.testing.assert_close(found, peft(micro.ids[None]).logits[0], rtol=1e-5, atol=1e-5)


def test_i_dropout_is_a_runs_own_and_the_same_in_both_passes() -> None:
    base = tiny_base("llama")
    wanted = alone(base, 0, dropout=0.5)
    runs = [learner(base, 1), learner(base, 0, dropout=0.5), learner(base, 3, dropout=0.2)]
    finish(base, list(runs), "strict")
    assert all(torch.equal(a, b) for a, b in zip(tensors(runs[1]), wanted, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(wanted, alone(base, 0), strict=True))


def test_i_gradients_under_dropout_are_those_of_the_loss() -> None:
    base = tiny_base("gemma3")
    run = learner(base, 0, dropout=0.5)
    step = next(run.batches)
    with torch.no_grad():
        for weights in run.lora.weights.values():
            weights.b.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    accumulate(base, [run], [step], step.micro_batches[0])
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator) for p in run.lora.parameters()]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(run.lora.parameters(), direction, strict=True))
    losses = []
    for size in (1e-4, -1e-4):
        with torch.no_grad():
            for p, d in zip(run.lora.parameters(), direction, strict=True):
                p.add_(d, alpha=size)
        losses.append(accumulate(base, [run], [step], step.micro_batches[0])[0])
        with torch.no_grad():
            for p, d in zip(run.lora.parameters(), direction, strict=True):
                p.sub_(d, alpha=size)
    assert slope == pytest.approx((losses[0] - losses[1]) / 2e-4, rel=2e-2)
