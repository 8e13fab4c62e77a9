"""Adapter files: what does not fit is refused, every mismatch named."""

import gc
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes import random_lora, tiny_base
from lorimer.errors import AdapterError
from lorimer.model.adapter import LOCK_FILE, WEIGHTS_FILE, Lock, load_adapter, save_adapter
from lorimer.model.lora import LoRAConfig, initialise
from lorimer.model.peft_config import CONFIG_FILE

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
        ({"bias": "all"}, "trained biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "base weights that 'pissa' changed"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "base layers more than once"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"r": 1_000_000}, "r is 1000000, where ranks are 1 to 2048"),
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is True"),
        ({"r": 8}, "has rank 4, adapter_config.json says 8"),
        ({"rank_pattern": {"q_proj": 3}}, "has rank 4, adapter_config.json says 3"),
        ({"rank_pattern": {"q_proj": 10**9}}, "rank_pattern of 'q_proj' is 1000000000"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is not an object"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": 1e300}, "lora_alpha is 1e"),
        ({"lora_alpha": [8]}, r"lora_alpha is \[8\]"),
        ({"use_rslora": "no"}, "use_rslora is 'no'"),
        ({"alpha_pattern": {"((a+)+)+": 2}}, "no groups"),
        ({"alpha_pattern": {".*.*.*x": 2}}, "at most 2 wildcards"),
        ({"alpha_pattern": {f".*{i}": 2 for i in range(40)}}, "more than 32 wildcards"),
        ({"alpha_pattern": {"q_proj[": 2}}, "no groups"),
        ({"alpha_pattern": {str(i): 2 for i in range(5000)}}, "at most 4096 names"),
        ({"auto_mapping": "x" * (1 << 20)}, "at most 1048576 are read"),
    ],
)
def test_kinds_of_adapter_that_are_not_served_are_refused(folder: Path, keys: dict[str, Any], reason: str) -> None:
    change_config(folder, **keys)
    with pytest.raises(AdapterError, match=reason):
        load_adapter(folder, tiny_base("llama"))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"peft_type": "LORA"}', "\x00", "null"])
def test_configurations_that_are_none_are_refused(folder: Path, text: str) -> None:
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(AdapterError, match=r"cannot be read|no LoRA adapter"):
        load_adapter(folder, tiny_base("llama"))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "{}", '{"base_name": 7}', '"a"'])
def test_locks_that_are_none_are_refused(folder: Path, text: str) -> None:
    (folder / LOCK_FILE).write_text(text)
    with pytest.raises(AdapterError, match="restore it"):
        load_adapter(folder, tiny_base("llama"))


def spelled(header: Any, body: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file, as its specification has it: the header's length, the header, the bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def tensor(*shape: int, begin: int = 0, end: int = 768, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


BYTES = bytes(768)
LYING: dict[str, bytes] = {
    "past the end": spelled({NAME: tensor(4, 4800, end=76800)}, BYTES),
    "overlapping": spelled({NAME: tensor(4, 48), OTHER: tensor(4, 48)}, BYTES),
    "with a hole": spelled({NAME: tensor(4, 48, begin=768, end=1536)}, BYTES * 2),
    "negative": spelled({NAME: tensor(4, 48, begin=-768, end=0)}, BYTES),
    "backwards": spelled({NAME: tensor(4, 48, begin=768, end=0)}, BYTES),
    "more than declared": spelled({NAME: tensor(4, 48)}, BYTES * 2),
    "shape that overflows": spelled({NAME: tensor(2**32, 2**32)}, BYTES),
    "shape that comes to nothing": spelled({NAME: tensor(0, 2**62, end=0)}),
    "rank of none": spelled({NAME: tensor(0, 48, end=0), NAME.replace("_A.", "_B."): tensor(48, 0, begin=0, end=0)}),
    "header of 2**63 bytes": spelled({NAME: tensor(4, 48)}, BYTES, length=2**63),
    "header of 2**40 bytes": spelled({NAME: tensor(4, 48)}, BYTES, length=2**40),
    "header that is nested": spelled(b"[" * 1_000_000),
    "header that is no object": spelled(b"null"),
    "a name twice": spelled(b'{"%b":%b,"%b":%b}' % ((NAME.encode(), json.dumps(tensor(4, 48)).encode()) * 2), BYTES),
    "bytes for numbers": spelled({NAME: tensor(4, 192, dtype="U8")}, BYTES),
    "doubles": spelled({NAME: tensor(4, 24, dtype="F64")}, BYTES),
    "numbers nobody knows": spelled({NAME: tensor(4, 48, dtype="F9")}, BYTES),
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.",
    "a zip": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("lie", LYING)
def test_files_that_lie_about_themselves_are_refused(folder: Path, lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / WEIGHTS_FILE).write_bytes(LYING[lie])
    with pytest.raises(AdapterError, match=r"damaged|does not fit"):
        load_adapter(folder, tiny_base("llama"))
    assert not (folder / "ran").exists()


def test_files_larger_than_any_adapter_of_the_base_are_not_read(folder: Path) -> None:
    with (folder / WEIGHTS_FILE).open("r+b") as file:
        file.truncate(1 << 40)  # a hole: it takes no room on the disk
    with pytest.raises(AdapterError, match="1099511627776 bytes, of an adapter for 'tiny-llama' there can be"):
        load_adapter(folder, tiny_base("llama"))


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_pickles_are_not_even_opened(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.")
    load_adapter(folder, tiny_base("llama"))  # beside the real file it is nothing
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(AdapterError, match=f"is '{name}', which may run code when it is read: save it as adapter_model.safetensors"):
        load_adapter(folder, tiny_base("llama"))


def test_patterns_of_names_and_wildcards_are_read(folder: Path) -> None:
    change_config(folder, alpha_pattern={r"^model\.layers\.[01]\..*q_proj$": 2, "layers.2.self_attn.q_proj": 6})
    weights = load_adapter(folder, tiny_base("llama")).weights
    assert [weights[f"model.layers.{i}.self_attn.q_proj"].scale for i in range(3)] == [0.5, 0.5, 1.5]


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


def test_loading_again_and_again_leaves_nothing_in_memory(folder: Path) -> None:
    base = tiny_base("llama")
    for _ in range(20):
        load_adapter(folder, base)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(50):
            load_adapter(folder, base)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 50 < 500  # a server that is short of memory loads adapters all the time
