"""Adapters of a batch beside the plain way of computing them: merged weights, PEFT, one row at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import ARCHITECTURES, by_itself, random_lora, tiny_base
from lorimer.errors import AdapterError, CompositionError
from lorimer.inference.batched_lora import BatchedLoRA, RowRange, group_of
from lorimer.inference.compiled_rows import compiled_rows
from lorimer.inference.composition import BASE, Composition, Part, alone
from lorimer.inference.decoder import FusedDecoder, make_decoder
from lorimer.inference.engine import Engine, EngineConfig, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.inference.slab import Slab
from lorimer.model.attention import PackedSegments, whole
from lorimer.model.base import Base
from lorimer.model.lora import LoRA, LoRAConfig, initialise

GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)
TINY = tiny_base("llama")
LORAS = {f"{n:02x}": random_lora(TINY, seed=n, rank=rank) for n, rank in enumerate((4, 1, 7, 3, 16), start=1)}


def merged(base: Base, parts: list[tuple[LoRA, float]]) -> None:
    """Fold changes into a base's own weights."""
    with torch.no_grad():
        for lora, scale in parts:
            for name, own in lora.weights.items():
                base.layers[name].weight += scale * own.scale * (own.b @ own.a)


@pytest.mark.parametrize("uses_kernels", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_composition_equals_the_sum_of_changes(architecture: str, uses_kernels: bool) -> None:
    base = tiny_base(architecture)
    loras = {"aa": random_lora(base, seed=1), "bb": random_lora(base, seed=2, rank=2)}
    engine = Engine(base, EngineConfig(max_tokens_per_step=16, uses_kernels=uses_kernels))
    for digest, lora in loras.items():
        engine.adapters.add(digest, lora)
    both = Composition((Part(digest="aa", scale=0.7), Part(digest="bb", scale=-0.4)))
    asked = [Sequence(prompt_ids=tuple(range(5, 30)), params=GREEDY, composition=c) for c in (both, alone("aa"), BASE)]
    list(generate(engine, asked))
    other = tiny_base(architecture)
    merged(other, [(loras["aa"], 0.7), (loras["bb"], -0.4)])
    (wanted,) = generate(Engine(other), [Sequence(prompt_ids=tuple(range(5, 30)), params=GREEDY)])
    assert asked[0].output_ids == wanted.output_ids
    assert asked[0].output_ids != asked[1].output_ids


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fused_decoder_equals_the_base(architecture: str) -> None:
    base = tiny_base(architecture)
    decoder = make_decoder(base)
    assert isinstance(decoder, FusedDecoder) == (architecture != "phi")
    ids, segments = torch.arange(5, 45), PackedSegments(whole([13, 27]))
    positions = torch.cat([torch.arange(13), torch.arange(27)])
    with torch.inference_mode():
        found = decoder.run(ids, positions, segments, BatchedLoRA(None, {}, []))
        torch.testing.assert_close(found, base.hidden_states(ids, positions, segments, ()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi"])
def test_dora_answers_as_in_training(architecture: str) -> None:
    base = tiny_base(architecture)
    lora = initialise(LoRAConfig(rank=4, alpha=8, target_modules=tuple(base.layers), kind="dora"), base.layers, 0)
    with torch.no_grad():
        for own in lora.weights.values():
            own.b.normal_(0, 0.2)
            assert own.magnitude is not None
            own.magnitude.mul_(1.1)
    engine = Engine(base)
    engine.adapters.add("aa", lora)
    asked = [Sequence(prompt_ids=tuple(range(5, 25)), params=GREEDY, composition=c) for c in (alone("aa"), BASE)]
    list(generate(engine, asked))
    assert [s.output_ids for s in asked] == [by_itself(base, asked[0].prompt_ids, one) for one in (lora, None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_weights_are_those_of_the_base_after_packing(dtype: torch.dtype) -> None:
    base = tiny_base("llama")
    base.model.to(dtype)
    engine = Engine(base)
    wanted = {name: layer.weight.detach().clone() for name, layer in base.layers.items()}
    engine.release_base()
    for name, layer in base.layers.items():  # what is packed as it lies is kept: it is no copy
        assert layer.weight.shape == wanted[name].shape
        assert bool(layer.weight.isnan().all()) is not (name.endswith(("o_proj", "down_proj")) and dtype == torch.float32)
    assert bool(base.head.weight.isfinite().all()) is (dtype == torch.float32)  # untied, and packed in bfloat16 alone
    for name, weight in wanted.items():
        assert torch.equal(engine.decoder.dense_weight(name), weight)


def test_dora_does_not_compose() -> None:
    base = tiny_base()
    engine = Engine(base)
    engine.adapters.add("aa", initialise(LoRAConfig(rank=2, alpha=4, target_modules=tuple(base.layers), kind="dora"), base.layers, 0))
    engine.adapters.add("bb", random_lora(base))
    for parts in ((Part(digest="aa"), Part(digest="bb")), (Part(digest="aa", scale=0.5),)):
        with pytest.raises(CompositionError, match="DoRA"):
            engine.add(Sequence(prompt_ids=(5, 6), composition=Composition(parts)))
    engine.add(Sequence(prompt_ids=(5, 6), composition=Composition((Part(digest="aa"),))))


def test_adapter_that_is_not_finite_is_not_taken_in() -> None:
    base = tiny_base()
    lora = random_lora(base)
    with torch.no_grad():
        next(iter(lora.weights.values())).b[0, 0] = float("nan")
    with pytest.raises(AdapterError, match="not finite"):
        Engine(base).adapters.add("aa", lora)


@pytest.mark.parametrize("is_compiled", [False, True])
@torch.inference_mode()
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from([None, *LORAS]), st.sampled_from([1, 1, 2, 9, 300])), min_size=1, max_size=6),
        min_size=1,
        max_size=25,
    )
)
def test_every_row_gets_its_own_whatever_came_before(is_compiled: bool, steps: list[list[tuple[str | None, int]]]) -> None:
    group = group_of(TINY.layers, *list(TINY.layers)[:3])
    float32, cpu = torch.float32, torch.device("cpu")
    shared = compiled_rows([group], dtype=float32, device=cpu) if is_compiled else Slab([group], dtype=float32, device=cpu)
    if shared is None:
        pytest.skip("there is no C compiler")
    for step in steps:
        ranges, start = [], 0
        for digest, count in sorted(step, key=lambda one: one[1]):
            ranges.append(RowRange(start=start, stop=start + count, composition=alone(digest)))
            start += count
        x = torch.randn(start, group.in_features)
        found = BatchedLoRA(shared, LORAS, ranges).add(group, x, [torch.zeros(start, out) for out in group.out_features])
        for name, y in zip(group.names, found, strict=True):
            for one in ranges:
                rows, digest = slice(one.start, one.stop), one.composition.digest
                own = LORAS[digest].weights[name] if digest else None
                wanted = torch.zeros_like(y[rows]) if own is None else own.scale * (x[rows] @ own.a.T) @ own.b.T
                torch.testing.assert_close(y[rows], wanted, rtol=1e-4, atol=1e-3)
