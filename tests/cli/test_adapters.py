"""`lorimer adapters` through its commands: tables for people, one JSON object for programs."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorimer.cli.adapters import app
from lorimer.database import open_database
from lorimer.errors import GateFailedError, NotFoundError
from lorimer.evaluation.gates import Check, GateResult, Verdict
from lorimer.evaluation.pages.page import report_folder
from lorimer.registry.audit import read_audit
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry
from lorimer.storage import write_text


def register(tmp_path: Path, verdict: Verdict | None = None, name: str = "helpdesk", dataset: str = "tickets") -> AdapterVersion:
    source = tmp_path / name
    source.mkdir()
    (source / "adapter_model.safetensors").write_text(name)
    (source / "adapter_config.json").write_text("{}")
    digests = {"base_digest": "b" * 64, "dataset_digest": "d" * 64, "template_digest": "t" * 64}
    lineage = {"base_name": "gemma3-270m", "dataset_name": dataset, "run_id": "run-7", **digests}
    registry = Registry(open_database())
    version = registry.register(NewVersion(name=name, source=source, rank=16, alpha=32.0, num_parameters=3_800_000, **lineage))
    if verdict is None:
        return version
    check = Check(name="beats_base", verdict=verdict, value=0.1, interval=None, threshold=0.0, num_items=50, reason="Said [so].")
    result = GateResult(
        verdict=verdict, checks=(check,), report_digest="e" * 64, candidate_digest=version.digest, base_digest="b" * 64, created_at="now"
    )
    return registry.record_gate(result, version)


def run(*args: str) -> str:
    result = CliRunner().invoke(app, list(args), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_list_shows_every_version(tmp_path: Path) -> None:
    register(tmp_path, "PASS")
    register(tmp_path, name="billing", dataset="[invoices]")
    run("promote", "helpdesk")
    lines = run("list").splitlines()
    for line, words in zip(
        lines, [("adapter", "gate"), ("billing@v1", "none", "[invoices]"), ("helpdesk@v1", "champion", "PASS")], strict=True
    ):
        assert all(word in line for word in words), line


def test_list_of_nothing_says_what_to_do() -> None:
    assert "lorimer train" in run("list")
    assert json.loads(run("list", "--json")) == {"adapters": []}


def test_list_as_json_is_one_object(tmp_path: Path) -> None:
    version = register(tmp_path, "PASS")
    run("promote", "helpdesk")
    (found,) = json.loads(run("list", "--json"))["adapters"]
    assert (found["id"], found["digest"], found["aliases"], found["gate_verdict"]) == ("helpdesk@v1", version.digest, ["champion"], "PASS")


def test_show_prints_the_lineage(tmp_path: Path) -> None:
    version = register(tmp_path, "FAIL")
    printed = run("show", "helpdesk@v1")
    for text in (
        version.digest,
        "b" * 64,
        "d" * 64,
        "run-7",
        "rank 16, alpha 32, 3,800,000 parameters",
        "FAIL",
        "Said [so].",
        str(version.path),
    ):
        assert text in printed, text


def test_show_as_json_names_the_report_where_it_is_kept(tmp_path: Path) -> None:
    register(tmp_path, "PASS")
    assert json.loads(run("show", "helpdesk", "--json"))["report_path"] is None
    write_text(report_folder("e" * 64) / "report.html", "page")
    found = json.loads(run("show", "helpdesk", "--json"))
    assert found["report_path"] == str(report_folder("e" * 64) / "report.html")
    assert found["gate"]["checks"][0]["reason"] == "Said [so]."


def test_show_without_a_gate(tmp_path: Path) -> None:
    register(tmp_path)
    assert json.loads(run("show", "helpdesk", "--json"))["gate"] is None
    assert "none" in run("show", "helpdesk")


def test_promote_moves_the_alias_and_keeps_the_reason(tmp_path: Path) -> None:
    register(tmp_path, "PASS")
    found = json.loads(run("promote", "helpdesk@v1", "--alias", "canary", "--reason", "try it", "--json"))
    assert (found["alias"], found["adapter"]) == ("helpdesk@canary", "helpdesk@v1")
    assert read_audit(open_database(), "helpdesk@canary")[0].reason == "try it"


@pytest.mark.parametrize(
    ("args", "error"), [(("promote", "helpdesk"), GateFailedError), (("promote", "nobody"), NotFoundError), (("show", "x"), NotFoundError)]
)
def test_refusals_are_left_to_the_caller(tmp_path: Path, args: tuple[str, ...], error: type[Exception]) -> None:
    register(tmp_path, "FAIL")
    with pytest.raises(error):
        run(*args)


def test_compose_names_several_as_one(tmp_path: Path) -> None:
    version = register(tmp_path)
    register(tmp_path, name="billing")
    assert run("compose", "desk", "helpdesk*0.7", "billing").startswith("desk@v1 is ")
    found = json.loads(run("compose", "desk", "helpdesk", "billing*-0.5", "--json"))
    assert (found["id"], found["num_bytes"]) == ("desk@v2", 0)
    assert {"id": "helpdesk@v1", "digest": version.digest, "scale": 1.0} in found["parts"]
    assert "helpdesk@v1*0.7" in run("show", "desk@v1")
    assert "billing@v1*-0.5" in run("list")
    assert str(version.path) not in run("show", "desk")
