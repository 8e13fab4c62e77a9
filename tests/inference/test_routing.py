"""Routing: requests go to the adapter that learned from prompts like them, to the base when none is near."""

from collections.abc import Sequence as ListOf
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fakes import tiny_base
from lorimer.errors import IntegrityError
from lorimer.inference.decoder import make_decoder
from lorimer.inference.engine import Engine, EngineConfig, generate
from lorimer.inference.routing import (
    NUM_PROMPTS,
    ROUTED_LEN,
    ROUTING_FILE,
    Candidate,
    Profile,
    Router,
    RoutingDecision,
    background_prompts,
    make_profile,
    profile_to_bytes,
    prompts_of,
    read_profile,
    states_of,
)
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.attention import PackedSegments, whole
from lorimer.model.base import Base
from lorimer.model.chat import Rendered

WIDTH = 24


def points(towards: int, num: int = 30, *, seed: int = 0, noise: float = 0.3) -> Tensor:
    """Hidden states (n, WIDTH) around one direction; all of them share a large one, as those of real models do."""
    generator = torch.Generator().manual_seed(100 * towards + seed)
    centre = torch.zeros(WIDTH)
    centre[towards] = 3.0
    centre[-1] = 50.0
    return centre + noise * torch.randn(num, WIDTH, generator=generator)


def candidate(at: int) -> Candidate:
    return Candidate(adapter_id=f"adapter{at}@v1", digest=str(at), profile=make_profile(points(at)))


@pytest.fixture(scope="module")
def router() -> Router:
    everyday = torch.cat([points(at, 4, seed=7, noise=1.0) for at in (20, 21, 22)])
    return Router([candidate(at) for at in range(4)], make_profile(everyday))


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


@pytest.mark.parametrize("at", range(4))
def test_requests_meet_the_adapter_that_learned_from_their_like(router: Router, at: int) -> None:
    for state in points(at, 10, seed=1, noise=0.2):
        decision = router.decide(state)
        assert (decision.adapter_id, decision.digest, decision.is_confident) == (f"adapter{at}@v1", str(at), True)
        assert decision.score > 0.4
        assert decision.runner_up != decision.adapter_id


@pytest.mark.parametrize(
    "state",
    [points(10, 1)[0], points(20, 1)[0], (points(0, 1, noise=0)[0] + points(1, 1, noise=0)[0]) / 2, torch.zeros(WIDTH)],
)
def test_requests_unlike_all_are_the_bases(router: Router, state: Tensor) -> None:
    decision = router.decide(state)
    assert decision.digest is None
    assert not decision.is_confident
    assert decision.adapter_id is not None  # the nearest, for the log


def test_only_what_is_allowed_is_a_candidate(router: Router) -> None:
    state = points(2, 1, seed=1)[0]
    decision = router.decide(state, lambda digest: digest != "2")
    assert decision.digest is None
    assert "adapter2@v1" not in (decision.adapter_id, decision.runner_up)
    assert router.decide(state, lambda digest: False) == RoutingDecision()
    assert router.has_any(lambda digest: digest == "2")
    assert not router.has_any(lambda digest: False)


def test_one_adapter_does_not_attract_everything() -> None:
    alone = Router([candidate(0)], make_profile(torch.cat([points(at, 8, noise=1.0) for at in range(8, 12)])))
    assert alone.decide(points(0, 1, seed=2)[0]).is_confident
    assert not any(alone.decide(points(at, 1, seed=2)[0]).is_confident for at in range(1, 12))


def test_without_adapters_the_base_answers() -> None:
    assert Router(()).decide(torch.zeros(WIDTH)) == RoutingDecision()
    assert not Router((), make_profile(points(0))).decide(torch.zeros(WIDTH)).is_confident


def test_a_profile_keeps_the_groups_of_its_prompts() -> None:
    groups = [points(at, 10)[:, [0, 1, 2, WIDTH - 1]] for at in range(3)]
    profile = make_profile(torch.cat(groups))
    assert len(profile.centres) == 4
    for group in groups:
        assert (profile.centres - group.mean(0)).norm(dim=1).min() < 1.5
    assert len(make_profile(points(0, 1)).centres) == 1
    assert torch.isfinite(make_profile(points(0, 1).expand(5, -1)).centres).all()


