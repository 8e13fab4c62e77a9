"""An alias moves past a passed gate and past nothing else."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from lorimer.errors import GateFailedError, InconclusiveError, IntegrityError, LorimerError, UsageError
from lorimer.evaluation.gates import GateResult, Verdict
from lorimer.registry.audit import read_audit
from lorimer.registry.promotion import promote
from lorimer.registry.records import NewVersion
from lorimer.registry.registry import Registry

MakeNew = Callable[..., NewVersion]
MakeGate = Callable[..., GateResult]


def test_promote_moves_the_alias_and_says_so(registry: Registry, make_new: MakeNew, make_gate: MakeGate) -> None:
    first, second = (registry.register(make_new(weights=weights)) for weights in ("w1", "w2"))
    for version in (first, second):
        registry.record_gate(make_gate(version), version)
        moved = promote(registry, version, actor="ada", reason="better in German")
        assert (moved.id, moved.version, moved.moved_by) == ("helpdesk@champion", version.version, "ada")
        assert registry.resolve("helpdesk").id == version.id
    assert [(alias.id, alias.version) for alias in registry.aliases("helpdesk")] == [("helpdesk@champion", 2)]
    entries = read_audit(registry.engine, "helpdesk@champion")
    assert [(entry.actor, entry.action, entry.reason) for entry in entries] == [("ada", "promote", "better in German")] * 2
    assert [entry.details["version_before"] for entry in entries] == [None, 1]
    assert entries[1].details["digest"] == second.digest


def test_promote_to_where_the_alias_is_changes_nothing(registry: Registry, make_new: MakeNew, make_gate: MakeGate) -> None:
    version = registry.register(make_new())
    registry.record_gate(make_gate(version), version)
    assert promote(registry, version) == promote(registry, version, actor="somebody else")
    assert len(read_audit(registry.engine, "helpdesk@champion")) == 1


def test_aliases_move_alone(registry: Registry, make_new: MakeNew, make_gate: MakeGate) -> None:
    first, second = (registry.register(make_new(weights=weights)) for weights in ("w1", "w2"))
    for version, alias in ((first, "champion"), (second, "canary")):
        registry.record_gate(make_gate(version), version)
        promote(registry, version, alias=alias)
    assert {alias.alias: alias.version for alias in registry.aliases()} == {"canary": 2, "champion": 1}


@pytest.mark.parametrize(
    ("verdicts", "error", "exit_code"),
    [
        ([], GateFailedError, 3),
        (["FAIL"], GateFailedError, 3),
        (["ERROR"], GateFailedError, 3),
        (["INCONCLUSIVE"], InconclusiveError, 5),
        (["PASS", "FAIL"], GateFailedError, 3),
    ],
)
def test_promote_needs_a_pass_as_the_newest_verdict(
    registry: Registry, make_new: MakeNew, make_gate: MakeGate, verdicts: list[Verdict], error: type[LorimerError], exit_code: int
) -> None:
    version = registry.register(make_new())
    for verdict in verdicts:
        registry.record_gate(make_gate(version, verdict), version)
    with pytest.raises(error, match=f"Because {len(verdicts)}." if verdicts else "has met no gate") as caught:
        promote(registry, version)
    assert caught.value.exit_code == exit_code
    assert registry.aliases() == ()
    assert "promote" not in [entry.action for entry in read_audit(registry.engine)]


def test_promote_reads_the_verdict_anew(registry: Registry, make_new: MakeNew, make_gate: MakeGate) -> None:
    version = registry.register(make_new())
    with pytest.raises(GateFailedError, match="has met no gate"):
        promote(registry, replace(version, gate_verdict="PASS"))
    registry.record_gate(make_gate(version), version)
    assert promote(registry, version).version == 1  # a record from before the gate


def test_promote_takes_no_gate_of_another_base(registry: Registry, make_new: MakeNew, make_gate: MakeGate) -> None:
    version = registry.register(make_new())
    registry.record_gate(make_gate(version), version)
    with pytest.raises(GateFailedError, match="has met no gate"):
        promote(registry, registry.register(make_new("stranger", base_digest="c" * 64)))


def test_promote_refuses_changed_files(registry: Registry, make_new: MakeNew, make_gate: MakeGate) -> None:
    version = registry.register(make_new())
    registry.record_gate(make_gate(version), version)
    (version.path / "adapter_model.safetensors").write_text("changed")
    with pytest.raises(IntegrityError, match="changed after registration"):
        promote(registry, version)
    assert registry.aliases() == ()


@pytest.mark.parametrize("alias", ["v3", "sha256:ab12cd", "", "Champion", "a@b"])
def test_alias_that_reads_as_something_else_is_refused(registry: Registry, make_new: MakeNew, make_gate: MakeGate, alias: str) -> None:
    version = registry.register(make_new())
    registry.record_gate(make_gate(version), version)
    with pytest.raises(UsageError, match="cannot be an alias"):
        promote(registry, version, alias=alias)
