"""Log-probabilities of continuations and distances of texts, beside transformers' own forward pass over each text alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import random_lora, tiny_base
from lorimer.errors import EngineError
from lorimer.inference import scoring
from lorimer.inference.composition import BASE, Composition, Part, alone
from lorimer.inference.engine import Engine
from lorimer.inference.scoring import Continuations, compare_texts, score_continuations
from lorimer.model.attention import PackedSegments, whole
from lorimer.model.base import Base
from lorimer.model.lora import AdapterRows, LoRA

ARCHITECTURES = ("llama", "qwen2", "gemma3", "mistral")


def logprobs_alone(base: Base, ids: tuple[int, ...], lora: LoRA | None) -> torch.Tensor:
    """(T - 1, V): of what follows each token of a text but its last, by the base's own modules and one text at a time."""
    rows = [AdapterRows(start=0, stop=len(ids), adapter=lora)]
    with torch.inference_mode():
        hidden = base.hidden_states(torch.tensor(ids), torch.arange(len(ids)), PackedSegments(whole([len(ids)])), rows)
    return base.head.logits(hidden[:-1]).float().log_softmax(-1)


def text(seed: int, length: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tokens_per_run", [16, 4096])
def test_scores_are_those_of_each_text_alone(architecture: str, tokens_per_run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "TOKENS_PER_RUN", tokens_per_run)
    monkeypatch.setattr(scoring, "LOGIT_ROWS", 5)
    base = tiny_base(architecture)
    engine, lora = Engine(base), random_lora(base)
    engine.adapters.add("a", lora)
    asked = [
        Continuations(
            prompt_ids=text(number, 1 + 7 * number % 30),
            continuations=tuple(text(100 * number + which, 1 + (number + which) % 6) for which in range(1 + number % 4)),
        )
        for number in range(12)
    ]
    for composition, own in ((BASE, None), (alone("a"), lora)):
        found = dict(score_continuations(engine, asked, composition))
        assert sorted(found) == list(range(12))
        for number, one in enumerate(asked):
            for ids, score in zip(one.continuations, found[number], strict=True):
                wanted = logprobs_alone(base, (*one.prompt_ids, *ids), own)[len(one.prompt_ids) - 1 :]
                assert score.num_tokens == len(ids)
                assert score.logprob == pytest.approx(float(wanted.gather(1, torch.tensor(ids)[:, None]).sum()), abs=1e-3)
                hits = (wanted.argmax(1) == torch.tensor(ids)).tolist()
                assert score.num_likeliest == next((place for place, hit in enumerate(hits) if not hit), len(ids))


def test_a_composition_is_the_sum_of_its_parts() -> None:
    base = tiny_base("gemma3")
    engine = Engine(base)
    loras = [random_lora(base, seed=seed) for seed in (1, 2)]
    for name, lora in zip("ab", loras, strict=True):
        engine.adapters.add(name, lora)
    asked = [Continuations(prompt_ids=text(1, 9), continuations=(text(2, 4),))]
    both = Composition((Part(digest="a", scale=0.5), Part(digest="b", scale=0.0)))
    half = Composition((Part(digest="a", scale=0.5),))
    whole = dict(score_continuations(engine, asked, alone("a")))[0][0].logprob
    found = [dict(score_continuations(engine, asked, own))[0][0].logprob for own in (both, half)]
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert abs(found[0] - whole) > 1e-3


def test_of_a_text_with_a_prompt_only_what_follows_counts() -> None:
    base, texts, given = BASES[0], [text(1, 30), text(2, 9), text(3, 12)], [20, 1, 11]
    found = dict(compare_texts(BASES[1], texts, [alone("a")], num_given=given))
    for number, (ids, num) in enumerate(zip(texts, given, strict=True)):
        (own,) = found[number]
        assert own.num_tokens == len(ids) - num
        for loss, lora in ((own.base_loss, None), (own.loss, BASES[2])):
            told = logprobs_alone(base, ids, lora)[num - 1 :].gather(1, torch.tensor(ids[num:])[:, None])
            assert loss == pytest.approx(-float(told.mean()), abs=1e-4)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=6), st.integers(0, 1000))
def test_distances_are_those_of_each_text_alone(lengths: list[int], seed: int) -> None:
    base, texts = BASES[0], [text(seed + number, length) for number, length in enumerate(lengths)]
    found = dict(compare_texts(BASES[1], texts, [alone("a"), BASE]))
    assert sorted(found) == list(range(len(texts)))
    for number, ids in enumerate(texts):
        was, now = (logprobs_alone(base, ids, lora) for lora in (None, BASES[2]))
        targets = torch.tensor(ids[1:])[:, None]
        own, nothing = found[number]
        assert own.num_tokens == len(ids) - 1
        assert own.base_loss == nothing.base_loss == pytest.approx(-float(was.gather(1, targets).mean()), abs=1e-4)
        assert own.loss == pytest.approx(-float(now.gather(1, targets).mean()), abs=1e-4)
        assert own.divergence == pytest.approx(float((was.exp() * (was - now)).sum(1).mean()), abs=1e-4)
        assert (nothing.loss, nothing.divergence) == (nothing.base_loss, 0.0)


def _prepared() -> tuple[Base, Engine, LoRA]:
    base = tiny_base("llama")
    engine, lora = Engine(base), random_lora(base)
    engine.adapters.add("a", lora)
    return base, engine, lora


BASES = _prepared()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Continuations(prompt_ids=(), continuations=((1,),)), "no tokens"),
        (Continuations(prompt_ids=(1,), continuations=()), "no tokens"),
        (Continuations(prompt_ids=(1,), continuations=((2,), ())), "no tokens"),
        (Continuations(prompt_ids=(1,) * 100_000, continuations=((2,),)), "longer than the"),
    ],
)
def test_what_cannot_be_scored_is_refused(asked: Continuations, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        list(score_continuations(BASES[1], [asked]))


def test_an_adapter_that_breaks_the_numbers_is_an_error() -> None:
    base, engine, _ = _prepared()
    broken = random_lora(base, seed=5)
    with torch.no_grad():
        for own in broken.weights.values():
            own.b.fill_(float("nan"))
    engine.adapters.insert("broken", broken)
    with pytest.raises(EngineError, match="no finite number"):
        list(score_continuations(engine, [Continuations(prompt_ids=(5, 6), continuations=((7,),))], alone("broken")))
    with pytest.raises(EngineError, match="no finite number"):
        list(compare_texts(engine, [(5, 6, 7)], [alone("broken")]))
