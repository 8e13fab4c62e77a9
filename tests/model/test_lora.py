"""Logits and gradients equal stock PEFT's, for six architectures; packed equals unpacked; mixed equals alone."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from fakes import ARCHITECTURES, random_lora, tiny_base, tiny_model
from lorimer.model.adapter import Lock, load_adapter, save_adapter
from lorimer.model.attention import PackedSegments, whole
from lorimer.model.base import Base
from lorimer.model.lora import AdapterRows, LoRA, LoRAConfig, initialise
from lorimer.training.loss import cross_entropy

LENGTHS = (11, 17, 30)


def rows_of_ids(seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 260, (n,), generator=generator) for n in LENGTHS]


def packed_logits(base: Base, rows: list[torch.Tensor], adapters: list[LoRA | None]) -> torch.Tensor:
    """Logits (T, V) of rows end to end, each through its own adapter."""
    lengths = [len(row) for row in rows]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    routed = [AdapterRows(start=s, stop=s + n, adapter=a) for s, n, a in zip(starts, lengths, adapters, strict=True)]
    positions = torch.cat([torch.arange(n) for n in lengths])
    return base.head.logits(base.hidden_states(torch.cat(rows), positions, PackedSegments(whole(lengths)), routed))


def save(lora: LoRA, folder: Path, base: Base) -> None:
    lock = Lock(base_name=base.name, base_digest=base.digest, template_digest="", dataset_digest="", run_id="")
    save_adapter(lora, folder, base, lock)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_equal_pefts(architecture: str, tmp_path: Path) -> None:
    base = tiny_base(architecture)
    lora = random_lora(base)
    save(lora, tmp_path / "adapter", base)
    peft = PeftModel.from_pretrained(tiny_model(architecture, attention="eager"), tmp_path / "adapter").eval()
    rows = rows_of_ids()
    with torch.no_grad():
        found = packed_logits(base, rows, [lora] * 3).split(LENGTHS)
        for row, logits in zip(rows, found, strict=True):
            torch.testing.assert_close(logits, peft(row[None]).logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_equal_pefts(architecture: str, tmp_path: Path) -> None:
    """Ours in float32 against PEFT's in float64: in float32 PEFT itself is up to 1e-5 off that."""
    base = tiny_base(architecture)
    lora = random_lora(base)
    save(lora, tmp_path / "adapter", base)
    model = tiny_model(architecture, attention="eager").double()
    peft = PeftModel.from_pretrained(model, tmp_path / "adapter", is_trainable=True, autocast_adapter_dtype=False).double().eval()
    rows = rows_of_ids()
    routed = [AdapterRows(start=0, stop=sum(LENGTHS), adapter=lora)]
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    hidden = base.hidden_states(torch.cat(rows), positions, PackedSegments(whole(LENGTHS)), routed)
    predicting = torch.cat([torch.arange(n - 1) + sum(LENGTHS[:i]) for i, n in enumerate(LENGTHS)])
    targets = torch.cat([row[1:] for row in rows])
    loss, _ = cross_entropy(hidden[predicting], base.head, targets, torch.ones(len(targets)))
    loss.backward()
    wanted = sum(torch.nn.functional.cross_entropy(peft(row[None]).logits[0, :-1], row[1:], reduction="sum") for row in rows)
    wanted.backward()
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-5)
    gradients = {name: p.grad for name, p in peft.named_parameters() if p.grad is not None}
    for name, weights in lora.weights.items():
        for tensor, half in ((weights.a, "A"), (weights.b, "B")):
            expected = gradients[f"base_model.model.{name}.lora_{half}.default.weight"]
            torch.testing.assert_close(tensor.grad.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_of_different_adapters_equal_each_alone(architecture: str) -> None:
    base = tiny_base(architecture)
    some = tuple(name for name in base.layers if name.startswith("model.layers.1."))
    adapters = [random_lora(base, seed=1, rank=2), None, random_lora(base, seed=2, rank=8, targets=some)]
    rows = rows_of_ids()
    with torch.no_grad():
        mixed = packed_logits(base, rows, adapters).split(LENGTHS)
        for row, adapter, logits in zip(rows, adapters, mixed, strict=True):
            torch.testing.assert_close(logits, packed_logits(base, [row], [adapter]), rtol=1e-5, atol=1e-5)
    trained = packed_logits(base, rows, adapters)  # with gradients on
    torch.testing.assert_close(trained.detach(), torch.cat(mixed), rtol=1e-5, atol=1e-5)


def test_new_adapter_changes_nothing() -> None:
    base = tiny_base("llama")
    fresh = initialise(LoRAConfig(rank=4, alpha=8, target_modules=tuple(base.layers)), base.layers, seed=0)
    rows = rows_of_ids()
    with torch.no_grad():
        torch.testing.assert_close(packed_logits(base, rows, [fresh] * 3), packed_logits(base, rows, [None] * 3))


def test_all_linear_layers_but_the_head_are_adapted() -> None:
    base = tiny_base("phi")
    kinds = {name.rpartition(".")[2] for name in base.layers}
    assert kinds == {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}
    assert len(base.layers) == 3 * 6


def test_saved_adapter_loads_again(tmp_path: Path) -> None:
    base = tiny_base("qwen3")
    lora = random_lora(base, rank=3)
    save(lora, tmp_path / "adapter", base)
    again = load_adapter(tmp_path / "adapter", base)
    assert again.num_parameters == lora.num_parameters
    assert all(torch.equal(again.weights[n].a, w.a) and torch.equal(again.weights[n].b, w.b) for n, w in lora.weights.items())
