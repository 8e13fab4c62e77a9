"""Adapters are proved before they answer: what fails is quarantined, told, shown, tried again; the others go on."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient

from fakes import random_lora, write_sealed
from lorimer.errors import QuarantineError
from lorimer.inference.composition import alone
from lorimer.inference.engine import Engine, EngineConfig
from lorimer.inference.fingerprint import FINGERPRINT_FILE, Prober, norms_of, read_fingerprint
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence
from lorimer.model.adapter import WEIGHTS_FILE, Lock, load_adapter, save_adapter
from lorimer.model.base import Base
from lorimer.registry.records import AdapterVersion
from lorimer.serving.metrics import Metrics
from lorimer.serving.worker import EngineWorker

CONFIG = EngineConfig(max_sequences=8, max_tokens_per_step=256, cache_bytes=8_000_000)


@pytest.fixture
def engine(base: Base) -> Engine:
    return Engine(base, CONFIG)


@pytest.fixture
def started(engine: Engine) -> Iterator[EngineWorker]:
    started = EngineWorker(engine)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def record(engine: Engine) -> Callable[[AdapterVersion], None]:
    """Writes a version's fingerprint, as registration does."""

    def write(version: AdapterVersion) -> None:
        lora = load_adapter(version.path, engine.base)
        norms = norms_of(lora, engine.decoder.dense_weight)
        fingerprint = Prober(engine.base, engine.decoder).take(version.digest, engine.adapters.prepare(lora), norms)
        write_sealed(version.path, {FINGERPRINT_FILE: fingerprint.to_bytes()})

    return write


@pytest.fixture
def proved(helpdesk: AdapterVersion, record: Callable[[AdapterVersion], None]) -> AdapterVersion:
    """A version with its fingerprint."""
    record(helpdesk)
    return helpdesk


def ask(started: EngineWorker, version: AdapterVersion) -> list[int]:
    sequence = Sequence(prompt_ids=(7, 8, 9), params=SamplingParams(max_tokens=6, ignore_eos=True), composition=alone(version.digest))

    async def run() -> list[int]:
        async for _ in started.submit(sequence, folders={version.digest: version.path}):
            pass
        return sequence.output_ids

    return asyncio.run(run())


def damage(version: AdapterVersion, **changes: object) -> Callable[[], None]:
    """Change a version's fingerprint; returns what puts it right again."""
    right = read_fingerprint(version.path)
    assert right is not None
    write_sealed(version.path, {FINGERPRINT_FILE: replace(right, **changes).to_bytes()})
    return lambda: write_sealed(version.path, {FINGERPRINT_FILE: right.to_bytes()})


def gauges(started: EngineWorker, *versions: AdapterVersion) -> dict[str, float]:
    """What the metrics say of proofs."""
    text = Metrics(started, names=lambda: {version.digest: version.id for version in versions}).to_text().decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(("lorimer_adapter_proof", "lorimer_adapters_quar"))]
    return {name: float(value) for name, value in lines}


def test_the_right_adapter_is_proved_and_answers(started: EngineWorker, proved: AdapterVersion) -> None:
    assert ask(started, proved)
    assert started.proofs == {proved.digest: True}
    assert gauges(started, proved) == {"lorimer_adapters_quarantined": 0.0, 'lorimer_adapter_proof{adapter="helpdesk@v1"}': 1.0}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"base_digest": "e" * 64}, "of base 'eeee"),
        ({"template_digest": "e" * 64}, "of chat template 'eeee"),
        ({"norms": {}}, "other weights"),
    ],
)
def test_what_fails_its_proof_is_quarantined_and_the_others_go_on(
    started: EngineWorker, proved: AdapterVersion, billing: AdapterVersion, changes: dict[str, object], reason: str
) -> None:
    damage(proved, **changes)
    with pytest.raises(QuarantineError, match=reason):
        ask(started, proved)
    assert ask(started, billing)
    assert proved.digest not in started.engine.adapters
    assert started.proofs == {billing.digest: True, proved.digest: False}
    found = gauges(started, proved, billing)
    assert found["lorimer_adapters_quarantined"] == 1
    assert found['lorimer_adapter_proof{adapter="helpdesk@v1"}'] == 0


def test_another_versions_weights_under_the_recorded_fingerprint(
    started: EngineWorker, proved: AdapterVersion, register: Callable[..., AdapterVersion], record: Callable[[AdapterVersion], None]
) -> None:
    other = register("helpdesk", 9)
    record(other)
    theirs, ours = read_fingerprint(other.path), read_fingerprint(proved.path)
    assert theirs is not None
    assert ours is not None
    write_sealed(other.path, {FINGERPRINT_FILE: replace(ours, adapter_digest=other.digest).to_bytes()})
    with pytest.raises(QuarantineError, match="other weights"):
        ask(started, other)
    write_sealed(other.path, {FINGERPRINT_FILE: replace(ours, adapter_digest=other.digest, norms=theirs.norms).to_bytes()})
    with pytest.raises(QuarantineError, match="answers otherwise"):
        ask(started, other)


