"""The loop learns, repeats itself bit for bit, sums micro-batches to the whole batch, and refuses what is not finite."""

from typing import Any

import pytest
import torch

from fakes import tiny_base
from lorimer.data.example import Message
from lorimer.model.base import Base
from lorimer.model.chat import Rendered
from lorimer.model.lora import LoRA, LoRAConfig, initialise
from lorimer.training.batching import batches
from lorimer.training.loop import Learner, RunFailure, StepMetrics, train
from lorimer.training.optim import OptimizerConfig, learning_rate_at, make_optimizer

QUESTIONS = [("red", "fire"), ("blue", "sea"), ("green", "grass"), ("a much longer question than the others", "x"), ("white", "snow")]


def rows_of(base: Base) -> list[Rendered]:
    return [base.renderer.render([Message(role="user", content=q), Message(role="assistant", content=a)]) for q, a in QUESTIONS]


def learner_of(
    base: Base, *, num_steps: int = 12, tokens: int = 4096, learning_rate: float = 1e-2, batch_size: int = 4, seed: int = 0, **more: Any
) -> Learner:
    lora = initialise(LoRAConfig(rank=more.pop("rank", 4), alpha=8, target_modules=tuple(base.layers)), base.layers, seed=seed)
    config = OptimizerConfig(learning_rate=learning_rate, **more)
    steps = batches(rows_of(base), batch_size=batch_size, num_steps=num_steps, tokens_per_micro_batch=tokens, seed=seed)
    return Learner(
        run_id=f"run-{seed}", lora=lora, optimizer=make_optimizer(lora, config), config=config, batches=steps, num_steps=num_steps
    )


def run(base: Base, **keys: Any) -> tuple[LoRA, list[StepMetrics]]:
    learner = learner_of(base, **keys)
    events = list(train(base, [learner]))
    assert all(isinstance(event, StepMetrics) for event in events)
    return learner.lora, events


@pytest.mark.parametrize("architecture", ["gemma3", "phi"])
def test_loss_falls(architecture: str) -> None:
    _, metrics = run(tiny_base(architecture), num_steps=40)
    assert metrics[-1].loss < metrics[0].loss - 0.4


def test_every_adapted_layer_moves_and_the_base_does_not() -> None:
    base = tiny_base("llama")
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    lora, _ = run(base)
    assert all(bool(weights.b.abs().max() > 0) for weights in lora.weights.values())
    assert all(torch.equal(before[name], p) for name, p in base.model.named_parameters())


def test_same_seed_same_bytes() -> None:
    first, second = run(tiny_base())[0], run(tiny_base())[0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    whole, split = run(tiny_base("qwen2"))[0], run(tiny_base("qwen2"), tokens=30)[0]
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_metrics_count_tokens_and_steps() -> None:
    base = tiny_base()
    _, metrics = run(base, num_steps=3, batch_size=5)
    rows = rows_of(base)
    assert [m.step for m in metrics] == [1, 2, 3]
    assert {m.num_tokens for m in metrics} == {sum(len(r.ids) for r in rows)}
    assert {m.num_supervised for m in metrics} == {sum(r.num_supervised for r in rows)}


def test_loss_that_is_not_finite_stops_the_run_with_its_step() -> None:
    base = tiny_base()
    with torch.no_grad():
        base.layers["model.layers.1.mlp.down_proj"].weight.fill_(float("nan"))
    (event,) = list(train(base, [learner_of(base)]))
    assert isinstance(event, RunFailure)
    assert (event.step, "not both finite" in event.reason) == (1, True)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 20, 1000])
def test_learning_rate_rises_then_falls_and_is_never_zero(num_steps: int) -> None:
    rates = [learning_rate_at(step, num_steps, 1.0) for step in range(num_steps)]
    peak = rates.index(max(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
