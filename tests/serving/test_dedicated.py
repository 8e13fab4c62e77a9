"""A server for one version alone: the answers of the adapter beside its base, nothing added to any step, nothing else to ask for."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fakes import tiny_base, write_sealed
from lorimer.errors import AdapterError, IntegrityError, QuarantineError, UsageError
from lorimer.inference.compiled_rows import CompiledRows
from lorimer.inference.engine import Engine, EngineConfig
from lorimer.inference.routing import RoutingDecision
from lorimer.model.adapter import Lock, save_adapter
from lorimer.model.base import Base
from lorimer.model.lora import LoRAConfig, initialise
from lorimer.pipeline import describe
from lorimer.registry.compositions import compose
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry
from lorimer.serving.app import create_app
from lorimer.serving.dedicated import DedicatedModels, merge_version
from lorimer.serving.generation import NamedAdapter
from lorimer.serving.grants import Grant
from lorimer.serving.refusals import ApiError
from lorimer.serving.visible import models_for
from lorimer.serving.worker import EngineWorker

Register = Callable[..., AdapterVersion]
TextOf = Callable[..., str]
SMALL = EngineConfig(max_sequences=8, max_tokens_per_step=256, cache_bytes=8_000_000)
QUESTION = "What is this?"


def served(registry: Registry, version: AdapterVersion) -> tuple[TestClient, EngineWorker]:
    """A server of its own base, the version merged into it."""
    base = tiny_base()
    divergence = merge_version(registry, version, base)
    assert divergence.max_kl < 1e-6
    assert divergence.same_greedy == 1.0
    engine = Engine(base, SMALL)
    engine.release_base()
    worker = EngineWorker(engine)
    return TestClient(create_app(worker, registry, merged=version), raise_server_exceptions=False), worker


def body(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12, "temperature": 0}


def keep_description(version: AdapterVersion, of: AdapterVersion, base: Base) -> None:
    """Fingerprint and profile, as training keeps them beside an adapter's files."""
    write_sealed(version.path, describe(of.path, base, [base.renderer.render_text("hello")]))


def test_merged_version_answers_as_unmerged_and_adds_nothing_to_a_step(
    registry: Registry, helpdesk: AdapterVersion, text_of: TextOf
) -> None:
    client, worker = served(registry, helpdesk)
    with client:
        for model in ("helpdesk", "helpdesk@v1", f"helpdesk@sha256:{helpdesk.digest[:12]}"):
            reply = client.post("/v1/chat/completions", json=body(model))
            assert reply.json()["choices"][0]["message"]["content"] == text_of(QUESTION, helpdesk) != text_of(QUESTION)
            assert (reply.json()["model"], reply.headers["x-adapter-digest"]) == ("helpdesk@v1", helpdesk.digest)
        assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["helpdesk", "helpdesk@v1"]
        assert 'lorimer_requests_total{adapter="helpdesk@v1",outcome="ok"} 3.0' in client.get("/metrics").text
    rows = worker.engine.rows
    assert not (rows.tables if isinstance(rows, CompiledRows) else rows.num_columns)
    assert worker.engine.adapters.digests == []


def test_composition_is_merged_as_its_sum(registry: Registry, helpdesk: AdapterVersion, billing: AdapterVersion) -> None:
    version = compose(registry, "desk", ["helpdesk*0.7", "billing"])
    client, _ = served(registry, version)
    beside = TestClient(create_app(EngineWorker(Engine(tiny_base(), SMALL)), registry))
    with client, beside:
        merged, apart = (one.post("/v1/chat/completions", json=body("desk")).json() for one in (client, beside))
    assert merged["choices"] == apart["choices"]
    assert (merged["model"], apart["model"]) == ("desk@v1", "desk@v1")


@pytest.mark.parametrize(
    "model", ["base", "tiny-gemma3", "billing", "billing@v1", "helpdesk@v2", "helpdesk*0.5", "helpdesk+billing", "auto", "x"]
)
def test_everything_else_is_a_404_that_says_why(registry: Registry, register: Register, helpdesk: AdapterVersion, model: str) -> None:
    register("billing", 2)
    register("helpdesk", 3)
    models = DedicatedModels(registry, helpdesk, max_len=512)
    assert models.resolve("helpdesk").id == "helpdesk@v1"  # though there is a newer one

    def route(ids: tuple[int, ...], allowed: Any) -> RoutingDecision:
        raise AssertionError("nothing is routed here")

    with pytest.raises(ApiError, match="dedicated to 'helpdesk@v1', which is merged into its base") as caught:
        models.resolve(model, route=route)
    assert caught.value.status == 404


def test_adapters_cannot_be_added(registry: Registry, helpdesk: AdapterVersion) -> None:
    models = DedicatedModels(registry, helpdesk, max_len=512)
    with pytest.raises(ApiError, match="cannot be added here") as caught:
        models.resolve("base", adapters=[NamedAdapter(id="helpdesk", scale=2.0)])
    assert (caught.value.status, caught.value.param) == (400, "adapters")


def test_a_key_for_another_adapter_learns_nothing(registry: Registry, helpdesk: AdapterVersion) -> None:
    models = models_for(DedicatedModels(registry, helpdesk, max_len=512), Grant(adapters=("billing",), may_use_base=True))
    assert models.cards() == []
    for model in ("helpdesk", "helpdesk@v1", "base"):
        with pytest.raises(ApiError) as caught:
            models.resolve(model)
        assert "helpdesk" not in str(caught.value).replace(repr(model), "")
    assert models_for(DedicatedModels(registry, helpdesk, max_len=512), Grant(adapters=("helpdesk",))).resolve("helpdesk")


def test_adapter_is_proved_before_it_is_merged(registry: Registry, helpdesk: AdapterVersion, billing: AdapterVersion, base: Base) -> None:
    keep_description(helpdesk, helpdesk, base)
    assert merge_version(registry, helpdesk, tiny_base()).num_places > 50
    with pytest.raises(UsageError, match="was made for base 'tiny-gemma3'"):
        merge_version(registry, helpdesk, tiny_base(seed=1))
    keep_description(helpdesk, billing, base)
    with pytest.raises(QuarantineError, match="is not merged: its fingerprint is of adapter"):
        merge_version(registry, helpdesk, tiny_base())
    shutil.copy(billing.path / "adapter_model.safetensors", helpdesk.path)
    with pytest.raises(IntegrityError, match="files of helpdesk@v1"):
        merge_version(registry, helpdesk, tiny_base())


def test_dora_is_not_merged(registry: Registry, base: Base, tmp_path: Path) -> None:
    lora = initialise(LoRAConfig(rank=2, alpha=4, target_modules=tuple(base.layers), kind="dora"), base.layers, 0)
    digests = {"base_digest": base.digest, "dataset_digest": "d" * 64, "template_digest": base.renderer.template_digest}
    save_adapter(lora, tmp_path / "run", base, Lock(base_name=base.name, run_id="run-1", **digests))
    lineage = {"base_name": base.name, "dataset_name": "t", "run_id": "run-1"}
    version = registry.register(NewVersion(name="dora", source=tmp_path / "run", rank=2, alpha=4.0, num_parameters=1, **lineage, **digests))
    with pytest.raises(AdapterError, match="only a plain adapter"):
        merge_version(registry, version, tiny_base())
