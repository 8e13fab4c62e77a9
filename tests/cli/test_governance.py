"""Approvals, rollback, roles, trust and the audit chain through their commands, with the exit codes that scripts rely on."""

import json
from pathlib import Path

import pytest
from sqlalchemy import text

from lorimer.cli.main import run as run_lorimer
from lorimer.database import begin_write, open_database
from lorimer.evaluation.gates import Check, GateResult
from lorimer.registry.records import NewVersion
from lorimer.registry.registry import Registry


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions of `helpdesk` past their gates, by ada."""
    monkeypatch.setenv("LORIMER_ACTOR", "ada")
    monkeypatch.setenv("COLUMNS", "250")
    registry = Registry(open_database())
    for number in (1, 2):
        source = tmp_path / f"run{number}"
        source.mkdir()
        (source / "adapter_model.safetensors").write_text(str(number))
        (source / "adapter_config.json").write_text("{}")
        new = NewVersion(
            name="helpdesk", source=source, base_name="no-such-base", base_digest="b" * 64, dataset_name="t", dataset_digest="d" * 64,
            run_id="r", rank=1, alpha=1.0, num_parameters=1, template_digest="t" * 64,
        )  # fmt: skip
        version = registry.register(new)
        check = Check(name="beats_base", verdict="PASS", value=0.1, interval=None, threshold=0.0, num_items=50, reason="So.")
        result = GateResult(
            verdict="PASS", checks=(check,), report_digest="e" * 64, candidate_digest=version.digest, base_digest="b" * 64, created_at="now"
        )
        registry.record_gate(result, version)


@pytest.fixture
def lorimer(folders: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Runs a command as somebody; returns its exit code and what it printed."""

    def call(*args: str, actor: str = "ada") -> tuple[int, str, str]:
        monkeypatch.setenv("LORIMER_ACTOR", actor)
        capsys.readouterr()
        code = run_lorimer(list(args))
        printed = capsys.readouterr()
        return code, printed.out, " ".join(printed.err.split())

    return call


def test_a_protected_champion_from_question_to_rollback(lorimer) -> None:  # type: ignore[no-untyped-def]
    assert lorimer("adapters", "promote", "helpdesk@v1")[0] == 0
    assert lorimer("adapters", "protect", "champion", "--reason", "audit")[0] == 0
    code, out, err = lorimer("adapters", "promote", "helpdesk@v2", "--reason", "better")
    assert (code, out) == (4, "")
    assert "waits until" in err
    (request,) = json.loads(lorimer("adapters", "requests", "--json")[1])["requests"]
    assert (request["adapter"], request["requested_by"], request["state"]) == ("helpdesk@v2", "ada", "waiting")
    assert request["id"] in lorimer("adapters", "requests")[1]
    assert lorimer("adapters", "approve", request["id"])[0] == 1  # her own
    approved = json.loads(lorimer("adapters", "approve", request["id"], "--json", actor="bob")[1])
    assert (approved["alias"], approved["adapter"], approved["moved_by"]) == ("helpdesk@champion", "helpdesk@v2", "bob")
    back = json.loads(lorimer("adapters", "rollback", "helpdesk", "--reason", "oops", "--json")[1])
    assert back["adapter"] == "helpdesk@v1"
    assert lorimer("adapters", "rollback", "helpdesk")[0] == 2
    moves = json.loads(lorimer("adapters", "history", "helpdesk@champion", "--json")[1])["moves"]
    assert [(move["action"], move["version"]) for move in moves] == [("rollback", 1), ("promote", 2), ("promote", 1)]
    assert "oops" in lorimer("adapters", "history", "helpdesk")[1]
    assert lorimer("adapters", "unprotect", "champion")[0] == 0


def test_a_rejected_request_and_an_overridden_gate(lorimer) -> None:  # type: ignore[no-untyped-def]
    lorimer("adapters", "protect", "helpdesk@champion")
    lorimer("adapters", "promote", "helpdesk@v1")
    (request,) = json.loads(lorimer("adapters", "requests", "--json")[1])["requests"]
    assert "is rejected" in lorimer("adapters", "reject", request["id"][:5], actor="bob")[1]
    assert json.loads(lorimer("adapters", "requests", "--json")[1])["requests"] == []
    with begin_write(open_database()) as connection:
        connection.execute(text("DELETE FROM gate_results"))
    assert lorimer("adapters", "promote", "helpdesk@v1", "--alias", "canary")[0] == 3
    assert lorimer("adapters", "promote", "helpdesk@v1", "--alias", "canary", "--override-gate")[0] == 2
    code, out, _ = lorimer("adapters", "promote", "helpdesk@v1", "--alias", "canary", "--override-gate", "--reason", "fire")
    assert code == 0
    assert "overridden" in out


