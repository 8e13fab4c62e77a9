"""Plans from a configuration alone: the field's published figures, and the order of the methods."""

import json

import pytest

from lorimer.cli.main import run
from lorimer.model.machine import Machine
from lorimer.model.shapes import find_shape
from lorimer.training.absent import Job, plan_absent

MACHINE = Machine(
    name="a server", device="cpu", num_cores=2, memory_bytes=24_000_000_000, bf16_flops_per_second=1e12, fp32_flops_per_second=1e11
)
JOB = Job(rank=16, num_rows=1000, row_len=256, num_supervised=64, epochs=2)


def test_llama_3_8b_side_by_side() -> None:
    full, lora, qlora = plan_absent(find_shape("llama-3-8b"), JOB, MACHINE)
    assert (lora.num_trained, full.num_trained) == (41_943_040, full.num_parameters)
    assert full.memory_bytes > 3 * lora.memory_bytes > 3 * qlora.memory_bytes
    assert full.checkpointed_bytes < full.memory_bytes
    assert [one.fits for one in (full, lora, qlora)] == [False, True, True]
    assert lora.saved_bytes == pytest.approx(168e6, rel=0.01)
    assert lora.seconds.low < lora.seconds.middle < lora.seconds.high < full.seconds.high


def test_plan_of_a_shape_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--base", "llama-3-70b", "--rows", "10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["method"] for one in found["methods"]] == ["full", "lora", "qlora"]


@pytest.mark.parametrize("arguments", [[], ["recipe.yaml", "--base", "llama-3-8b"], ["--base", "llama-9"]])
def test_plan_wants_one_thing_that_is_there(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", *arguments]) == 2
    assert capsys.readouterr().err
