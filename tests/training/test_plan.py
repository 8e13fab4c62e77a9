"""A plan resolves recipe, preset, dataset and base, says why, and refuses what cannot be."""

from pathlib import Path
from typing import Any

import pytest

from fakes import tiny_base
from lorimer.config import Recipe
from lorimer.data.dataset import Dataset
from lorimer.data.example import Example, Message
from lorimer.errors import ConfigError, TrainingError
from lorimer.training.plan import describe, plan


def dataset(num_rows: int = 20) -> Dataset:
    rows = tuple(
        Example(
            messages=(Message(role="user", content=f"question {i}"), Message(role="assistant", content=f"answer {i % 3}")),
            source=f"t.jsonl:{i + 1}",
        )
        for i in range(num_rows)
    )
    return Dataset(name="t", digest="d" * 64, train=rows, validation=(), test=(), card={}, path=Path())


def recipe(**keys: Any) -> Recipe:
    return Recipe(base="tiny", dataset="t", **keys)


def test_preset_decides_what_the_recipe_leaves_open() -> None:
    found = plan(recipe(preset="classification"), dataset(), tiny_base())
    assert (found.lora.rank, found.lora.alpha, found.optimizer.learning_rate, found.metric) == (16, 32.0, 1e-3, "label")
    assert found.num_steps == round(3 * 20 / 16)
    assert set(found.reasons) == {
        "rank", "alpha", "learning_rate", "batch_size", "epochs", "targets", "layers", "checkpointing", "seconds",
    }  # fmt: skip
    assert "labels are little information" in found.reasons["rank"]


def test_recipe_has_the_last_word() -> None:
    keys = {
        "rank": 3,
        "alpha": 6.0,
        "learning_rate": 0.01,
        "batch_size": 5,
        "steps": 7,
        "metric": "contains",
        "targets": ["q_proj"],
        "seed": 4,
    }
    found = plan(recipe(**keys), dataset(), tiny_base())
    assert (found.lora.rank, found.lora.alpha, found.batch_size, found.num_steps, found.metric, found.seed) == (3, 6.0, 5, 7, "contains", 4)
    assert found.lora.target_modules == tuple(f"model.layers.{i}.self_attn.q_proj" for i in range(3))
    assert found.reasons["rank"] == "given in the recipe"


def test_numbers_add_up() -> None:
    base = tiny_base("llama")
    found = plan(recipe(rank=4), dataset(), base)
    assert found.num_parameters == sum(4 * (layer.in_features + layer.out_features) for layer in base.layers.values())
    assert found.adapter_bytes == 4 * found.num_parameters
    assert found.trainable_share == found.num_parameters / (base.num_parameters + found.num_parameters)
    assert 0 < found.seconds.low < found.seconds.high
    assert 0 < found.memory_bytes.low < found.memory_bytes.high


def test_long_rows_are_left_out_and_named() -> None:
    rows = dataset(3)
    long = Example(messages=(Message(role="user", content="x" * 300), Message(role="assistant", content="y")), source="t.jsonl:9")
    found = plan(
        recipe(max_len=100), Dataset(**{f: getattr(rows, f) for f in Dataset.__slots__} | {"train": (*rows.train, long)}), tiny_base()
    )
    assert (found.num_rows, found.report.too_long.sources) == (3, ("t.jsonl:9",))
    assert any("t.jsonl:9" in line for line in describe(found).values())


@pytest.mark.parametrize(
    ("keys", "error", "reason"),
    [
        ({"targets": ["q_porj"]}, ConfigError, r"no linear layer named 'q_porj'; it has .*q_proj"),
        ({"max_len": 9999}, ConfigError, "reads at most 512"),
        ({"max_len": 10}, TrainingError, "no training row of at most 10 tokens"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        plan(recipe(**keys), dataset(), tiny_base())


def test_a_sharded_recipe_is_planned_as_a_whole() -> None:
    shards = {"privacy": {"mode": "sharded", "shards": 4}}
    one, found = (plan(recipe(rank=4, epochs=2, batch_size=4, **keys), dataset(40), tiny_base()) for keys in ({}, shards))
    assert (found.num_shards, found.num_steps, found.num_rows) == (4, 4 * round(2 * 10 / 4), 40)
    assert found.adapter_bytes == one.adapter_bytes
    assert found.uncorrected_bytes - one.uncorrected_bytes == 3 * one.resident_bytes
    assert describe(found)["shards"].startswith("4 adapters of about 10 rows each")
    assert "shards" not in describe(one)
    assert {verdict.engine: verdict.ok for verdict in found.serving} == {"lorimer": True, "vllm": False, "sglang": False, "llama.cpp": None}


def test_all_that_does_not_go_with_shards_is_said() -> None:
    wrong = recipe(method="dora", rank="auto", privacy={"mode": "sharded"}, preference={"reference": "base"})
    with pytest.raises(ConfigError) as refused:
        plan(wrong, dataset(), tiny_base())
    for part in ("'dora'", "`rank: auto`", "`preference`"):
        assert part in str(refused.value)
