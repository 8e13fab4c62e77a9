"""Exports: files PEFT reads, papers that say what is known and what is not, and a record of each."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator
from typer.testing import CliRunner

from lorimer.cli.main import app
from lorimer.data.curate import curate
from lorimer.errors import IntegrityError, UsageError
from lorimer.evaluation.gates import GateResult
from lorimer.evaluation.pages.page import report_folder
from lorimer.registry.audit import read_audit
from lorimer.registry.bom import make_bom
from lorimer.registry.compositions import compose
from lorimer.registry.exports import export, list_exports
from lorimer.registry.facts import Compute, gather_facts
from lorimer.registry.imports import origin_of
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry, digest_of_folder
from lorimer.registry.sealing import Seals
from lorimer.storage import append_jsonl, canonical_json, write_bytes, write_json

MakeNew = Callable[..., NewVersion]
MakeGate = Callable[..., GateResult]
SCORE = {"num_correct": 45, "num_items": 50, "interval": {"low": 0.786, "high": 0.957, "confidence": 0.95}}
REPORT = {
    "metric": "exact", "num_items": 50, "num_unscored": 0, "split": "test", "dataset_name": "tickets", "dataset_digest": "d",
    "adapter_score": SCORE, "base_score": {**SCORE, "num_correct": 5}, "items": [{"prompt": "SECRET CONTENT"}],
}  # fmt: skip


@pytest.fixture
def known(registry: Registry, make_new: MakeNew, make_gate: MakeGate, tmp_path: Path, home: Path) -> AdapterVersion:
    """A version of which everything is known."""
    rows = b"".join(canonical_json({"prompt": f"SECRET CONTENT {n}?", "completion": f"{n}"}) + b"\n" for n in range(20))
    write_bytes(tmp_path / "tickets.jsonl", rows)
    dataset = curate([tmp_path / "tickets.jsonl"], name="tickets")
    run = home / "runs" / "run-1"
    plan = {"num_parameters": 1000, "trainable_share": 0.001, "num_steps": 7, "batch_size": 4, "seed": 0, "dtype": "bfloat16"}
    write_json(run / "plan.json", {**plan, "reasons": {"rank": "because"}})
    write_json(run / "run.json", {"method": "lora"})
    for tokens in (300, 200):
        append_jsonl(run / "metrics.jsonl", {"num_tokens": tokens})
    version = registry.register(replace(make_new(), dataset_digest=dataset.digest), actor="ada")
    gate = make_gate(version)
    write_json(report_folder(gate.report_digest) / "report.json", REPORT)
    return registry.record_gate(gate, version)


def test_peft_export_is_the_adapter_with_its_card(registry: Registry, known: AdapterVersion, tmp_path: Path) -> None:
    made = export(registry, known, "peft", tmp_path / "out", actor="bob", reason="for the edge")
    assert digest_of_folder(tmp_path / "out") == known.digest
    card = (tmp_path / "out" / "README.md").read_text()
    for said in ("base_model: gemma3-270m", known.digest, "45 of 50", "90.0%", "78.6% to 95.7%", "**PASS**", "**TO BE FILLED IN**"):
        assert said in card, said
    (entry,) = [entry for entry in read_audit(registry.engine, known.id) if entry.action == "export"]
    assert (entry.actor, entry.reason) == ("bob", "for the edge")
    assert entry.details == {"digest": known.digest, "target": "peft", "content_digest": made.content_digest, "left_platform": True}
    assert list_exports(registry.engine) == (made,)
    assert list_exports(registry.engine, ("f" * 64,)) == ()


def test_export_is_still_as_it_was_sealed(registry: Registry, known: AdapterVersion, tmp_path: Path) -> None:
    export(registry, known, "peft", tmp_path / "out")
    seal = Seals(registry.engine).verify(known.digest, tmp_path / "out")
    assert seal is not None
    assert origin_of(registry, tmp_path / "out", allow_unsigned=False) == "imported-signed"
    (tmp_path / "out" / "more.json").write_bytes(b"1")
    with pytest.raises(IntegrityError, match=r"more\.json"):
        origin_of(registry, tmp_path / "out", allow_unsigned=False)


def test_pack_holds_every_paper_and_no_content(registry: Registry, known: AdapterVersion, tmp_path: Path) -> None:
    export(registry, known, "pack", tmp_path / "out", left_platform=False)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    papers = {"model-card.md", "dataset-card.md", "annex-iv.md", "ml-bom.json"}
    records = {"version.json", "audit.json", "gate.json", "evaluation.json", "plan.json"}
    assert names == papers | records | {"SHA256SUMS"}
    for line in (tmp_path / "out" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
        names.discard(name)
    assert names == {"SHA256SUMS"}
    assert all(b"SECRET CONTENT" not in file.read_bytes() for file in (tmp_path / "out").iterdir())
    assert not list_exports(registry.engine)[0].left_platform


def test_bom_is_valid_cyclonedx(registry: Registry, known: AdapterVersion, make_new: MakeNew) -> None:
    """Against the schema that CycloneDX's own library ships."""
    validator = make_schemabased_validator(OutputFormat.JSON, SchemaVersion.V1_6)
    bare = registry.register(replace(make_new("merged", "w5"), dataset_digest="", dataset_name="", parents=(known.digest,)))
    for version in (known, bare):
        bom = make_bom(gather_facts(registry, version), at="2026-11-22T12:00:00+00:00")
        assert validator.validate_str(json.dumps(bom)) is None
    assert bom["components"][1]["name"] == "helpdesk"
    bom["specVersion"] = 7
    assert validator.validate_str(json.dumps(bom)) is not None


