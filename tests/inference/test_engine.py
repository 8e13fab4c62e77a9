"""The engine's answers equal the plain, unbatched, uncached way of computing them; nothing leaks, nothing is left behind."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import ARCHITECTURES, by_itself, random_lora, tiny_base
from lorimer.errors import AdapterError, EngineError
from lorimer.inference.composition import alone
from lorimer.inference.engine import Engine, EngineConfig, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.base import Base
from lorimer.model.lora import LoRA, LoRAWeights

GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)


def prompts(*lengths: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(5)
    return [tuple(torch.randint(5, 260, (n,), generator=generator).tolist()) for n in lengths]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tokens_per_step", [2048, 7])
def test_mixed_adapters_in_one_batch_answer_as_each_alone(architecture: str, tokens_per_step: int) -> None:
    base = tiny_base(architecture)
    engine = Engine(base, EngineConfig(max_tokens_per_step=tokens_per_step))
    loras = {None: None, "aa": random_lora(base, seed=1), "bb": random_lora(base, seed=2, rank=2), "cc": random_lora(base, seed=3, rank=7)}
    for digest, lora in loras.items():
        if digest is not None and lora is not None:
            engine.adapters.add(digest, lora)
    asked = [Sequence(prompt_ids=p, params=GREEDY, composition=alone(d)) for p in prompts(3, 17, 40, 1) for d in loras]
    finished = {s.id: s.output_ids for s in generate(engine, asked)}
    for sequence in asked:
        assert finished[sequence.id] == by_itself(base, sequence.prompt_ids, loras[sequence.composition.digest or None])
    assert len({tuple(finished[s.id]) for s in asked[4:8]}) == 4  # the adapters do answer differently


def test_cache_is_whole_again_when_all_have_finished() -> None:
    engine = Engine(tiny_base())
    free = engine.cache.blocks.num_idle
    list(generate(engine, [Sequence(prompt_ids=p, params=GREEDY) for p in prompts(5, 50, 33)]))
    assert engine.cache.blocks.num_idle == free


def test_full_cache_makes_sequences_wait_not_fail() -> None:
    base = tiny_base()
    engine = Engine(base)
    engine.cache.blocks.__init__(2)  # room for one of 40 + 8 tokens at a time
    asked = [Sequence(prompt_ids=p, params=GREEDY) for p in prompts(40, 40, 40)]
    for sequence in generate(engine, asked):
        assert sequence.output_ids == by_itself(base, sequence.prompt_ids, None)


def test_abort_frees_blocks_and_leaves_the_others() -> None:
    base = tiny_base()
    engine = Engine(base)
    free = engine.cache.blocks.num_idle
    first, second, third = (Sequence(prompt_ids=p, params=GREEDY) for p in prompts(9, 10, 11))
    for sequence in (first, second, third):
        engine.add(sequence)
    engine.step()
    engine.abort(first)
    engine.abort(first)
    while engine.has_work:
        engine.step()
    assert first.finish_reason == "aborted"
    assert second.output_ids == by_itself(base, second.prompt_ids, None)
    assert engine.cache.blocks.num_idle == free


def test_answer_ends_at_a_stop_token_which_is_not_part_of_it() -> None:
    base = tiny_base()
    prompt = prompts(12)[0]
    third = by_itself(base, prompt, None)[2]
    base.renderer.stop_ids = frozenset({third})
    (sequence,) = generate(Engine(base), [Sequence(prompt_ids=prompt, params=SamplingParams(max_tokens=8))])
    assert (sequence.finish_reason, sequence.output_ids) == ("stop", by_itself(base, prompt, None)[: sequence.output_ids.__len__()])
    assert third not in sequence.output_ids


@pytest.mark.parametrize(
    ("sequence", "reason"),
    [
        (Sequence(prompt_ids=()), "no tokens"),
        (Sequence(prompt_ids=(5,), params=SamplingParams(max_tokens=0)), "at least one token"),
        (Sequence(prompt_ids=(5,) * 500, params=SamplingParams(max_tokens=13)), "limit is 512"),
        (Sequence(prompt_ids=(5,), composition=alone("ff")), "not loaded"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(sequence: Sequence, reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        Engine(tiny_base()).add(sequence)


def test_same_seed_same_answer_whoever_else_is_in_the_batch() -> None:
    base = tiny_base()
    params = SamplingParams(max_tokens=12, temperature=1.3, top_p=0.9, seed=11, ignore_eos=True)
    prompt, *others = prompts(12, 20, 4)
    (solo,) = generate(Engine(base), [Sequence(prompt_ids=prompt, params=params)])
    company = [Sequence(prompt_ids=p, params=SamplingParams(max_tokens=12, temperature=1.0, ignore_eos=True)) for p in others]
    same = Sequence(prompt_ids=prompt, params=params)
    list(generate(Engine(base), [company[0], same, company[1]]))
    assert same.output_ids == solo.output_ids


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9), st.sampled_from([None, "aa", "bb"])), min_size=1, max_size=9),
    st.integers(1, 64),
    st.integers(1, 5),
)
def test_any_load_is_answered_as_alone(load: list[tuple[int, int, str | None]], tokens_per_step: int, max_sequences: int) -> None:
    base = BASE
    engine = Engine(base, EngineConfig(max_tokens_per_step=tokens_per_step, max_sequences=max_sequences))
    loras = {None: None, "aa": LORAS[0], "bb": LORAS[1]}
    engine.adapters.add("aa", LORAS[0])
    engine.adapters.add("bb", LORAS[1])
    asked = [
        Sequence(prompt_ids=prompts(length)[0], params=SamplingParams(max_tokens=n, ignore_eos=True), composition=alone(digest))
        for length, n, digest in load
    ]
    assert len(list(generate(engine, asked))) == len(asked)
    for sequence in asked:
        assert sequence.output_ids == by_itself(
            base, sequence.prompt_ids, loras[sequence.composition.digest or None], sequence.params.max_tokens
        )


BASE = tiny_base("gemma3")
LORAS = random_lora(BASE, seed=1), random_lora(BASE, seed=2, rank=2)


def test_reused_prefixes_change_nothing() -> None:
    engine = Engine(BASE)
    engine.adapters.add("aa", LORAS[0])
    shared = prompts(70)[0]
    asked = [Sequence(prompt_ids=(*shared, last), params=GREEDY, composition=alone(d)) for last in (7, 8, 9) for d in (None, "aa")]
    for sequence in asked:
        list(generate(engine, [sequence]))
        lora = LORAS[0] if sequence.composition.parts else None
        assert sequence.output_ids == by_itself(BASE, sequence.prompt_ids, lora)
    assert [sequence.num_reused for sequence in asked] == [0, 0, 64, 64, 64, 64]


def test_sequences_thrown_out_of_the_cache_answer_as_if_they_had_stayed() -> None:
    engine = Engine(BASE, EngineConfig(cache_bytes=1))
    engine.cache.blocks.__init__(6)  # type: ignore[misc]
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    asked = [Sequence(prompt_ids=p, params=params) for p in prompts(40, 41, 42)]
    list(generate(engine, asked))
    assert engine.scheduler.num_preempted
    for sequence in asked:
        assert sequence.output_ids == by_itself(BASE, sequence.prompt_ids, None, 60)


def test_adapter_in_use_stays_until_its_last_answer_is_done() -> None:
    engine = Engine(BASE)
    engine.adapters.add("aa", LORAS[0])
    sequence = Sequence(prompt_ids=prompts(12)[0], params=GREEDY, composition=alone("aa"))
    engine.add(sequence)
    engine.step()
    assert not engine.adapters.unload("aa")
    while engine.has_work:
        engine.step()
    assert sequence.output_ids == by_itself(BASE, sequence.prompt_ids, LORAS[0])
    assert "aa" not in engine.adapters
    assert engine.adapters.num_bytes == 0


def exploding(base: Base, *, a: float = 3e38, b: float = 1.0, scale: float = 1.0) -> LoRA:
    """Finite numbers whose products are not."""
    lora = random_lora(base, seed=9)
    weights = {
        name: LoRAWeights(a=torch.full_like(own.a, a), b=torch.full_like(own.b, b), scale=scale) for name, own in lora.weights.items()
    }
    return LoRA(config=lora.config, weights=weights)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(("a", "b"), [(3e38, 1.0), (1.0, 3e38), (1e30, 1e30)])
def test_numbers_that_explode_end_their_own_answer_and_no_other(
    monkeypatch: pytest.MonkeyPatch, temperature: float, a: float, b: float
) -> None:
    monkeypatch.setattr("lorimer.inference.adapter_pool.MAX_WEIGHT", 1e39)  # let it in, which the pool would not
    base = tiny_base()
    good, params = random_lora(base), SamplingParams(max_tokens=8, ignore_eos=True, temperature=temperature, seed=1)

    def ask(*digests: str | None) -> list[list[int] | None]:
        engine = Engine(base, EngineConfig(cache_bytes=100_000))  # few blocks: who comes later is given those of who was before
        engine.adapters.add("good", good)
        engine.adapters.add("bomb", exploding(base, a=a, b=b))
        answers = []
        for digest_of_turn in digests:
            names = (None, "bomb", "good") if digest_of_turn == "all" else (None, "good")
            asked = [Sequence(prompt_ids=prompts(37)[0], params=params, composition=alone(name)) for name in names]
            for sequence in asked:
                engine.add(sequence)
            while engine.has_work:
                engine.step()
            answers += [None if sequence.failure else sequence.output_ids for sequence in asked]
            engine.cache.blocks.forget_all()
        assert all(bool(pool.isfinite().all()) for pools in engine.cache.layers.values() for pool in pools)
        return answers

    base_says, good_says = ask("others")
    assert ask("all", "others") == [base_says, None, good_says, base_says, good_says]


@pytest.mark.parametrize("numbers", [{"a": 3e38}, {"b": 2e4}, {"b": 1.0, "scale": 1e5}, {"scale": float("inf")}, {"a": float("nan")}])
def test_numbers_no_training_makes_are_not_let_in(numbers: dict[str, float]) -> None:
    base = tiny_base()
    with pytest.raises(AdapterError, match="train"):
        Engine(base).adapters.add("bomb", exploding(base, **numbers))


def test_a_penalty_as_good_as_zero_ends_no_step() -> None:
    base = tiny_base()
    params = SamplingParams(max_tokens=4, ignore_eos=True, temperature=1.0, repetition_penalty=1e-300)
    asked = [Sequence(prompt_ids=prompts(9)[0], params=each) for each in (params, GREEDY)]
    assert [len(s.output_ids) for s in sorted(generate(Engine(base), asked), key=lambda s: s.id)] == [4, 8]


def test_an_answer_that_cannot_be_computed_is_an_error_where_all_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorimer.inference.adapter_pool.MAX_WEIGHT", 1e39)
    base = tiny_base()
    engine = Engine(base)
    engine.adapters.add("bomb", exploding(base))
    with pytest.raises(EngineError, match="left the finite numbers"):
        list(generate(engine, [Sequence(prompt_ids=prompts(9)[0], params=GREEDY, composition=alone("bomb"))]))
