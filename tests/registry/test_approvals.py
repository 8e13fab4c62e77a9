"""Protected aliases move with a second person alone; what was asked for is what happens, or nothing."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from lorimer.database import begin_write
from lorimer.errors import AccessError, AwaitingApprovalError, GateFailedError, InconclusiveError, IntegrityError, NotFoundError, UsageError
from lorimer.evaluation.gates import GateResult
from lorimer.registry.approvals import list_protected, list_requests, protect, reject, unprotect
from lorimer.registry.audit import read_audit
from lorimer.registry.audit_check import check_audit
from lorimer.registry.officers import grant_role
from lorimer.registry.promotion import approve, history, promote
from lorimer.registry.records import AdapterVersion, NewVersion, PromotionRequest
from lorimer.registry.registry import Registry

MakeNew = Callable[..., NewVersion]
MakeGate = Callable[..., GateResult]


@pytest.fixture
def version(registry: Registry, make_new: MakeNew, make_gate: MakeGate) -> AdapterVersion:
    """One that its gate let through, its champion protected."""
    version = registry.register(make_new())
    protect(registry, "champion", actor="root")
    return registry.record_gate(make_gate(version), version)


def ask(registry: Registry, version: AdapterVersion, actor: str = "ada", **options: object) -> PromotionRequest:
    with pytest.raises(AwaitingApprovalError) as caught:
        promote(registry, version, actor=actor, reason="better", **options)
    assert caught.value.exit_code == 4
    (request,) = list_requests(registry, waiting_only=True)
    assert request.id in str(caught.value)
    return request


def champion(registry: Registry) -> int | None:
    return next((alias.version for alias in registry.aliases("helpdesk") if alias.alias == "champion"), None)


def test_a_protected_alias_waits_for_a_second_person(registry: Registry, version: AdapterVersion) -> None:
    request = ask(registry, version)
    assert champion(registry) is None
    moved = approve(registry, request.id[:4], actor="bob", reason="read it")
    assert (moved.version, moved.moved_by, champion(registry)) == (1, "bob", 1)
    actions = [(entry.actor, entry.action) for entry in read_audit(registry.engine, "helpdesk@champion")]
    assert actions == [("ada", "request_promotion"), ("bob", "approve"), ("bob", "promote")]
    entry = read_audit(registry.engine)[-1]
    assert (entry.details["requested_by"], entry.details["request"], entry.reason) == ("ada", request.id, "better; read it")
    assert [request.state for request in list_requests(registry)] == ["approved"]
    assert promote(registry, version, actor="ada").version == 1  # it is there already
    assert check_audit(registry.engine).problems == ()


def test_nobody_approves_or_rejects_their_own(registry: Registry, version: AdapterVersion) -> None:
    request = ask(registry, version)
    for deed in (approve, reject):
        with pytest.raises(AccessError, match="made by 'ada' too: a second person decides"):
            deed(registry, request.id, actor="ada")
    assert champion(registry) is None


def test_the_same_question_again_is_one_request(registry: Registry, version: AdapterVersion) -> None:
    assert ask(registry, version) == ask(registry, version) == ask(registry, version, actor="bob")
    with pytest.raises(AccessError):
        approve(registry, list_requests(registry)[0].id, actor="ada")


def test_rejected_is_rejected(registry: Registry, version: AdapterVersion) -> None:
    request = ask(registry, version)
    assert reject(registry, request.id, actor="bob", reason="no").state == "rejected"
    for deed in (approve, reject):
        with pytest.raises(UsageError, match=r"is rejected \(by 'bob'"):
            deed(registry, request.id, actor="carol")
    assert ask(registry, version).id != request.id


def test_approval_holds_for_the_gate_result_it_was_asked_with(registry: Registry, version: AdapterVersion, make_gate: MakeGate) -> None:
    request = ask(registry, version)
    registry.record_gate(make_gate(version), version)  # PASS too, but another
    with pytest.raises(GateFailedError, match="it is void"):
        approve(registry, request.id, actor="bob")
    assert champion(registry) is None
    assert [one.state for one in list_requests(registry)] == ["void"]
    with pytest.raises(UsageError, match="is void"):
        approve(registry, request.id, actor="bob")


def test_approval_holds_for_the_bytes_it_was_asked_for(registry: Registry, version: AdapterVersion) -> None:
    request = ask(registry, version)
    (version.path / "adapter_config.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"adapter_config\.json"):
        approve(registry, request.id, actor="bob")
    assert champion(registry) is None


def test_requests_expire(registry: Registry, version: AdapterVersion) -> None:
    request = ask(registry, version)
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat(timespec="seconds")
    with begin_write(registry.engine) as connection:
        connection.execute(text(f"UPDATE promotion_requests SET expires_at = '{past}'"))
    assert [one.state for one in list_requests(registry)] == ["expired"]
    assert list_requests(registry, waiting_only=True) == ()
    with pytest.raises(UsageError, match="is expired"):
        approve(registry, request.id, actor="bob")
    assert ask(registry, version).id != request.id


def test_two_requests_for_one_version_end_as_one_move(registry: Registry, version: AdapterVersion, make_gate: MakeGate) -> None:
    first = ask(registry, version)
    unprotect(registry, "champion", actor="root")
    promote(registry, version, actor="ada")
    assert approve(registry, first.id, actor="bob").version == 1
    assert len(history(registry, "helpdesk", "champion")) == 1


def test_protection_is_of_one_adapter_or_of_all(
    registry: Registry, version: AdapterVersion, make_new: MakeNew, make_gate: MakeGate
) -> None:
    assert [one.id for one in list_protected(registry)] == ["champion"]
    assert promote(registry, version, alias="canary").version == 1
    protect(registry, "canary", name="other", actor="root")
    other = registry.register(make_new("other"))
    with pytest.raises(AwaitingApprovalError, match=r"other@canary is protected"):
        promote(registry, other, alias="canary")
    with pytest.raises(NotFoundError, match="protected are: other@canary, champion"):
        unprotect(registry, "canary")
    unprotect(registry, "canary", name="other")
    assert promote(registry, other, alias="canary").version == 1
    with pytest.raises(UsageError, match="1 to 90 days"):
        protect(registry, "x", days=91)


@pytest.mark.parametrize(("verdict", "error"), [(None, GateFailedError), ("FAIL", GateFailedError), ("INCONCLUSIVE", InconclusiveError)])
def test_a_gate_is_overridden_with_a_reason_and_on_record(
    registry: Registry, make_new: MakeNew, make_gate: MakeGate, verdict: str | None, error: type[Exception]
) -> None:
    version = registry.register(make_new())
    if verdict:
        version = registry.record_gate(make_gate(version, verdict), version)
    with pytest.raises(error):
        promote(registry, version, actor="ada")
    with pytest.raises(UsageError, match="overridden with a reason alone"):
        promote(registry, version, actor="ada", overrides_gate=True)
    assert promote(registry, version, actor="ada", overrides_gate=True, reason="incident 7").version == 1
    override, moved = read_audit(registry.engine)[-2:]
    assert (override.action, override.subject, override.reason, override.details["verdict"]) == (
        "override_gate", "helpdesk@v1", "incident 7", verdict,
    )  # fmt: skip
    assert moved.action == "promote"


def test_an_override_of_a_protected_alias_needs_both(registry: Registry, make_new: MakeNew) -> None:
    protect(registry, "champion", actor="root")
    version = registry.register(make_new())
    request = ask(registry, version, overrides_gate=True)
    assert (request.overrides_gate, request.gate_digest) == (True, None)
    assert approve(registry, request.id, actor="bob").version == 1
    assert [entry.action for entry in read_audit(registry.engine)][-3:] == ["approve", "override_gate", "promote"]


def test_trainers_ask_and_approvers_decide(registry: Registry, version: AdapterVersion) -> None:
    for actor, role in (("root", "admin"), ("ada", "trainer"), ("bob", "approver"), ("carol", "trainer"), ("dan", "viewer")):
        grant_role(registry, actor, role, by="root")
    with pytest.raises(AccessError, match=r"'dan' has the role 'viewer'.*'request promotion' needs 'trainer'"):
        promote(registry, version, actor="dan")
    request = ask(registry, version)
    for actor in ("carol", "dan", "eve"):
        with pytest.raises(AccessError, match=f"'{actor}' has .*needs 'approver'"):
            approve(registry, request.id, actor=actor)
    assert approve(registry, request.id, actor="bob").version == 1


def test_no_such_request_names_those_that_wait(registry: Registry, version: AdapterVersion) -> None:
    request = ask(registry, version)
    for text_ in ("", "zzz"):
        with pytest.raises(NotFoundError, match=rf"waiting are: {request.id} \(helpdesk@v1 for helpdesk@champion\)"):
            approve(registry, text_, actor="bob")
