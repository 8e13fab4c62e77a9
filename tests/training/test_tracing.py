"""What tracing without weights counts is what a real base keeps, to the byte."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig, StableLmConfig

from fakes import ARCHITECTURES, CONFIGS, tiny_base
from lorimer.errors import EngineError
from lorimer.model.attention import PackedSegments, PrefixGroup, whole
from lorimer.model.base import Base
from lorimer.model.lora import AdapterRows, LoRA, LoRAConfig, initialise
from lorimer.training.footprint import adapter_for
from lorimer.training.tracing import count_saved_bytes, saved_bytes

MIXED = whole([5, 9, 30, 40, 41, 600])  # several short ones, of like and of unlike length, and one for torch's kernel
SHARED = (PrefixGroup(prefix_len=20, suffix_lens=(4, 9, 60)),)


def deeper(architecture: str, num_layers: int) -> PreTrainedConfig:
    """The tiny configuration with more layers, kinds of attention in no regular order."""
    config = CONFIGS[architecture]
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    changed: dict[str, Any] = {"num_hidden_layers": num_layers}
    if architecture == "gemma3":
        changed["layer_types"] = kinds[:num_layers]
    elif getattr(config, "layer_types", None):
        changed["layer_types"] = [config.layer_types[0]] * num_layers
    return type(config).from_dict(config.to_dict() | changed)


def run(base: Base, lora: LoRA | None, groups: tuple[PrefixGroup, ...]) -> torch.Tensor:
    segments = PackedSegments(groups)
    ids = torch.arange(segments.num_tokens) % 200 + 5
    rows = [AdapterRows(start=0, stop=segments.num_tokens, adapter=lora)]
    return base.hidden_states(ids, ids, segments, rows)


def really_kept(base: Base, lora: LoRA | None, groups: tuple[PrefixGroup, ...]) -> int:
    """Bytes of all memory that autograd holds on to, weights apart, each address once."""
    weights = [*base.model.parameters(), *(lora.parameters() if lora is not None else ())]
    is_weight = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = run(base, lora, groups)
    assert hidden.requires_grad
    return sum(storage.nbytes() for address, storage in kept.items() if address not in is_weight)


@pytest.mark.parametrize("groups", [MIXED, SHARED])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_count_is_what_a_real_base_keeps(architecture: str, groups: tuple[PrefixGroup, ...]) -> None:
    base, config = tiny_base(architecture), adapter_for(CONFIGS[architecture], 4)
    expected = really_kept(base, initialise(config, base.layers, seed=0), groups)
    assert count_saved_bytes(CONFIGS[architecture], config, groups, dtype=torch.float32) == expected


@pytest.mark.parametrize("architecture", ["gemma3", "qwen3"])
def test_layers_of_one_kind_are_multiplied(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = deeper(architecture, 6)
    monkeypatch.setitem(CONFIGS, architecture, config)
    base, adapter = tiny_base(architecture), adapter_for(config, 4)
    expected = really_kept(base, initialise(adapter, base.layers, seed=0), MIXED)
    assert count_saved_bytes(config, adapter, MIXED, dtype=torch.float32) == expected


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("dora", ("",)),
        ("pissa", ("",)),
        ("lora", ("q_proj", "up_proj")),
        ("lora", ("layers.1.self_attn.v_proj", "layers.2.mlp")),
        ("lora", ("layers.2.",)),
    ],
)
def test_other_adapters_are_counted_as_well(kind: Any, parts: tuple[str, ...]) -> None:
    base = tiny_base("gemma3")
    names = tuple(name for name in base.layers if any(part in name for part in parts))
    adapter = LoRAConfig(rank=4, alpha=8.0, target_modules=names, kind=kind, ranks={names[0]: 7})
    expected = really_kept(base, initialise(adapter, base.layers, seed=0), MIXED)
    assert count_saved_bytes(CONFIGS["gemma3"], adapter, MIXED, dtype=torch.float32) == expected


@pytest.mark.parametrize("architecture", ["gemma3", "llama", "phi"])
def test_training_the_base_itself_is_counted(architecture: str) -> None:
    base = tiny_base(architecture)
    base.model.requires_grad_(True)
    expected = really_kept(base, None, MIXED)
    assert count_saved_bytes(CONFIGS[architecture], None, MIXED, dtype=torch.float32) == expected


def test_half_precision_is_counted_as_such() -> None:
    base, adapter = tiny_base("llama"), adapter_for(CONFIGS["llama"], 4)
    base.model.to(torch.bfloat16)
    lora = initialise(adapter, base.layers, seed=0)
    assert count_saved_bytes(CONFIGS["llama"], adapter, MIXED) == really_kept(base, lora, MIXED)


@pytest.mark.parametrize(("architecture", "row_len"), [("gemma3", 20), ("gemma3", 600), ("llama", 1), ("llama", 400)])
def test_formula_gives_the_count_for_any_number_of_rows(architecture: str, row_len: int) -> None:
    config, adapter = CONFIGS[architecture], adapter_for(CONFIGS[architecture], 4)
    found = saved_bytes(config, adapter, row_len=row_len)
    for num_rows in (2, 5):
        expected = count_saved_bytes(config, adapter, whole([row_len] * num_rows))
        assert found.total(num_rows * row_len, row_len) == pytest.approx(expected, abs=1)
    assert (found.per_score > 0) == (row_len <= 512)


def test_models_that_cannot_be_traced_say_why(capfd: pytest.CaptureFixture[str]) -> None:
    config = StableLmConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=100
    )  # no such heads
    with pytest.raises(EngineError, match="a 'stablelm' base cannot be traced without its weights"):
        count_saved_bytes(config, adapter_for(config, 4), MIXED)
    assert capfd.readouterr().err == ""
