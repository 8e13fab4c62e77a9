"""Adapter files: what does not fit is refused, every mismatch named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes import random_lora, tiny_base
from lorimer.errors import AdapterError
from lorimer.model.adapter import CONFIG_FILE, WEIGHTS_FILE, Lock, load_adapter, save_adapter
from lorimer.model.lora import LoRAConfig, initialise

NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
OTHER = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = tiny_base("llama")
    lock = Lock(base_name=base.name, base_digest=base.digest, template_digest="", dataset_digest="", run_id="")
    save_adapter(random_lora(base), tmp_path / "adapter", base, lock)
    return tmp_path / "adapter"


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def change_config(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, **keys}))


def test_every_misfit_is_named_at_once(folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[NAME] = torch.zeros(4, 5)
        tensors[OTHER] = torch.full_like(tensors[OTHER], float("nan"))
        tensors["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = torch.zeros(4, 48)
        tensors["stray"] = torch.zeros(1)

    change_tensors(folder, spoil)
    with pytest.raises(AdapterError) as error:
        load_adapter(folder, tiny_base("llama"))
    for part in ("(4, 5)", "(4, 48)", "not finite", "no linear layer 'model.layers.9.mlp.up_proj'", "'stray'"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"use_dora": True}, "not every layer has magnitudes"),
        ({"modules_to_save": ["lm_head"]}, "trained copies of base layers"),
        ({"peft_type": "IA3"}, "no LoRA adapter"),
    ],
)
def test_kinds_of_adapter_that_are_not_served_are_refused(folder: Path, keys: dict[str, Any], reason: str) -> None:
    change_config(folder, **keys)
    with pytest.raises(AdapterError, match=reason):
        load_adapter(folder, tiny_base("llama"))


def test_adapter_of_another_base_is_refused_by_digest(folder: Path) -> None:
    with pytest.raises(AdapterError, match="was made for base 'tiny-llama'"):
        load_adapter(folder, tiny_base("llama", seed=1))


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(p.read_bytes()[:100]), lambda p: p.write_bytes(b""), lambda p: p.unlink()])
def test_damaged_weights_are_refused(folder: Path, damage: Callable[[Path], Any]) -> None:
    damage(folder / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match="missing or damaged"):
        load_adapter(folder, tiny_base("llama"))


@pytest.mark.parametrize(("rank", "alpha"), [(6, 32.0), (12, 32.0), (48, 32.0), (6, 9.0)])
def test_scale_read_back_is_the_one_that_was_trained(rank: int, alpha: float, tmp_path: Path) -> None:
    base = tiny_base("llama")
    lora = initialise(LoRAConfig(rank=rank, alpha=alpha, target_modules=tuple(base.layers)), base.layers, 0)
    lock = Lock(base_name=base.name, base_digest=base.digest, template_digest="", dataset_digest="", run_id="")
    save_adapter(lora, tmp_path / "adapter", base, lock)
    read = load_adapter(tmp_path / "adapter", base)
    assert {weights.scale for weights in read.weights.values()} == {alpha / rank}
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["alpha_pattern"] == {}


def test_patterns_and_rank_stabilised_scales_of_peft_are_honoured(folder: Path) -> None:
    change_config(folder, alpha_pattern={"q_proj": 2}, use_rslora=True)
    weights = load_adapter(folder, tiny_base("llama")).weights
    assert weights["model.layers.0.self_attn.q_proj"].scale == pytest.approx(2 / 4**0.5)
    assert weights["model.layers.0.self_attn.k_proj"].scale == pytest.approx(8 / 4**0.5)