def test_roles_are_held_from_the_first_grant_on(lorimer) -> None:  # type: ignore[no-untyped-def]
    assert "anybody may do anything" in lorimer("roles", "list")[1]
    assert lorimer("roles", "grant", "bob", "trainer")[0] == 2
    for actor, role in (("ada", "admin"), ("bob", "trainer"), ("dan", "viewer")):
        assert lorimer("roles", "grant", actor, role)[0] == 0
    code, _, err = lorimer("adapters", "promote", "helpdesk@v1", actor="dan")
    assert (code, "'promote' needs 'trainer'" in err) == (1, True)
    assert lorimer("adapters", "promote", "helpdesk@v1", actor="bob")[0] == 0
    assert lorimer("keys", "create", "k", actor="bob")[0] == 1
    assert lorimer("roles", "revoke", "dan")[0] == 0
    found = json.loads(lorimer("roles", "list", "--json")[1])
    assert ({one["actor"]: one["role"] for one in found["roles"]}, found["you"]) == ({"ada": "admin", "bob": "trainer"}, "ada")
    assert "trainer" in lorimer("roles", "list")[1]


def test_the_audit_chain_is_shown_checked_and_broken(lorimer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    lorimer("adapters", "promote", "helpdesk@v2", "--reason", "better")
    assert "better" in lorimer("audit", "show", "--subject", "helpdesk@champion")[1]
    entries = json.loads(lorimer("audit", "show", "--json")[1])["entries"]
    assert [entry["id"] for entry in entries] == [5, 4, 3, 2, 1]
    assert len(json.loads(lorimer("audit", "show", "--limit", "2", "--json")[1])["entries"]) == 2
    code, out, _ = lorimer("audit", "verify", "--json")
    report = json.loads(out)
    assert (code, report["is_whole"], report["num_entries"]) == (0, True, 5)
    head = f"{report['head']['sequence']}:{report['head']['digest']}"
    assert head in lorimer("audit", "verify", "--head", head)[1]
    assert lorimer("audit", "verify", "--head", "5:abc")[0] == 2
    assert lorimer("audit", "export", str(tmp_path / "audit.jsonl"))[0] == 0
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 5
    with begin_write(open_database()) as connection:
        connection.execute(text("DROP TRIGGER audit_no_update"))
        connection.execute(text("UPDATE audit SET actor = 'eve' WHERE id = 2"))
    code, out, err = lorimer("audit", "verify")
    assert (code, "entry 2 was changed" in out, "the audit chain is broken" in err) == (6, True, True)
    assert json.loads(lorimer("audit", "verify", "--json")[1])["is_whole"] is False


def test_trusted_keys(lorimer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    own = lorimer("trust", "show")[1]
    assert own.startswith("-----BEGIN PUBLIC KEY-----")
    other = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "them.pem").write_bytes(other)
    assert lorimer("trust", "add", str(tmp_path / "them.pem"))[0] == 0
    assert len(json.loads(lorimer("trust", "list", "--json")[1])["keys"]) == 2
    assert "them" in lorimer("trust", "list")[1]
    assert lorimer("trust", "remove", "them", "--reason", "gone")[0] == 0
    assert lorimer("trust", "remove", "them")[0] == 2


def test_verify_and_sign(lorimer, home: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = lorimer("adapters", "verify", "--all")
    assert (code, out.count("files as they were sealed")) == (0, 2)
    assert json.loads(lorimer("adapters", "sign", "helpdesk@v1", "--json")[1])["adapters"][0]["id"] == "helpdesk@v1"
    assert lorimer("adapters", "verify")[0] == lorimer("adapters", "verify", "helpdesk", "--all")[0] == 2
    version = Registry(open_database()).resolve("helpdesk@v1")
    (version.path / "adapter_config.json").write_text("{ }")
    code, out, err = lorimer("adapters", "verify", "--all", "--json")
    found = json.loads(out)
    assert (code, found["is_right"]) == (6, False)
    assert "helpdesk@v1 files: adapter_config.json has SHA-256" in err
    assert lorimer("adapters", "verify", "helpdesk@v2")[0] == 0
    assert lorimer("adapters", "sign", "--all")[0] == lorimer("adapters", "promote", "helpdesk@v1")[0] == 6


def test_import_of_an_unsigned_folder_is_refused_before_its_base_is_loaded(lorimer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = lorimer("adapters", "import", str(tmp_path / "run1"), "--name", "x", "--base", "no-such-base")
    assert (code, "--allow-unsigned" in err) == (6, True)
    assert lorimer("adapters", "import", str(tmp_path / "run1"), "--name", "x", "--base", "no-such-base", "--allow-unsigned")[0] == 2