def mean_state(base: Base, ids: ListOf[int]) -> Tensor:
    with torch.inference_mode():
        hidden = base.hidden_states(torch.tensor(ids), torch.arange(len(ids)), PackedSegments(whole([len(ids)])), ())
        return hidden[1:].mean(0)


def test_states_are_the_bases_own(base: Base) -> None:
    prompts = [tuple(range(5, 5 + n)) for n in (2, 9, 40, 7)]
    for state, ids in zip(states_of(base, make_decoder(base), prompts), prompts, strict=True):
        torch.testing.assert_close(state, mean_state(base, ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens_per_step", [512, 7])
def test_the_engine_gives_states_in_passing(base: Base, tokens_per_step: int) -> None:
    engine = Engine(base, EngineConfig(max_tokens_per_step=tokens_per_step))
    ids = tuple(range(10, 90))
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    list(generate(engine, [Sequence(prompt_ids=ids, params=params)]))  # its blocks are in the cache, and must not be taken for states
    asked = [Sequence(prompt_ids=ids[:n], params=params, wants_state=True) for n in (80, 33, 2)]
    list(generate(engine, asked))
    for sequence in asked:
        assert sequence.state is not None
        torch.testing.assert_close(sequence.state, mean_state(base, sequence.prompt_ids), rtol=1e-4, atol=1e-5)
    after = Sequence(prompt_ids=ids, params=params)
    list(generate(engine, [after]))
    assert after.num_reused == 64  # the base goes on from what was computed


def test_states_survive_being_thrown_out(base: Base) -> None:
    engine = Engine(base)
    engine.cache.blocks.__init__(3)
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    asked = [Sequence(prompt_ids=tuple(range(start, start + 40)), params=params, wants_state=start == 60) for start in (10, 60)]
    list(generate(engine, asked))
    assert asked[1].state is not None


@pytest.mark.parametrize("row_len", [30, 2000])
def test_prompts_are_what_stands_before_answers(row_len: int) -> None:
    rows = [Rendered(ids=tuple(range(row_len)), supervised=(False,) * (row_len - 5) + (True,) * 5) for _ in range(1000)]
    prompts = prompts_of(rows)
    assert set(prompts) == {tuple(range(min(row_len - 5, ROUTED_LEN)))}
    assert len(prompts) == (NUM_PROMPTS if row_len == 30 else 17)


def test_prompts_of_plain_text_are_the_text() -> None:
    assert prompts_of([Rendered(ids=(2, 8, 9), supervised=(False, True, True))]) == [(2, 8, 9)]


def test_the_background_is_rendered_as_requests_are(base: Base) -> None:
    assert all(ids[0] == base.renderer.tokenizer.bos_token_id for ids in background_prompts(base.renderer))


def test_profiles_are_files(base: Base, tmp_path: Path) -> None:
    width = base.head.weight.shape[1]
    profile = make_profile(torch.randn(20, width, generator=torch.Generator().manual_seed(0)))
    assert read_profile(tmp_path, base) is None
    (tmp_path / ROUTING_FILE).write_bytes(profile_to_bytes(profile, base.digest))
    found = read_profile(tmp_path, base)
    assert isinstance(found, Profile)
    assert all(torch.equal(getattr(found, name), getattr(profile, name)) for name in Profile.__slots__)
    (tmp_path / ROUTING_FILE).write_bytes(profile_to_bytes(profile, "e" * 64))
    assert read_profile(tmp_path, base) is None


@pytest.mark.parametrize("kind", ["damaged", "narrow", "missing"])
def test_profiles_that_cannot_be_used_are_refused(base: Base, tmp_path: Path, kind: str) -> None:
    from safetensors.torch import save

    width = base.head.weight.shape[1]
    profile = make_profile(torch.randn(20, width, generator=torch.Generator().manual_seed(0)))
    data = {
        "damaged": profile_to_bytes(profile, base.digest)[:-30],
        "narrow": profile_to_bytes(replace(profile, mean=profile.mean[:3]), base.digest),
        "missing": save({"mean": profile.mean}, metadata={"version": "1", "base_digest": base.digest}),
    }
    (tmp_path / ROUTING_FILE).write_bytes(data[kind])
    with pytest.raises(IntegrityError, match="made again"):
        read_profile(tmp_path, base)
