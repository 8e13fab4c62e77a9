"""Back to where an alias was: at once, without a gate, verified, in order, and on record."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.errors import AccessError, IntegrityError, NotFoundError, UsageError
from lorimer.evaluation.gates import GateResult
from lorimer.registry.approvals import protect
from lorimer.registry.audit import read_audit
from lorimer.registry.officers import grant_role
from lorimer.registry.promotion import held, history, promote, rollback
from lorimer.registry.records import AliasMove, NewVersion
from lorimer.registry.registry import Registry

MakeNew = Callable[..., NewVersion]
MakeGate = Callable[..., GateResult]


@pytest.fixture
def three(registry: Registry, make_new: MakeNew, make_gate: MakeGate) -> Registry:
    """Three versions, each promoted in turn."""
    for number in range(1, 4):
        version = registry.register(make_new(weights=f"w{number}"))
        registry.record_gate(make_gate(version), version)
        promote(registry, version, actor="ada")
    return registry


def champion(registry: Registry) -> str:
    return registry.resolve("helpdesk").id


def test_rollback_goes_back_step_by_step(three: Registry, make_new: MakeNew, make_gate: MakeGate) -> None:
    assert rollback(three, "helpdesk", actor="bob", reason="wrong in German")[1].id == champion(three) == "helpdesk@v2"
    assert rollback(three, "helpdesk")[1].id == champion(three) == "helpdesk@v1"
    with pytest.raises(UsageError, match="held no version before v1"):
        rollback(three, "helpdesk")
    version = three.register(make_new(weights="w4"))
    three.record_gate(make_gate(version), version)
    promote(three, version)
    assert rollback(three, "helpdesk")[1].id == "helpdesk@v1"
    moves = history(three, "helpdesk", "champion")
    assert [(move.action, move.version, move.version_before) for move in moves] == [
        ("promote", 1, None), ("promote", 2, 1), ("promote", 3, 2), ("rollback", 2, 3), ("rollback", 1, 2), ("promote", 4, 1),
        ("rollback", 1, 4),
    ]  # fmt: skip
    entry = next(entry for entry in read_audit(three.engine, "helpdesk@champion") if entry.action == "rollback")
    assert (entry.actor, entry.reason, entry.details["version"], entry.details["version_before"]) == ("bob", "wrong in German", 2, 3)


def test_rollback_needs_no_gate_and_no_approval(three: Registry, make_gate: MakeGate) -> None:
    version = three.resolve("helpdesk@v2")
    three.record_gate(make_gate(version, "FAIL"), version)
    protect(three, "champion")
    assert rollback(three, "helpdesk")[1].id == "helpdesk@v2"


def test_rollback_of_a_protected_alias_needs_an_approver(three: Registry) -> None:
    protect(three, "champion", actor="root")
    for actor, role in (("root", "admin"), ("ada", "trainer"), ("bob", "approver")):
        grant_role(three, actor, role, by="root")
    with pytest.raises(AccessError, match="needs 'approver'"):
        rollback(three, "helpdesk", actor="ada")
    assert rollback(three, "helpdesk", actor="bob")[0].version == 2


@pytest.mark.parametrize("to", ["v1", "helpdesk@v1"])
def test_rollback_to_a_version_named(three: Registry, to: str) -> None:
    assert rollback(three, "helpdesk", to=to)[1].id == "helpdesk@v1"


@pytest.mark.parametrize(("to", "said"), [("v9", "never held 'v9', only v1, v2, v3"), ("v3", "is v3 already"), ("other@v1", "never held")])
def test_rollback_goes_only_where_the_alias_was(three: Registry, make_new: MakeNew, to: str, said: str) -> None:
    three.register(make_new(weights="w9"))
    with pytest.raises(UsageError, match=said):
        rollback(three, "helpdesk", to=to)
    with pytest.raises(NotFoundError, match="has never pointed anywhere"):
        rollback(three, "helpdesk", alias="canary")
    assert champion(three) == "helpdesk@v3"


def test_rollback_goes_to_no_changed_files(three: Registry) -> None:
    (three.resolve("helpdesk@v2").path / "adapter_config.json").write_text("{}")
    with pytest.raises(IntegrityError, match="helpdesk@v2"):
        rollback(three, "helpdesk")
    assert champion(three) == "helpdesk@v3"


def test_another_alias_does_not_move(three: Registry) -> None:
    promote(three, three.resolve("helpdesk@v3"), alias="challenger")
    rollback(three, "helpdesk")
    assert {alias.alias: alias.version for alias in three.aliases()} == {"challenger": 3, "champion": 2}


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), max_size=12))
def test_what_is_gone_back_through_ends_where_the_alias_is(deeds: list[tuple[bool, int]]) -> None:
    moves = list[AliasMove]()
    for is_rollback, version in deeds:
        action = "rollback" if is_rollback and version in held(moves) else "promote"
        moves.append(
            AliasMove(adapter_name="a", alias="c", version=version, version_before=None, action=action, at="", actor="", reason="")
        )
    assert held(moves)[-1:] == [move.version for move in moves[-1:]]
    assert set(held(moves)) <= {move.version for move in moves}
