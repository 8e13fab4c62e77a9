"""The engine's thread: many requests in one batch, adapters loaded beside it, failures that end requests and not the thread."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lorimer.errors import AdapterError, EngineError, QuarantineError
from lorimer.inference.composition import Composition, Part, alone
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
    return Sequence(prompt_ids=tuple(text.encode()), params=params, composition=alone(adapter))


def folders_of(*versions: AdapterVersion | None) -> dict[str, Path]:
    return {version.digest: version.path for version in versions if version is not None}


async def run(worker: EngineWorker, *sequences: Sequence, folders: dict[str, Path] | None = None) -> list[list[int]]:
    """Submit, and gather the ids of each sequence from its progress."""
    ids: dict[int, list[int]] = {sequence.id: [] for sequence in sequences}
    async for progress in worker.submit(*sequences, folders=folders or {}):
        ids[progress.sequence.id] += progress.new_ids
    return list(ids.values())


async def run_all(worker: EngineWorker, asked: list[tuple[Sequence, AdapterVersion | None]]) -> list[list[list[int]] | BaseException]:
    tasks = [run(worker, sequence, folders=folders_of(version)) for sequence, version in asked]
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
    submissions = [(new_sequence(text, version and version.digest), version) for text, version in asked]
    found = asyncio.run(run_all(worker, submissions))
    assert found == [[ids_alone(base, text, version)] for text, version in asked]


def test_sequences_of_one_submission_end_one_by_one(worker: EngineWorker) -> None:
    short, long = new_sequence("a", max_tokens=2), new_sequence("b", max_tokens=5)
    assert [len(ids) for ids in asyncio.run(run(worker, short, long))] == [2, 5]


def test_an_adapter_is_read_once_for_all_who_wait(worker: EngineWorker, engine: OddEngine, helpdesk: AdapterVersion) -> None:
    submissions = [(new_sequence("a", helpdesk.digest), helpdesk) for _ in range(5)]
    assert len(asyncio.run(run_all(worker, submissions))) == 5
    assert engine.adapters.digests == [helpdesk.digest]


def test_adapters_in_use_are_not_evicted(
    worker: EngineWorker, engine: OddEngine, helpdesk: AdapterVersion, billing: AdapterVersion
) -> None:
    engine.adapters.max_bytes = 1
    versions = [helpdesk, billing] * 3
    found = asyncio.run(run_all(worker, [(new_sequence("a", version.digest, 40), version) for version in versions]))
    assert not [error for error in found if isinstance(error, BaseException)]
    assert set(engine.adapters.digests) & {helpdesk.digest, billing.digest}


def test_changed_files_are_refused_and_the_next_request_goes_on(
    worker: EngineWorker, helpdesk: AdapterVersion, billing: AdapterVersion
) -> None:
    weights = helpdesk.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(QuarantineError, match="its files have digest"):
        asyncio.run(run(worker, new_sequence("a", helpdesk.digest), folders=folders_of(helpdesk)))
    assert asyncio.run(run(worker, new_sequence("a", billing.digest), folders=folders_of(billing)))


def test_missing_files_are_refused(worker: EngineWorker, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="missing"):
        asyncio.run(run(worker, new_sequence("a", "f" * 64), folders={"f" * 64: tmp_path}))
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
    assert engine.cache.blocks.num_idle == engine.cache.blocks.num_blocks


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
    assert engine.cache.blocks.num_idle == engine.cache.blocks.num_blocks


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
    read = worker.loader.read

    def read_slowly(digest: str, folder: Path) -> object:
        reading.set()
        may_go_on.wait(10)
        return read(digest, folder)

    worker.loader.read = read_slowly

    async def cancel_at_once() -> list[str | None]:
        sequence, reasons = new_sequence("a", helpdesk.digest), []
        task = asyncio.create_task(_reasons(worker, sequence, folders_of(helpdesk), reasons))
        await asyncio.to_thread(reading.wait, 10)
        worker.cancel(sequence)
        await task
        may_go_on.set()
        return reasons

    assert asyncio.run(cancel_at_once()) == ["aborted"]
    assert not any(worker.engine.adapters._num_users.values())  # what was never let in holds nothing
    assert asyncio.run(run(worker, new_sequence("b", helpdesk.digest), folders=folders_of(helpdesk)))


async def _reasons(worker: EngineWorker, sequence: Sequence, folders: dict[str, Path], reasons: list[str | None]) -> None:
    async for progress in worker.submit(sequence, folders=folders):
        reasons.append(progress.finish_reason)


def test_the_engine_steps_while_an_adapter_is_read(worker: EngineWorker, helpdesk: AdapterVersion) -> None:
    may_go_on = threading.Event()
    read = worker.loader.read
    worker.loader.read = lambda digest, folder: (may_go_on.wait(20), read(digest, folder))[1]

    async def ask_both() -> None:
        cold = asyncio.create_task(run(worker, new_sequence("a", helpdesk.digest), folders=folders_of(helpdesk)))
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


def test_a_composition_waits_for_all_its_adapters(
    worker: EngineWorker, base: Base, helpdesk: AdapterVersion, billing: AdapterVersion
) -> None:
    worker.engine.adapters.max_bytes = 1  # each would push the other out, were it not held
    both = Composition((Part(digest=helpdesk.digest, scale=0.5), Part(digest=billing.digest)))
    sequence, engine = new_sequence("a"), Engine(base, CONFIG)
    sequence.composition = both
    found = asyncio.run(run(worker, sequence, folders=folders_of(helpdesk, billing)))
    for version in (helpdesk, billing):
        engine.adapters.add(version.digest, load_adapter(version.path, base))
    again = new_sequence("a")
    again.composition = both
    (wanted,) = generate(engine, [again])
    assert found == [wanted.output_ids] != [ids_alone(base, "a", helpdesk)]


def test_one_missing_adapter_fails_its_composition_and_frees_the_others(worker: EngineWorker, helpdesk: AdapterVersion) -> None:
    sequence = new_sequence("a")
    sequence.composition = Composition((Part(digest=helpdesk.digest), Part(digest="f" * 64)))
    with pytest.raises(EngineError, match="no folder"):
        asyncio.run(run(worker, sequence, folders=folders_of(helpdesk)))
    assert not any(worker.engine.adapters._num_users.values())


def test_load_makes_resident_and_unload_frees(worker: EngineWorker, engine: OddEngine, helpdesk: AdapterVersion) -> None:
    async def load_and_unload() -> list[object]:
        await worker.load(helpdesk.digest, helpdesk.path)
        await worker.load(helpdesk.digest, helpdesk.path)
        return [helpdesk.digest in engine.adapters, await worker.unload(helpdesk.digest), helpdesk.digest in engine.adapters]

    assert asyncio.run(load_and_unload()) == [True, True, False]
    assert engine.adapters.num_bytes == 0
    assert asyncio.run(worker.unload("f" * 64))
    assert asyncio.run(run(worker, new_sequence("a", helpdesk.digest), folders=folders_of(helpdesk)))  # asked for, it comes back


def test_load_gives_the_errors_of_requests(worker: EngineWorker, tmp_path: Path, helpdesk: AdapterVersion) -> None:
    with pytest.raises(AdapterError, match="missing"):
        asyncio.run(worker.load("f" * 64, tmp_path))
    with pytest.raises(QuarantineError, match="its files have digest"):
        asyncio.run(worker.load("f" * 64, helpdesk.path))


def test_unload_lets_who_uses_the_adapter_end(worker: EngineWorker, engine: OddEngine, base: Base, helpdesk: AdapterVersion) -> None:
    engine.pause_seconds = 0.01

    async def unload_in_the_middle() -> tuple[bool, list[int]]:
        stream, ids, is_free = worker.submit(new_sequence("a", helpdesk.digest, 30), folders=folders_of(helpdesk)), list[int](), True
        async for progress in stream:
            if not ids:
                is_free = await worker.unload(helpdesk.digest)
            ids += progress.new_ids
        return is_free, ids

    is_free, ids = asyncio.run(unload_in_the_middle())
    assert not is_free
    assert ids[:12] == ids_alone(base, "a", helpdesk)
    assert helpdesk.digest not in engine.adapters


def test_a_name_registered_anew_answers_anew_while_old_requests_keep_theirs(
    worker: EngineWorker, engine: OddEngine, base: Base, register: Callable[..., AdapterVersion]
) -> None:
    engine.pause_seconds = 0.005
    first, second = register("helpdesk", 1), register("helpdesk", 5)

    async def ask_across() -> list[list[list[int]]]:
        old = asyncio.create_task(run(worker, new_sequence("a", first.digest, 40), folders=folders_of(first)))
        while not worker.num_running:
            await asyncio.sleep(0.002)
        await worker.unload(first.digest)
        new = await run(worker, new_sequence("a", second.digest), folders=folders_of(second))
        return [await old, new]

    (old,), (new,) = asyncio.run(ask_across())
    assert old[:12] == ids_alone(base, "a", first)
    assert new == ids_alone(base, "a", second) != old[:12]
    assert engine.adapters.digests == [second.digest]


def test_what_waits_for_the_thread_ends_with_it(worker: EngineWorker, engine: OddEngine, helpdesk: AdapterVersion) -> None:
    may_go_on = threading.Event()
    read = worker.loader.read
    worker.loader.read = lambda digest, folder: (may_go_on.wait(20), read(digest, folder))[1]

    async def stop_while_loading() -> None:
        task = asyncio.create_task(worker.load(helpdesk.digest, helpdesk.path))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(worker.stop)
        with pytest.raises(EngineError, match="stopped"):
            await task
        with pytest.raises(EngineError, match="stopped"):
            await worker.unload(helpdesk.digest)

    asyncio.run(stop_while_loading())
    may_go_on.set()