def test_base_weights_passed_off_as_the_adapter(
    started: EngineWorker, proved: AdapterVersion, base: Base, register: Callable[..., AdapterVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = started.engine.adapters.prepare

    def forget_b(lora: object) -> object:
        ready = prepare(lora)
        return replace(ready, weights={name: replace(own, b=torch.zeros_like(own.b)) for name, own in ready.weights.items()})

    with monkeypatch.context() as patch:
        patch.setattr(started.engine.adapters, "prepare", forget_b)  # files and digest are right, yet the base would answer
        with pytest.raises(QuarantineError, match="it has no effect"):
            ask(started, proved)
    (proved.path / FINGERPRINT_FILE).touch()
    assert ask(started, proved)


def test_quarantine_is_logged_once_and_ends_when_the_files_are_right(
    started: EngineWorker, proved: AdapterVersion, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore, asked, prove = damage(proved, norms={}), [], started.loader.prober.prove
    monkeypatch.setattr(started.loader.prober, "prove", lambda *given: (asked.append(1), prove(*given))[1])
    for _ in range(3):
        with pytest.raises(QuarantineError):
            ask(started, proved)
    assert len(asked) == 1  # its files are as they were: there is nothing to try again
    assert [line.levelno for line in caplog.records] == [logging.ERROR]
    restore()
    assert ask(started, proved)
    assert started.proofs == {proved.digest: True}
    assert "out of quarantine" in caplog.text


def test_a_fingerprint_that_cannot_be_read_is_quarantine(started: EngineWorker, proved: AdapterVersion) -> None:
    write_sealed(proved.path, {FINGERPRINT_FILE: b"{"})
    with pytest.raises(QuarantineError, match="cannot be read"):
        ask(started, proved)
    assert asyncio.run(started.unload(proved.digest))
    assert started.proofs == {}


def test_an_older_version_gets_its_fingerprint_with_a_warning(
    started: EngineWorker, helpdesk: AdapterVersion, caplog: pytest.LogCaptureFixture, wait_until: Callable[..., bool]
) -> None:
    assert ask(started, helpdesk)
    assert "had no fingerprint" in caplog.text
    assert wait_until((helpdesk.path / FINGERPRINT_FILE).is_file)
    caplog.clear()
    asyncio.run(started.unload(helpdesk.digest))
    assert ask(started, helpdesk)
    assert not caplog.records


def test_an_older_version_made_behind_another_template_is_quarantined(started: EngineWorker, base: Base, tmp_path: Path) -> None:
    from lorimer.registry.registry import digest_of_folder

    lock = Lock(base_name=base.name, base_digest=base.digest, template_digest="e" * 64, dataset_digest="", run_id="")
    save_adapter(random_lora(base), tmp_path / "adapter", base, lock)
    digest = digest_of_folder(tmp_path / "adapter")
    with pytest.raises(QuarantineError, match="chat template 'eeee"):
        asyncio.run(started.load(digest, tmp_path / "adapter"))
    assert started.proofs == {digest: False}


def test_weights_that_changed_on_disk_are_quarantined_and_not_read_again_until_they_change(
    started: EngineWorker, proved: AdapterVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, num_read, read = proved.path / WEIGHTS_FILE, [], started.loader.read
    monkeypatch.setattr(started.loader, "read", lambda *given: (num_read.append(1), read(*given))[1])
    right = weights.read_bytes()
    weights.write_bytes(right[:-4] + b"abcd")
    for _ in range(3):
        with pytest.raises(QuarantineError, match="its files have digest"):
            ask(started, proved)
    assert len(num_read) == 1
    assert started.proofs == {proved.digest: False}
    weights.write_bytes(right)
    assert ask(started, proved)


@pytest.mark.parametrize("name", [FINGERPRINT_FILE, "adapter.lock.json", "chat_template.jinja", "adapter.seal.json"])
def test_a_byte_changed_anywhere_in_the_folder_is_quarantine(started: EngineWorker, proved: AdapterVersion, name: str) -> None:
    file = proved.path / name
    right = file.read_bytes()
    file.write_bytes(right[:-2] + bytes([right[-2] ^ 1]) + right[-1:])
    with pytest.raises(QuarantineError, match=name):
        ask(started, proved)
    assert started.proofs == {proved.digest: False}
    file.write_bytes(right)
    assert ask(started, proved)


def test_a_proof_is_replayed_at_every_load(started: EngineWorker, proved: AdapterVersion) -> None:
    assert ask(started, proved)
    damage(proved, template_digest="e" * 64)
    assert ask(started, proved)  # resident: nothing was loaded
    asyncio.run(started.unload(proved.digest))
    with pytest.raises(QuarantineError):
        ask(started, proved)


def test_a_client_is_told_of_quarantine(client: TestClient, helpdesk: AdapterVersion, billing: AdapterVersion) -> None:
    write_sealed(helpdesk.path, {FINGERPRINT_FILE: b"{}"})
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    refused = client.post("/v1/chat/completions", json={**body, "model": "helpdesk"})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "adapter_quarantined"
    assert "its fingerprint cannot be read" in refused.json()["error"]["message"]
    assert str(helpdesk.path) not in refused.text
    assert client.post("/v1/chat/completions", json={**body, "model": "billing"}).status_code == 200
    metrics = client.get("/metrics").text
    assert "lorimer_adapters_quarantined 1.0" in metrics
    assert 'lorimer_adapter_proof{adapter="helpdesk@v1"} 0.0' in metrics
    assert 'lorimer_adapter_proof{adapter="billing@v1"} 1.0' in metrics
