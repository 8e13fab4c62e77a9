"""What registration keeps beside an adapter is what serving holds it to."""

import asyncio
from pathlib import Path

import pytest

from fakes import random_lora, tiny_base
from lorimer.data.example import Message
from lorimer.inference.engine import Engine
from lorimer.inference.fingerprint import FINGERPRINT_FILE
from lorimer.inference.routing import ROUTING_FILE, read_profile
from lorimer.model.adapter import Lock, save_adapter
from lorimer.pipeline import describe
from lorimer.registry.records import NewVersion
from lorimer.registry.registry import Registry
from lorimer.serving.worker import EngineWorker


@pytest.mark.parametrize("architecture", ["gemma3", "phi"])  # one that is served as fused products, one by its own modules
def test_what_was_described_at_registration_is_proved_at_load(
    registry: Registry, tmp_path: Path, architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_base(architecture)
    digests = {"base_digest": base.digest, "template_digest": base.renderer.template_digest, "dataset_digest": "d" * 64}
    save_adapter(random_lora(base), tmp_path / "adapter", base, Lock(base_name=base.name, run_id="run-1", **digests))
    rows = [base.renderer.render([Message(role="user", content=f"{n}?"), Message(role="assistant", content="yes")]) for n in range(9)]
    companions = describe(tmp_path / "adapter", base, rows)
    assert set(companions) == {FINGERPRINT_FILE, ROUTING_FILE}
    lineage = {"base_name": base.name, "dataset_name": "questions", "run_id": "run-1", "rank": 4, "alpha": 8.0, "num_parameters": 1}
    version = registry.register(NewVersion(name="yes", source=tmp_path / "adapter", companions=companions, **lineage, **digests))
    assert read_profile(version.path, base) is not None
    worker = EngineWorker(Engine(base))
    worker.start()
    try:
        asyncio.run(worker.load(version.digest, version.path))
        assert worker.proofs == {version.digest: True}
    finally:
        worker.stop()
    assert not caplog.records
