"""The engine's thread: many requests in one batch, adapters loaded beside it, failures that end requests and not the thread."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lorimer.errors import AdapterError, EngineError, IntegrityError
from lorimer.inference.engine import Engine, EngineConfig, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.adapter import load_adapter
from lorimer.model.base import Base
from lorimer.registry.records import AdapterVersion
from lorimer.serving.worker import EngineWorker

CONFIG = EngineConfig(max_sequences=8, max_tokens_per_step=256, cache_bytes=8_000_000)


class OddEngine(Engine):
    """An engine that can be slowed down and made to fail."""

    pause_seconds = 0.0
    failures = 0

    def step(self) -> list[Sequence]:
        time.sleep(self.pause_seconds)
        if self.failures and self.scheduler.schedule():
            self.failures -= 1
            raise RuntimeError("the product went wrong")
        return super().step()


@pytest.fixture
def engine(base: Base) -> OddEngine:
    return OddEngine(base, CONFIG)


@pytest.fixture
def worker(engine: OddEngine) -> Iterator[EngineWorker]:
    worker = EngineWorker(engine)
    worker.start()
    yield worker
    worker.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "engine"]


def new_sequence(text: str, adapter: str | None = None, max_tokens: int = 12) -> Sequence:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return Sequence(prompt_ids=tuple(text.encode()), params=params, adapter=adapter)


async def run(worker: EngineWorker, *sequences: Sequence, folder: Path | None = None) -> list[list[int]]:
    """Submit, and gather the ids of each sequence from its progress."""
    ids: dict[int, list[int]] = {sequence.id: [] for sequence in sequences}
    async for progress in worker.submit(*sequences, folder=folder):
        ids[progress.sequence.id] += progress.new_ids
    return list(ids.values())


async def run_all(worker: EngineWorker, submissions: list[tuple[Sequence, Path | None]]) -> list[list[list[int]] | BaseException]:
    tasks = [run(worker, sequence, folder=folder) for sequence, folder in submissions]
    return await asyncio.gather(*tasks, return_exceptions=True)


def ids_alone(base: Base, text: str, version: AdapterVersion | None) -> list[int]:
    """What the engine says to one sequence that shares its batch with nobody."""
    engine = Engine(base, CONFIG)
    if version is not None:
        engine.adapters.add(version.digest, load_adapter(version.path, base))
    (sequence,) = generate(engine, [new_sequence(text, version and version.digest)])
    return sequence.output_ids


def test_adapters_share_a_batch_and_answer_as_alone(
    base: Base, worker: EngineWorker, helpdesk: AdapterVersion, billing: AdapterVersion
) -> None:
    asked = [(f"question {i}", version) for i in range(4) for version in (None, helpdesk, billing)]
    submissions = [(new_sequence(text, version and version.digest), version and version.path) for text, version in asked]
    found = asyncio.run(run_all(worker, submissions))
    assert found == [[ids_alone(base, text, version)] for text, version in asked]


def test_sequences_of_one_submission_end_one_by_one(worker: EngineWorker) -> None:
    short, long = new_sequence("a", max_tokens=2), new_sequence("b", max_tokens=5)
    assert [len(ids) for ids in asyncio.run(run(worker, short, long))] == [2, 5]


def test_an_adapter_is_read_once_for_all_who_wait(worker: EngineWorker, engine: OddEngine, helpdesk: AdapterVersion) -> None:
    submissions = [(new_sequence("a", helpdesk.digest), helpdesk.path) for _ in range(5)]
    assert len(asyncio.run(run_all(worker, submissions))) == 5
    assert engine.adapters.digests == [helpdesk.digest]


def test_adapters_in_use_are_not_evicted(
    worker: EngineWorker, engine: OddEngine, helpdesk: AdapterVersion, billing: AdapterVersion
) -> None:
    engine.adapters.max_bytes = 1
    versions = [helpdesk, billing] * 3
    found = asyncio.run(run_all(worker, [(new_sequence("a", version.digest, 40), version.path) for version in versions]))
    assert not [error for error in found if isinstance(error, BaseException)]
    assert engine.adapters.digests == [billing.digest] or engine.adapters.digests == [helpdesk.digest, billing.digest]


def test_changed_files_are_refused_and_the_next_request_goes_on(
    worker: EngineWorker, helpdesk: AdapterVersion, billing: AdapterVersion
) -> None:
    weights = helpdesk.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(IntegrityError, match="registered was"):
        asyncio.run(run(worker, new_sequence("a", helpdesk.digest), folder=helpdesk.path))
    assert asyncio.run(run(worker, new_sequence("a", billing.digest), folder=billing.path))


def test_missing_files_are_refused(worker: EngineWorker, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="missing"):
        asyncio.run(run(worker, new_sequence("a", "f" * 64), folder=tmp_path))
    with pytest.raises(EngineError, match="not resident"):
        asyncio.run(run(worker, new_sequence("a", "f" * 64)))


@pytest.mark.parametrize("sequence", [new_sequence(""), new_sequence("a", max_tokens=100_000), new_sequence("a", max_tokens=0)])
def test_what_the_engine_refuses_is_an_error(worker: EngineWorker, sequence: Sequence) -> None:
    with pytest.raises(EngineError):
        asyncio.run(run(worker, new_sequence("fine"), sequence))
    assert worker.num_running == worker.num_waiting == 0


def test_a_failed_step_ends_its_requests_only(worker: EngineWorker, engine: OddEngine, base: Base) -> None:
    engine.scheduler.max_sequences, engine.failures = 1, 1
    first, second = asyncio.run(run_all(worker, [(new_sequence("a"), None), (new_sequence("b"), None)]))
    assert isinstance(first, EngineError)
    assert "RuntimeError" in str(first)
    assert second == [ids_alone(base, "b", None)]
    assert worker.is_running
    assert len(engine.cache.free_blocks) == engine.cache.num_blocks


def test_cancelled_sequences_end_soon_and_free_their_blocks(worker: EngineWorker, engine: OddEngine) -> None:
    engine.pause_seconds = 0.02

    async def cancel_after_three() -> tuple[int, str | None]:
        sequence, num_seen, reason = new_sequence("a", max_tokens=400), 0, None
        async for progress in worker.submit(sequence):
            num_seen, reason = num_seen + len(progress.new_ids), progress.finish_reason
            if num_seen == 3:
                worker.cancel(sequence)
        return num_seen, reason

    num_seen, reason = asyncio.run(cancel_after_three())
    assert num_seen < 10
    assert reason == "aborted"
    assert len(engine.cache.free_blocks) == engine.cache.num_blocks


def test_who_stops_reading_cancels(worker: EngineWorker, engine: OddEngine, wait_until: Callable[..., bool]) -> None:
    engine.pause_seconds = 0.02

    async def read_one() -> None:
        stream = worker.submit(new_sequence("a", max_tokens=400))
        await anext(stream)
        await stream.aclose()

    asyncio.run(read_one())
    assert wait_until(lambda: worker.num_running == worker.num_waiting == 0, 3)


def test_cancelling_while_the_adapter_is_read(worker: EngineWorker, engine: OddEngine, helpdesk: AdapterVersion) -> None:
    reading, may_go_on = threading.Event(), threading.Event()
    load = worker._load

    def load_slowly(digest: str, folder: Path) -> object:
        reading.set()
        may_go_on.wait(10)
        return load(digest, folder)

    worker._load = load_slowly

    async def cancel_at_once() -> list[str | None]:
        sequence, reasons = new_sequence("a", helpdesk.digest), []
        task = asyncio.create_task(_reasons(worker, sequence, helpdesk.path, reasons))
        await asyncio.to_thread(reading.wait, 10)
        worker.cancel(sequence)
        await task
        may_go_on.set()
        return reasons

    assert asyncio.run(cancel_at_once()) == ["aborted"]
    assert asyncio.run(run(worker, new_sequence("b", helpdesk.digest), folder=helpdesk.path))


async def _reasons(worker: EngineWorker, sequence: Sequence, folder: Path, reasons: list[str | None]) -> None:
    async for progress in worker.submit(sequence, folder=folder):
        reasons.append(progress.finish_reason)


def test_the_engine_steps_while_an_adapter_is_read(worker: EngineWorker, helpdesk: AdapterVersion) -> None:
    may_go_on = threading.Event()
    load = worker._load
    worker._load = lambda digest, folder: (may_go_on.wait(20), load(digest, folder))[1]

    async def ask_both() -> None:
        cold = asyncio.create_task(run(worker, new_sequence("a", helpdesk.digest), folder=helpdesk.path))
        await run(worker, new_sequence("b"))
        assert not cold.done()
        may_go_on.set()
        await cold

    asyncio.run(ask_both())


def test_stopping_ends_requests_with_an_error(worker: EngineWorker, engine: OddEngine) -> None:
    engine.pause_seconds = 0.02

    async def stop_in_the_middle() -> None:
        stream = worker.submit(new_sequence("a", max_tokens=400))
        await anext(stream)
        start = time.monotonic()
        await asyncio.to_thread(worker.stop)
        assert time.monotonic() - start < 2
        with pytest.raises(EngineError, match="stopped"):
            async for _ in stream:
                pass
        with pytest.raises(EngineError, match="no requests are taken"):
            await run(worker, new_sequence("b"))

    asyncio.run(stop_in_the_middle())
    assert not worker.is_running


def test_stopping_with_grace_lets_answers_end(worker: EngineWorker, engine: OddEngine) -> None:
    engine.pause_seconds = 0.01

    async def stop_in_the_middle() -> list[list[int]]:
        task = asyncio.create_task(run(worker, new_sequence("a", max_tokens=20)))
        while not worker.num_running:
            await asyncio.sleep(0.005)
        await asyncio.to_thread(worker.stop, grace_seconds=20)
        return await task

    assert [len(ids) for ids in asyncio.run(stop_in_the_middle())] == [20]


def test_a_dead_thread_fails_everybody(worker: EngineWorker, engine: OddEngine, caplog: pytest.LogCaptureFixture) -> None:
    engine.scheduler.remove = None  # so that ending the failed step's requests fails too
    engine.failures = 1
    with pytest.raises(EngineError, match="stopped"):
        asyncio.run(run(worker, new_sequence("a")))
    with pytest.raises(EngineError, match="no requests are taken"):
        asyncio.run(run(worker, new_sequence("b")))
    assert not worker.is_running
    assert "the engine's thread died" in caplog.text


@pytest.mark.parametrize("wanted", [{"temperature": 1e-320}, {"temperature": 1.0, "top_p": 0.0}])
def test_extreme_sampling_takes_the_likeliest(worker: EngineWorker, base: Base, wanted: dict[str, float]) -> None:
    sequence = new_sequence("a")
    sequence.params = replace(sequence.params, **wanted)
    assert asyncio.run(run(worker, sequence)) == [ids_alone(base, "a", None)]


def test_sampling_with_a_seed_repeats(worker: EngineWorker) -> None:
    def ask(seed: int) -> list[list[int]]:
        sequence = new_sequence("a")
        sequence.params = replace(sequence.params, temperature=1.0, seed=seed)
        return asyncio.run(run(worker, sequence))

    assert ask(3) == ask(3) != ask(4)
    assert ask(-1)
