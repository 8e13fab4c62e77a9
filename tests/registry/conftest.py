"""A registry in an empty home, and adapters to put into it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorimer.database import open_database
from lorimer.evaluation.gates import Check, GateResult, Verdict
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry

MakeNew = Callable[..., NewVersion]
MakeGate = Callable[..., GateResult]


@pytest.fixture
def registry(database: str) -> Iterator[Registry]:
    """An empty registry in each database."""
    engine = open_database()
    yield Registry(engine)
    engine.dispose()


@pytest.fixture
def make_new(tmp_path: Path) -> MakeNew:
    """Adapters whose bytes follow from `weights`."""

    def make(name: str = "helpdesk", weights: str = "w1", base_digest: str = "b" * 64) -> NewVersion:
        source = tmp_path / "runs" / weights
        source.mkdir(parents=True, exist_ok=True)
        (source / "adapter_model.safetensors").write_text(weights)
        (source / "adapter_config.json").write_text('{"r": 16}')
        return NewVersion(
            name=name,
            source=source,
            base_name="gemma3-270m",
            base_digest=base_digest,
            dataset_name="tickets",
            dataset_digest="d" * 64,
            run_id="run-1",
            rank=16,
            alpha=32.0,
            num_parameters=1000,
            template_digest="t" * 64,
        )

    return make


@pytest.fixture
def make_gate() -> MakeGate:
    """Gate results of a version, each different from the others made before."""
    count = 0

    def make(version: AdapterVersion, verdict: Verdict = "PASS") -> GateResult:
        nonlocal count
        count += 1
        check = Check(name="beats_base", verdict=verdict, value=0.1, interval=None, threshold=0.0, num_items=50, reason=f"Because {count}.")
        return GateResult(
            verdict=verdict,
            checks=(check,),
            report_digest=f"{count:064x}",
            candidate_digest=version.digest,
            base_digest=version.base_digest,
            created_at="2026-11-21T12:00:00+00:00",
        )

    return make