def test_bom_says_what_it_is_made_of(registry: Registry, known: AdapterVersion) -> None:
    bom = make_bom(gather_facts(registry, known), at="now")
    base, data = bom["components"]
    assert (base["name"], data["name"]) == ("gemma3-270m", "tickets")
    assert bom["dependencies"][0]["dependsOn"] == sorted((base["bom-ref"], data["bom-ref"]))
    adapter = bom["metadata"]["component"]
    assert {"name": "lorimer:gate", "value": "PASS"} in adapter["properties"]
    metrics = adapter["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert [(one["slice"], one["value"]) for one in metrics] == [("adapter, test split", "0.9000"), ("base, test split", "0.1000")]


def test_annex_iv_states_the_ratio_and_its_formula(registry: Registry, known: AdapterVersion, tmp_path: Path) -> None:
    """1e6 base parameters, 1000 of the adapter, 500 tokens; Gemma 3 270M took 6 x 268e6 x 6e12."""
    compute = gather_facts(registry, known).compute
    assert compute is not None
    assert (compute.num_tokens, compute.base_parameters) == (500, pytest.approx(1e6))
    assert compute.full_flops == pytest.approx(3e9)
    assert compute.flops == pytest.approx(2.003e9)
    assert compute.share == pytest.approx(3e9 / (6 * 268e6 * 6e12))
    export(registry, known, "pack", tmp_path / "out", base_flops=6e9)
    text = (tmp_path / "out" / "annex-iv.md").read_text()
    for said in ("(4 N + 6 n) D = 2.003e+09", "6 N D = 3e+09", "**0.5**, NOT below one third", "no legal advice", "## 9. Post-market"):
        assert said in text, said
    assert text.count("**TO BE FILLED IN**") > 10


def test_unknown_base_compute_is_held_against_the_threshold() -> None:
    compute = Compute(num_tokens=10**12, base_parameters=7e9, adapter_parameters=1, base_flops=None, base_flops_source="")
    assert compute.share == pytest.approx(0.42)


def test_what_is_not_known_is_said(registry: Registry, make_new: MakeNew, tmp_path: Path) -> None:
    export(registry, registry.register(make_new()), "pack", tmp_path / "out")
    card, annex = ((tmp_path / "out" / name).read_text() for name in ("model-card.md", "annex-iv.md"))
    for said in ("It was not evaluated here.", "Its run is not in this home.", "The dataset is not here"):
        assert said in card
    assert "the compute is not known" in annex
    assert not (tmp_path / "out" / "dataset-card.md").exists()


def test_what_cannot_be_exported_is_refused(registry: Registry, known: AdapterVersion, make_new: MakeNew, tmp_path: Path) -> None:
    registry.register(make_new("other", "w2"))
    made = compose(registry, "both", ["helpdesk", "other"])
    with pytest.raises(UsageError, match=r"is a composition.*lorimer adapters merge"):
        export(registry, made, "peft", tmp_path / "out")
    with pytest.raises(UsageError, match="is there already"):
        export(registry, known, "peft", tmp_path)
    (known.path / "adapter_model.safetensors").write_text("changed")
    with pytest.raises(IntegrityError):
        export(registry, known, "peft", tmp_path / "out")
    assert list_exports(registry.engine) == ()
    assert not (tmp_path / "out").exists()


def test_commands(known: AdapterVersion, tmp_path: Path) -> None:
    def run(*args: str) -> Any:
        return CliRunner().invoke(app, ["adapters", *args])

    assert "Nothing was exported" in run("exports").stdout
    made = json.loads(run("export", "helpdesk", "--to", "peft", "--output", str(tmp_path / "out"), "--stays", "--json").stdout)
    assert (made["adapter"], made["left_platform"]) == ("helpdesk@v1", False)
    assert json.loads(run("exports", "--json").stdout)["exports"] == [made]
    assert "helpdesk@v1" in run("exports").stdout
    refused = run("export", "helpdesk", "--to", "floppy", "--output", "x")
    assert isinstance(refused.exception, UsageError)
    assert "give peft or pack" in str(refused.exception)
