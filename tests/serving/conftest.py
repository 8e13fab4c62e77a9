"""A tiny base with registered adapters, served: by an engine of its own in every test."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from fakes import random_lora, tiny_base
from lorimer.data.example import Message
from lorimer.inference.composition import alone
from lorimer.inference.engine import Engine, EngineConfig, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.adapter import Lock, load_adapter, save_adapter
from lorimer.model.base import Base
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry
from lorimer.serving.app import create_app
from lorimer.serving.worker import EngineWorker

SMALL = EngineConfig(max_sequences=8, max_tokens_per_step=256, cache_bytes=8_000_000)

Register = Callable[..., AdapterVersion]
TextOf = Callable[..., str]


@pytest.fixture(scope="session")
def base() -> Base:
    """One for all tests: it is frozen."""
    return tiny_base()


@pytest.fixture
def register(registry: Registry, base: Base, tmp_path: Path) -> Register:
    """Registers random adapters; equal seeds give equal bytes."""

    def make(name: str, seed: int, *, base_digest: str | None = None, rank: int = 4) -> AdapterVersion:
        lora = random_lora(base, seed=seed, rank=rank)
        digests = {"base_digest": base_digest or base.digest, "dataset_digest": "d" * 64}
        digests["template_digest"] = base.renderer.template_digest
        folder = tmp_path / "runs" / f"{name}-{seed}"
        save_adapter(lora, folder, base, Lock(base_name=base.name, run_id="run-1", **digests))
        new = NewVersion(
            name=name,
            source=folder,
            base_name=base.name,
            dataset_name="tickets",
            run_id="run-1",
            rank=rank,
            alpha=2.0 * rank,
            num_parameters=lora.num_parameters,
            **digests,
        )
        return registry.register(new)

    return make


@pytest.fixture
def helpdesk(register: Register) -> AdapterVersion:
    """A registered adapter."""
    return register("helpdesk", 1)


@pytest.fixture
def billing(register: Register) -> AdapterVersion:
    """Another, of another rank."""
    return register("billing", 2, rank=7)


@pytest.fixture
def worker(base: Base) -> EngineWorker:
    """Not started: the app does that."""
    return EngineWorker(Engine(base, SMALL))


@pytest.fixture
def app(worker: EngineWorker, registry: Registry, helpdesk: AdapterVersion, billing: AdapterVersion) -> FastAPI:
    """The API over the base and two adapters."""
    return create_app(worker, registry)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """Requests without a socket; errors of ours come back as replies, as they would from a server."""
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def asked(worker: EngineWorker, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Sequence]]:
    """Every sequence the engine was given."""
    seen, add = [], worker.engine.add

    def watch(sequence: Sequence) -> None:
        seen.append(sequence)
        add(sequence)

    monkeypatch.setattr(worker.engine, "add", watch)
    return seen


@pytest.fixture
def text_of(base: Base) -> TextOf:
    """What the engine alone says: one sequence, no server."""

    def ask(question: str, version: AdapterVersion | None = None, *, max_tokens: int = 12) -> str:
        engine = Engine(base, SMALL)
        if version is not None:
            engine.adapters.add(version.digest, load_adapter(version.path, base))
        prompt_ids = base.renderer.render_prompt([Message(role="user", content=question)])
        sequence = Sequence(
            prompt_ids=prompt_ids, params=SamplingParams(max_tokens=max_tokens), composition=alone(version and version.digest)
        )
        list(generate(engine, [sequence]))
        return base.renderer.decode(sequence.output_ids)

    return ask


@pytest.fixture
def wait_until() -> Callable[..., bool]:
    """Whether something becomes true in time."""

    def wait(is_so: Callable[[], bool], seconds: float = 20.0) -> bool:
        deadline = time.monotonic() + seconds
        while not is_so() and time.monotonic() < deadline:
            time.sleep(0.01)
        return is_so()

    return wait
