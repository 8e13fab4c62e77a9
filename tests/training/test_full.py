"""Full fine-tuning: gradients of every weight equal the stock model's, the loss falls, and what is saved loads as a base."""

import errno
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy as stock_cross_entropy
from transformers import AutoModelForCausalLM

from fakes import tiny_base, tiny_model
from lorimer.data.example import Message
from lorimer.errors import StorageError, TrainingError
from lorimer.model.attention import PackedSegments, whole
from lorimer.model.base import Base, load_base
from lorimer.model.chat import Rendered
from lorimer.training.batching import make_batch
from lorimer.training.full import accumulate, save_full, train_full, unfrozen
from lorimer.training.loop import StepMetrics
from lorimer.training.optim import OptimizerConfig
from lorimer.training.scoring import score_rows

QUESTIONS = [("red", "fire"), ("blue", "sea"), ("green", "grass"), ("a much longer question than the others", "x"), ("white", "snow")]


def rows_of(base: Base) -> list[Rendered]:
    return [base.renderer.render([Message(role="user", content=q), Message(role="assistant", content=a)]) for q, a in QUESTIONS]


def run(base: Base, *, num_steps: int = 12, tokens: int = 4096, learning_rate: float = 3e-3) -> list[StepMetrics]:
    config = OptimizerConfig(learning_rate=learning_rate)
    return list(train_full(base, rows_of(base), config, batch_size=4, num_steps=num_steps, tokens_per_micro_batch=tokens, seed=0))


def weights_of(base: Base) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in base.model.named_parameters()}


@pytest.mark.parametrize("tokens", [4096, 60])
@pytest.mark.parametrize("architecture", ["gemma3", "llama", "qwen2", "phi"])
def test_gradients_of_every_weight_equal_the_stock_models(architecture: str, tokens: int) -> None:
    """Ours in float32, in one or several micro-batches, against the stock model in float64."""
    base, stock = tiny_base(architecture), tiny_model(architecture, attention="eager").double()
    rows = rows_of(base)
    batch = make_batch(rows, range(len(rows)), tokens)
    with unfrozen(base) as masters:
        found = sum(accumulate(base, batch, micro) for micro in batch.micro_batches)
    wanted = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids, learned = torch.tensor(row.ids), torch.tensor(row.supervised)[1:]
        wanted = wanted + stock_cross_entropy(stock(ids[None]).logits[0, :-1][learned], ids[1:][learned], reduction="sum")
    (wanted / batch.num_supervised).backward()
    assert found == pytest.approx(float(wanted.detach()) / batch.num_supervised, rel=1e-5)
    expected = dict(stock.named_parameters())
    assert {name for name, _ in base.model.named_parameters()} == set(expected)
    for name, parameter in base.model.named_parameters():
        gradient = expected[name].grad
        torch.testing.assert_close(
            masters[parameter].grad.double(), gradient, rtol=1e-4, atol=max(1e-5 * float(gradient.abs().max()), 1e-9)
        )


@pytest.mark.parametrize("architecture", ["gemma3", "phi"])
def test_loss_falls_and_every_weight_moves(architecture: str) -> None:
    base = tiny_base(architecture)
    before, metrics = weights_of(base), run(base, num_steps=20)
    assert metrics[-1].loss < metrics[0].loss - 0.4
    assert [m.step for m in metrics] == list(range(1, 21))
    assert not [name for name, weight in weights_of(base).items() if torch.equal(weight, before[name])]


def test_base_is_frozen_again_also_when_left_early() -> None:
    base = tiny_base("llama")
    steps = train_full(
        base, rows_of(base), OptimizerConfig(learning_rate=1e-3), batch_size=2, num_steps=9, tokens_per_micro_batch=4096, seed=0
    )
    next(steps)
    steps.close()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in base.model.parameters())


def test_same_seed_same_bytes() -> None:
    first, second = tiny_base(), tiny_base()
    run(first)
    run(second)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(first).values(), weights_of(second).values(), strict=True))


def test_steps_too_small_for_bfloat16_add_up_in_the_masters() -> None:
    base = tiny_base("llama")
    base.model.bfloat16()
    before = base.layers["model.layers.1.mlp.down_proj"].weight.detach().clone()
    metrics = run(base, num_steps=30, learning_rate=2e-5)
    after = base.layers["model.layers.1.mlp.down_proj"].weight.detach()
    is_large = before.abs() >= 2**-6  # neighbours there are 1.2e-4 apart: no single step reaches half way
    assert after.dtype == torch.bfloat16
    assert float((after != before)[is_large].float().mean()) > 0.5
    assert metrics[-1].loss < metrics[0].loss


def test_loss_that_is_not_finite_stops_with_its_step_and_leaves_the_weights() -> None:
    base = tiny_base()
    with torch.no_grad():
        base.layers["model.layers.1.mlp.down_proj"].weight.fill_(float("nan"))
    before = weights_of(base)
    with pytest.raises(TrainingError, match=r"step 1: .*not both finite.*smaller learning rate"):
        run(base)
    assert all(torch.equal(weight, before[name]) or weight.isnan().all() for name, weight in weights_of(base).items())


def test_base_in_few_bits_is_refused() -> None:
    base = tiny_base()
    base.quantise("int8")
    with pytest.raises(TrainingError, match=r"held in few bits \(int8\)"):
        run(base)


@pytest.mark.parametrize("architecture", ["gemma3", "phi"])
def test_saved_model_loads_as_a_base_and_as_a_stock_model(architecture: str, tmp_path: Path) -> None:
    base = tiny_base(architecture)
    run(base, num_steps=3)
    save_full(base, tmp_path / "model")
    again = load_base(str(tmp_path / "model"), dtype=torch.float32)
    rows = rows_of(base)
    assert rows_of(again) == rows
    assert score_rows(again, None, rows, 4096) == score_rows(base, None, rows, 4096)
    stock, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager"), torch.arange(20, 50)
    segments = PackedSegments(whole([30]))
    with torch.no_grad():
        ours = base.head.logits(base.hidden_states(ids, torch.arange(30), segments))
        torch.testing.assert_close(ours, stock(ids[None]).logits[0], rtol=1e-5, atol=1e-5)


def test_full_disk_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(base.model, "save_pretrained", full)
    with pytest.raises(StorageError, match="disk is full"):
        save_full(base, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
