"""One adapter merged into its base: the same answers, and how far they are apart is told."""

import pytest
import torch

from fakes import ARCHITECTURES, random_lora, tiny_base
from lorimer.errors import AdapterError
from lorimer.inference.composition import Composition, Part, alone
from lorimer.inference.dedicated import as_one, merge
from lorimer.inference.engine import Engine, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.lora import LoRAConfig, initialise

PROMPTS = [tuple(range(5, 40)), tuple(range(50, 60))]
GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_base_answers_as_base_and_adapter(architecture: str) -> None:
    base, other = tiny_base(architecture), tiny_base(architecture)
    lora = random_lora(base)
    engine = Engine(base)
    engine.adapters.add("aa", lora)
    (wanted,) = generate(engine, [Sequence(prompt_ids=PROMPTS[0], params=GREEDY, composition=alone("aa"))])
    divergence = merge(other, lora, PROMPTS)
    (found,) = generate(Engine(other), [Sequence(prompt_ids=PROMPTS[0], params=GREEDY)])
    assert found.output_ids == wanted.output_ids
    assert divergence.num_places == 45
    assert divergence.max_kl < 1e-6
    assert divergence.same_greedy == 1.0


def test_rounding_is_told() -> None:
    base = tiny_base("llama")
    base.model.to(torch.bfloat16)
    divergence = merge(base, random_lora(base, size=0.5), PROMPTS)
    assert 0 < divergence.mean_kl < 0.05


def test_several_are_merged_as_their_sum() -> None:
    base, other = tiny_base("llama"), tiny_base("llama")
    names = tuple(base.layers)
    first, second = random_lora(base, seed=1, targets=names[:9]), random_lora(base, seed=2, rank=3, targets=names[4:])
    engine = Engine(base)
    engine.adapters.add("aa", first)
    engine.adapters.add("bb", second)
    together = Composition((Part(digest="aa"), Part(digest="bb", scale=-0.5)))
    (wanted,) = generate(engine, [Sequence(prompt_ids=PROMPTS[0], params=GREEDY, composition=together)])
    lora = as_one([(first, 1.0), (second, -0.5)])
    other_divergence = merge(other, lora, PROMPTS)
    (found,) = generate(Engine(other), [Sequence(prompt_ids=PROMPTS[0], params=GREEDY)])
    assert found.output_ids == wanted.output_ids
    assert other_divergence.max_kl < 1e-6


def test_dora_is_not_merged() -> None:
    base = tiny_base("llama")
    lora = initialise(LoRAConfig(rank=2, alpha=4, target_modules=tuple(base.layers), kind="dora"), base.layers, 0)
    with pytest.raises(AdapterError, match="plain adapter"):
        merge(base, lora, PROMPTS)
