"""Each engine's verdict on adapters it takes, refuses, or would serve wrongly."""

from typing import Any

import pytest

from lorimer.model.lora import LoRAConfig
from lorimer.training.servability import Verdict, servable

TARGETS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj")


def verdicts(model_type: str = "llama", **keys: Any) -> dict[str, Verdict]:
    found = servable(LoRAConfig(**{"rank": 16, "alpha": 32.0, "target_modules": TARGETS, **keys}), model_type)
    return {verdict.engine: verdict for verdict in found}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (True, True, True, True)),
        ({"kind": "pissa"}, (True, True, True, True)),
        ({"kind": "dora"}, (False, False, False, False)),
        ({"rank_stabilised": True}, (True, True, True, True)),
        ({"ranks": {TARGETS[0]: 4}}, (True, True, True, False)),
        ({"ranks": dict.fromkeys(TARGETS, 4)}, (True, True, True, True)),
        ({"rank": 1024}, (True, False, True, True)),
        ({"target_modules": ("model.layers.0.mlp.fc1",)}, (True, True, None, True)),
        ({"model_type": "falcon"}, (True, False, None, None)),
        ({"model_type": "gemma3_text"}, (True, True, None, True)),
        ({"model_type": "brand_new"}, (True, None, None, None)),
    ],
)
def test_each_engine_has_its_own_verdict(keys: dict[str, Any], expected: tuple[bool | None, ...]) -> None:
    found = verdicts(**keys)
    assert list(found) == ["lorimer", "vllm", "sglang", "llama.cpp"]
    assert tuple(verdict.ok for verdict in found.values()) == expected
    assert all(verdict.reason for verdict in found.values())


@pytest.mark.parametrize(("rank", "flag"), [(1, 1), (2, 8), (16, 16), (17, 32), (300, 320), (512, 512)])
def test_vllm_is_told_the_next_rank_it_allows(rank: int, flag: int) -> None:
    assert verdicts(rank=rank)["vllm"].flags == ("--enable-lora", f"--max-lora-rank {flag}")


def test_pissa_is_served_at_twice_its_rank() -> None:
    found = verdicts(rank=16, kind="pissa")
    assert "--max-lora-rank 32" in found["vllm"].flags
    assert "--max-lora-rank 32" in found["sglang"].flags


def test_sglang_is_told_the_layers() -> None:
    assert verdicts()["sglang"].flags == ("--enable-lora", "--max-lora-rank 16", "--lora-target-modules down_proj q_proj")


def test_wrong_scaling_is_named() -> None:
    assert "scales each by its own rank" in verdicts(ranks={TARGETS[0]: 4})["llama.cpp"].reason
