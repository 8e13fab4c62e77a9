"""The parts of what a run holds are the bytes of the real objects; published sizes come out as published; operations are torch's."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, MixtralConfig, PreTrainedConfig

from fakes import CONFIGS, tiny_base
from lorimer.errors import ConfigError
from lorimer.model.attention import PackedSegments, whole
from lorimer.model.base import Base
from lorimer.model.chat import Rendered
from lorimer.model.lora import AdapterRows, LoRA, initialise
from lorimer.model.shapes import find_shape, sizes_of
from lorimer.training.batching import make_batch
from lorimer.training.footprint import Footprint, adapter_for, compare_methods, flops, footprint
from lorimer.training.full import accumulate, unfrozen
from lorimer.training.optim import OptimizerConfig, make_adamw, make_optimizer
from lorimer.training.tracing import saved_bytes

CONFIG = OptimizerConfig(learning_rate=1e-3)


def run(base: Base, lora: LoRA) -> torch.Tensor:
    """Four rows of 64 tokens, forward."""
    ids = torch.arange(256) % 200 + 5
    return base.hidden_states(ids, ids, PackedSegments(whole([64] * 4)), [AdapterRows(start=0, stop=256, adapter=lora)])


def num_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Of all their memory, each address once."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def moments_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """What the optimizer keeps, its counters of steps apart."""
    return [tensor for state in optimizer.state.values() for name, tensor in state.items() if name != "step"]


def num_held_bytes(found: Footprint) -> int:
    """Weights and what learning them takes, without the process."""
    return found.constant_bytes - found.fixed_bytes


@pytest.mark.parametrize(("dtype", "bytes_per_weight"), [(torch.bfloat16, 18), (torch.float32, 16)])
@pytest.mark.parametrize("architecture", ["gemma3", "phi"])
def test_full_fine_tuning_holds_what_is_counted(architecture: str, dtype: torch.dtype, bytes_per_weight: int) -> None:
    base = tiny_base(architecture)
    base.model.to(dtype)
    row = Rendered(ids=tuple(range(5, 25)), supervised=(False,) * 10 + (True,) * 10)
    batch = make_batch([row, row], range(2), 4096)
    with unfrozen(base) as masters:
        optimizer = make_adamw([{"params": list(masters.values()), "ratio": 1.0}], CONFIG)
        accumulate(base, batch, batch.micro_batches[0])
        optimizer.step()
        parameters, learning = list(base.model.parameters()), list(masters.values())
        held = num_bytes([*parameters, *learning, *(p.grad for p in (*parameters, *learning)), *moments_of(optimizer)])
    assert num_held_bytes(footprint(CONFIGS[architecture], None, row_len=20, dtype=dtype)) == held == bytes_per_weight * base.num_parameters


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa"])
def test_adapters_hold_what_is_counted(kind: Any) -> None:
    base, adapter = tiny_base("llama"), replace(adapter_for(CONFIGS["llama"], 4), kind=kind)
    lora = initialise(adapter, base.layers, seed=0)
    optimizer, learning = make_optimizer(lora, CONFIG), lora.parameters()
    run(base, lora).sum().backward()
    optimizer.step()
    anchors = [tensor for weights in lora.weights.values() for tensor in weights.anchor or ()]
    gradients = [p.grad.clone() for p in learning if p.grad is not None]  # PiSSA's are views, until the step, of those of all its factors
    held = num_bytes([*base.model.parameters(), *learning, *anchors, *gradients, *moments_of(optimizer)])
    assert num_held_bytes(footprint(CONFIGS["llama"], adapter, row_len=64, dtype=torch.float32)) == held


@pytest.mark.parametrize(
    ("name", "num_parameters", "num_trained"), [("llama-3-8b", 8_030_261_248, 41_943_040), ("llama-3-70b", 70_553_706_496, 207_093_760)]
)
def test_published_sizes_come_out(name: str, num_parameters: int, num_trained: int) -> None:
    config = find_shape(name)
    found = footprint(config, adapter_for(config, 16), row_len=100, saved=saved_bytes(CONFIGS["llama"], None, row_len=2))
    assert (found.num_parameters, found.num_trained) == (num_parameters, num_trained)
    assert found.base_bytes == 2 * num_parameters
    assert found.adapter_bytes + found.gradient_bytes + found.optimizer_bytes == 16 * num_trained


def test_methods_stand_side_by_side_for_a_base_that_is_not_here() -> None:
    found = compare_methods(find_shape("llama-3-8b"), rank=16, row_len=200)
    full, lora, qlora = (found[method].peak_bytes(2048, 200) / 1e9 for method in ("full", "lora", "qlora"))
    assert 145 < full < 170  # 18 bytes a parameter and the activations
    assert 16 < lora < 40
    assert 4 < qlora < lora - 9  # the base in 4.5 bits instead of 16
    assert found["lora"].checkpointed_peak_bytes(2048, 200) < found["lora"].peak_bytes(2048, 200)
    assert found["full"].adapter_bytes == 0
    assert found["lora"].saved == found["qlora"].saved


def test_longer_rows_and_more_tokens_take_more() -> None:
    found = footprint(CONFIGS["llama"], adapter_for(CONFIGS["llama"], 4), row_len=64)
    assert found.peak_bytes(2048, 64) < found.peak_bytes(2048, 256) < found.peak_bytes(4096, 256)
    assert found.peak_bytes_keeping(found.saved.total(2048, 64), 2048) == found.peak_bytes(2048, 64)


def test_fewer_adapted_layers_keep_less() -> None:
    adapter = adapter_for(CONFIGS["llama"], 4)
    last = replace(adapter, target_modules=tuple(name for name in adapter.target_modules if ".layers.2." in name))
    every, some = (footprint(CONFIGS["llama"], lora, row_len=64) for lora in (adapter, last))
    assert some.num_layers == 1
    assert some.saved.per_token < every.saved.per_token / 2


def test_operations_are_those_torch_counts() -> None:
    base, adapter = tiny_base("llama"), adapter_for(CONFIGS["llama"], 1)
    lora = initialise(adapter, base.layers, seed=0)
    with FlopCounterMode(display=False) as counter:
        run(base, lora).sum().backward()
    expected = counter.get_total_flops()
    found = flops(CONFIGS["llama"], adapter, row_len=64).total(4 * 64, 0)
    assert found == pytest.approx(expected, rel=0.1)  # the lowest layer forms no gradient of its input


def test_operations_by_hand() -> None:
    sizes, adapter = sizes_of(CONFIGS["llama"]), adapter_for(CONFIGS["llama"], 4)
    last = replace(adapter, target_modules=tuple(name for name in adapter.target_modules if ".layers.2." in name))
    full, every, some = (flops(CONFIGS["llama"], lora, row_len=1) for lora in (None, adapter, last))
    attention = 3 * 12 * 48
    assert full.per_token == 6 * sizes.num_linear + attention
    assert every.per_token == 4 * sizes.num_linear + 6 * sizes.num_trained(adapter) + attention
    assert some.per_token_below == pytest.approx((2 * sizes.num_linear + attention / 3) * 2 / 3)
    assert (full.per_supervised_token, every.per_supervised_token) == (6 * 264 * 48, 4 * 264 * 48)


@pytest.mark.parametrize("kind", [MixtralConfig, GPT2Config])
def test_bases_lorimer_does_not_adapt_are_refused(kind: type[PreTrainedConfig]) -> None:
    config = kind(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=100)
    with pytest.raises(ConfigError, match=config.model_type):
        adapter_for(config, 4)
