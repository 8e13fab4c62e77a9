"""Requests for `auto`: the adapter whose training prompts are like them, of those the caller may use; else the base."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from fakes import random_lora, write_sealed
from lorimer.data.card import build_card
from lorimer.data.dataset import write_dataset
from lorimer.data.example import Example, Message
from lorimer.data.split import Splits
from lorimer.errors import EngineError
from lorimer.inference.decoder import make_decoder
from lorimer.inference.engine import Engine, EngineConfig
from lorimer.inference.routing import ROUTING_FILE, make_profile, profile_to_bytes, states_of
from lorimer.model.adapter import Lock, save_adapter
from lorimer.model.base import Base
from lorimer.registry.promotion import promote
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry
from lorimer.serving import candidates as module
from lorimer.serving.candidates import Candidates
from lorimer.serving.worker import EngineWorker

WORDS = {"digits": "0123456789", "capitals": "QWXZJKVB", "marks": "#$%&*+=<>"}


def texts_of(kind: str, num: int, *, seed: int) -> list[str]:
    draw = random.Random(f"{kind}{seed}")
    return ["".join(draw.choices(WORDS[kind], k=40)) for _ in range(num)]


@pytest.fixture
def started(base: Base) -> Iterator[EngineWorker]:
    started = EngineWorker(Engine(base, EngineConfig(max_sequences=8, cache_bytes=8_000_000)))
    started.start()
    yield started
    started.stop()


@pytest.fixture
def candidates(started: EngineWorker, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Candidates:
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.0)
    return Candidates(started, registry)


@pytest.fixture
def register_kind(registry: Registry, base: Base, tmp_path: Path) -> Callable[..., AdapterVersion]:
    """Registers an adapter that learned from texts of one kind."""

    def make(kind: str, seed: int = 1, *, base_digest: str | None = None) -> AdapterVersion:
        rows = [
            Example(messages=(Message(role="user", content=text), Message(role="assistant", content="ok")), source="made up")
            for text in texts_of(kind, 40, seed=seed)
        ]
        splits = Splits(train=tuple(rows), validation=(), test=())
        dataset = write_dataset(kind, splits, build_card(kind, splits, curation={}, sources=(), findings=(), problems=()))
        folder = tmp_path / f"{kind}-{seed}"
        digests = {"base_digest": base_digest or base.digest, "template_digest": base.renderer.template_digest}
        lock = Lock(base_name=base.name, dataset_digest=dataset.digest, run_id="run-1", **digests)
        save_adapter(random_lora(base, seed=seed + 10 * len(kind)), folder, base, lock)
        lineage = {"base_name": base.name, "dataset_name": kind, "dataset_digest": dataset.digest, "run_id": "run-1", **digests}
        return registry.register(NewVersion(name=kind, source=folder, rank=4, alpha=8.0, num_parameters=1, **lineage))

    return make


def ids_of(base: Base, text: str) -> tuple[int, ...]:
    return base.renderer.render_prompt([Message(role="user", content=text)])


def wait_for_profiles(candidates: Candidates, wait_until: Callable[..., bool], *versions: AdapterVersion) -> None:
    candidates._find_router()
    assert wait_until(lambda: all((version.path / ROUTING_FILE).is_file() for version in versions))
    assert wait_until(lambda: len(candidates._find_router().candidates) == len(versions))


def test_requests_meet_the_adapter_of_their_kind(
    candidates: Candidates, register_kind: Callable[..., AdapterVersion], base: Base, wait_until: Callable[..., bool]
) -> None:
    digits, capitals = register_kind("digits"), register_kind("capitals")
    wait_for_profiles(candidates, wait_until, digits, capitals)
    allowed = {digits.digest, capitals.digest}
    for version in (digits, capitals):
        found = [candidates.decide(ids_of(base, text), allowed) for text in texts_of(version.name, 10, seed=9)]
        assert [decision.digest for decision in found].count(version.digest) >= 9
        assert {decision.digest for decision in found} <= {version.digest, None}
    strange = candidates.decide(ids_of(base, "How do I boil an egg for my breakfast?"), allowed)
    assert not strange.is_confident


def test_only_allowed_adapters_are_routed_to(
    candidates: Candidates, register_kind: Callable[..., AdapterVersion], base: Base, wait_until: Callable[..., bool]
) -> None:
    digits, capitals = register_kind("digits"), register_kind("capitals")
    wait_for_profiles(candidates, wait_until, digits, capitals)
    ids = ids_of(base, texts_of("digits", 1, seed=9)[0])
    assert candidates.decide(ids, {capitals.digest}).digest is None
    nothing = candidates.decide(ids, set())
    assert (nothing.adapter_id, nothing.score) == (None, 0.0)


def test_a_name_stands_for_its_champion_or_its_newest(
    candidates: Candidates, register_kind: Callable[..., AdapterVersion], registry: Registry
) -> None:
    first, second = register_kind("digits", 1), register_kind("digits", 2)
    register_kind("marks", base_digest="e" * 64)
    assert [version.id for version in candidates._find_versions()] == [second.id]
    promote(registry, first, overrides_gate=True, reason="no gate here")
    assert [version.id for version in candidates._find_versions()] == [first.id]


def test_quarantined_adapters_are_passed_over(
    candidates: Candidates, register_kind: Callable[..., AdapterVersion], base: Base, wait_until: Callable[..., bool]
) -> None:
    digits = register_kind("digits")
    wait_for_profiles(candidates, wait_until, digits)
    candidates.worker.loader._quarantined[digits.digest] = "because", ()
    assert candidates.decide(ids_of(base, texts_of("digits", 1, seed=9)[0]), {digits.digest}).adapter_id is None


def test_adapters_without_their_dataset_are_not_routed_to(
    candidates: Candidates,
    register_kind: Callable[..., AdapterVersion],
    home: Path,
    wait_until: Callable[..., bool],
    caplog: pytest.LogCaptureFixture,
) -> None:
    digits = register_kind("digits")
    for path in (home / "datasets").glob("*/*"):
        path.unlink()
    assert not candidates._find_router().candidates
    assert wait_until(lambda: "nothing is routed to digits@v1" in caplog.text)
    assert not (digits.path / ROUTING_FILE).exists()


def test_a_stopped_engine_is_an_error(candidates: Candidates, register_kind: Callable[..., AdapterVersion], base: Base) -> None:
    digits = register_kind("digits")
    candidates.worker.stop()
    with pytest.raises(EngineError, match="stopped"):
        candidates._states([(5, 6)], "")
    assert candidates._find_router().candidates == ()
    assert candidates.decide(ids_of(base, "1"), {digits.digest}).digest is None


def test_a_client_may_leave_the_choice_to_us(client: TestClient, base: Base, helpdesk: AdapterVersion) -> None:
    prompts = [ids_of(base, text) for text in texts_of("digits", 20, seed=1)]
    profile = make_profile(states_of(base, make_decoder(base), prompts))
    write_sealed(helpdesk.path, {ROUTING_FILE: profile_to_bytes(profile, base.digest)})

    def answerer(text: str) -> tuple[str, str]:
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 3}
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200
        assert float(response.headers["x-lorimer-route-score"]) <= 1
        return response.json()["model"], response.headers["x-lorimer-route"]

    assert answerer(texts_of("digits", 1, seed=9)[0]) == ("helpdesk@v1", "auto")
    assert answerer("How do I boil an egg for my breakfast?") == (base.name, "auto")
