"""The same code on a CUDA device. Never run on one so far: no such machine has tried it."""

from pathlib import Path

import pytest
import torch

from fakes import random_lora, save_tiny_base
from lorimer.data.example import Message
from lorimer.inference.engine import Engine, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.base import load_base
from lorimer.model.lora import LoRAConfig, initialise
from lorimer.training.batching import batches
from lorimer.training.loop import Learner, StepMetrics, train
from lorimer.training.optim import OptimizerConfig, make_optimizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_trains_and_answers_on_the_device(tmp_path: Path) -> None:
    save_tiny_base(tmp_path / "base", "gemma3")
    base = load_base(str(tmp_path / "base"), dtype=torch.float32)
    assert base.device.type == "cuda"
    lora = initialise(LoRAConfig(rank=4, alpha=8, target_modules=tuple(base.layers)), base.layers, seed=0)
    rows = [base.renderer.render([Message(role="user", content=f"q{i}"), Message(role="assistant", content="a")]) for i in range(8)]
    steps = batches(rows, batch_size=4, num_steps=5, tokens_per_micro_batch=64, seed=0)
    config = OptimizerConfig(learning_rate=1e-2)
    learner = Learner(run_id="", lora=lora, optimizer=make_optimizer(lora, config), config=config, batches=steps, num_steps=5)
    metrics = [event for event in train(base, [learner]) if isinstance(event, StepMetrics)]
    assert metrics[-1].loss < metrics[0].loss
    engine = Engine(base)
    engine.adapters.add("aa", random_lora(base))
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    asked = [Sequence(prompt_ids=(5, 6, 7, 8), params=params, adapter=digest) for digest in (None, "aa", None)]
    list(generate(engine, asked))
    assert asked[0].output_ids == asked[2].output_ids != asked[1].output_ids
