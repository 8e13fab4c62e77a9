"""An alias moves only past a gate, or back to where it was; a protected one only with a second person. Everybody can read who moved it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select

from lorimer.database import begin_write
from lorimer.errors import AwaitingApprovalError, GateFailedError, InconclusiveError, NotFoundError, UsageError
from lorimer.evaluation.gates import gate_from_json
from lorimer.registry import approvals
from lorimer.registry.audit import current_actor, now, record
from lorimer.registry.recipes import first_of, recorded_digest
from lorimer.registry.records import AdapterVersion, Alias, AliasAction, AliasMove, PromotionRequest
from lorimer.registry.registry import CHAMPION, NAME_PATTERN, Registry
from lorimer.registry.roles import require_role
from lorimer.registry.schema import adapter_versions, alias_history, aliases, gate_results
from lorimer.registry.tombstones import refuse_buried


def promote(
    registry: Registry,
    version: AdapterVersion,
    *,
    alias: str = CHAMPION,
    actor: str | None = None,
    reason: str = "",
    overrides_gate: bool = False,
) -> Alias:
    """Point an alias at a version whose newest gate result, for these very bytes, is PASS.

    Where the alias is protected, this asks for it: a second person approves. A gate is overridden by an approver alone, with a reason.

    Raises:
        AwaitingApprovalError: if a second person has to approve; the request is kept.
        GateFailedError: if the gate said FAIL or ERROR, or none was recorded.
        InconclusiveError: if it said INCONCLUSIVE.
        IntegrityError: if the version's files are no longer the registered bytes.
        UsageError: if the alias cannot be one, or a gate is to be overridden without a reason.
        AccessError: if the actor may not.
    """
    check_alias(alias)
    registry.verify_files(version)
    actor, recipe_digest = actor or current_actor(), recorded_digest(registry, first_of(registry, version))
    with begin_write(registry.engine) as connection:
        wait_turn(connection, version.name)
        gate = read_gate(connection, version)
        overrides = overrides_gate and (gate is None or gate["verdict"] != "PASS")
        if not overrides:
            require_pass(version, gate, recipe_digest)
        elif not reason.strip():
            raise UsageError("a gate is overridden with a reason alone: say why with `--reason`; it stays in the audit chain")
        before = read_alias(connection, version.name, alias)
        if before and before.version == version.version:
            return before
        protection = approvals.find_protection(connection, version.name, alias)
        if protection is None:
            gate_digest = approvals.digest_of_gate(gate)
            if overrides:
                record_override(connection, version, alias, gate, actor=actor, reason=reason)
            return move(connection, version, alias, actor=actor, action="promote", reason=reason, details={"gate_digest": gate_digest})
        request = approvals.ask(connection, version, alias, gate, overrides, protection, actor=actor, reason=reason)
    raise AwaitingApprovalError(
        f"{request.target} is protected: request {request.id} for {version.id}, by {request.requested_by!r}, waits until "
        f"{request.expires_at[:16]} for a second person; `lorimer adapters approve {request.id}`"
    )


def approve(registry: Registry, request_id: str, *, actor: str | None = None, reason: str = "") -> Alias:
    """Let a request happen, as the second person; it holds for the bytes and the gate result it was made for and no others.

    Raises:
        NotFoundError: if there is no such request.
        UsageError: if it was decided already or has expired.
        AccessError: if the actor asked for it, or may not approve.
        GateFailedError: if a newer gate result than the one it was made for is there; the request is void then.
        IntegrityError: if the version's files are no longer the registered bytes.
    """
    actor = actor or current_actor()
    asked = approvals.find_request(registry, request_id)
    version = registry.resolve(asked.version_id)
    registry.verify_files(version)
    with begin_write(registry.engine) as connection:
        wait_turn(connection, version.name)
        request = approvals.take(connection, asked.id, actor=actor)
        gate = read_gate(connection, version)
        found = approvals.digest_of_gate(gate)
        is_same = (version.digest, found) == (request.digest, request.gate_digest)
        approvals.decide(connection, request, "approved" if is_same else "void", actor=actor, reason=reason)
        if is_same:
            return _move_as_asked(connection, request, version, gate, actor=actor, reason=reason)
    raise GateFailedError(
        f"request {request.id} was for gate result {(request.gate_digest or 'none')[:12]}, the newest of {version.id} is "
        f"{(found or 'none')[:12]}: it is void; look at `lorimer adapters show {version.id}` and ask again"
    )


def _move_as_asked(
    connection: Connection, request: PromotionRequest, version: AdapterVersion, gate: RowMapping | None, *, actor: str, reason: str
) -> Alias:
    before = read_alias(connection, version.name, request.alias)
    if request.overrides_gate:
        record_override(connection, version, request.alias, gate, actor=actor, reason=request.reason)
    if before and before.version == version.version:  # another request for the same was faster
        return before
    details = {"gate_digest": request.gate_digest, "request": request.id, "requested_by": request.requested_by}
    why = "; ".join(text for text in (request.reason, reason) if text)
    return move(connection, version, request.alias, actor=actor, action="promote", reason=why, details=details)


def rollback(
    registry: Registry, name: str, *, alias: str = CHAMPION, to: str | None = None, actor: str | None = None, reason: str = ""
) -> tuple[Alias, AdapterVersion]:
    """Point an alias back at a version that held it before, at once and without a gate: the one before, or the one named (`v3`).

    Raises:
        NotFoundError: if the adapter has no such alias.
        UsageError: if it held nothing else before, or never the version named.
        IntegrityError: if that version's files are no longer the registered bytes.
        AccessError: if the actor may not.
    """
    actor = actor or current_actor()
    target = _find_target(history(registry, name, alias), name, alias, to)
    while True:
        version = registry.resolve(f"{name}@v{target}")
        registry.verify_files(version)
        with begin_write(registry.engine) as connection:
            wait_turn(connection, name)
            now_wanted = _find_target(_read_history(connection, name, alias), name, alias, to)
            if now_wanted == target:
                if approvals.find_protection(connection, name, alias) is not None:
                    require_role(connection, actor, "approve")
                return move(connection, version, alias, actor=actor, action="rollback", reason=reason, details={}), version
        target = now_wanted  # somebody moved it while the files were looked at


def history(registry: Registry, name: str, alias: str) -> tuple[AliasMove, ...]:
    """Where an alias has pointed, oldest first."""
    with registry.engine.connect() as connection:
        return _read_history(connection, name, alias)


def held(moves: Sequence[AliasMove]) -> list[int]:
    """The versions an alias goes back through: each promotion is put on top, each rollback takes off what was above its target."""
    stack = list[int]()
    for move_ in moves:
        if move_.action == "rollback" and move_.version in stack:
            del stack[len(stack) - stack[::-1].index(move_.version) :]
        else:
            stack.append(move_.version)
    return stack


def _find_target(moves: Sequence[AliasMove], name: str, alias: str, to: str | None) -> int:
    if not moves:
        raise NotFoundError(f"alias {alias!r} of {name!r} has never pointed anywhere: `lorimer adapters list` shows aliases")
    current, known = moves[-1].version, sorted({move_.version for move_ in moves})
    if to is None:
        before = [version for version in held(moves)[:-1] if version != current]
        if not before:
            raise UsageError(f"{name}@{alias} held no version before v{current}: promote another one instead")
        return before[-1]
    wanted = re.fullmatch(rf"(?:{re.escape(name)}@)?v([1-9]\d{{0,8}})", to)
    if wanted is None or int(wanted[1]) not in known:
        raise UsageError(f"{name}@{alias} never held {to!r}, only {', '.join(f'v{version}' for version in known)}: promote it instead")
    if int(wanted[1]) == current:
        raise UsageError(f"{name}@{alias} is v{current} already")
    return int(wanted[1])


def check_alias(alias: str) -> None:
    """See that something can be an alias.

    Raises:
        UsageError: if it cannot.
    """
    if not re.fullmatch(NAME_PATTERN, alias) or re.fullmatch(r"v\d+", alias):
        raise UsageError(f"{alias!r} cannot be an alias: use up to 63 of a-z, 0-9, - and _, and nothing that reads as a version (v3)")


def wait_turn(connection: Connection, name: str) -> None:
    """On PostgreSQL, who moves another alias of this adapter waits here; SQLite has one writer anyway."""
    connection.execute(select(adapter_versions.c.version).where(adapter_versions.c.name == name).with_for_update())


def read_gate(connection: Connection, version: AdapterVersion) -> RowMapping | None:
    """The newest gate result of these bytes on this base; read anew, since `version` may be an old record."""
    gates = gate_results.c
    query = select(gate_results).where(gates.adapter_digest == version.digest, gates.base_digest == version.base_digest)
    return connection.execute(query.order_by(gates.id.desc()).limit(1)).mappings().first()


def require_pass(version: AdapterVersion, gate: RowMapping | None, recipe_digest: str) -> None:
    """See that the gate of the recipe a version was registered with has let it through.

    Raises:
        GateFailedError, InconclusiveError: if not.
    """
    if gate is None:
        raise GateFailedError(f"{version.id} has met no gate: evaluate it with `lorimer evaluate {version.id}` before it is promoted")
    result = gate_from_json(gate["document"])
    if gate["verdict"] != "PASS":
        error = InconclusiveError if gate["verdict"] == "INCONCLUSIVE" else GateFailedError
        raise error(f"{version.id} cannot be promoted, its gate says {gate['verdict']}: {result.sentence}")
    if result.recipe_digest != recipe_digest:
        raise GateFailedError(
            f"the newest gate result of {version.id} is by another recipe ({result.recipe_digest[:12] or 'none'}) than the one it was "
            f"registered with ({recipe_digest[:12] or 'none'}): `lorimer evaluate {version.id}` asks its own"
        )
    if not result.is_final:
        raise GateFailedError(f"{version.id} was judged without the sealed items: `lorimer adapters promote {version.id}` asks them too")


def record_override(
    connection: Connection, version: AdapterVersion, alias: str, gate: RowMapping | None, *, actor: str, reason: str
) -> None:
    """Say in the audit chain that somebody has set a gate's verdict aside."""
    verdict = {"gate_digest": approvals.digest_of_gate(gate), "verdict": None if gate is None else str(gate["verdict"])}
    details = {"digest": version.digest, "alias": alias, **verdict}
    record(connection, actor=actor, action="override_gate", subject=version.id, reason=reason, details=details)


def read_alias(connection: Connection, name: str, alias: str) -> Alias | None:
    """Where an alias points."""
    query = select(aliases).where(aliases.c.adapter_name == name, aliases.c.alias == alias)
    row = connection.execute(query).mappings().first()
    return Alias(**row) if row else None


def move(
    connection: Connection, version: AdapterVersion, alias: str, *, actor: str, action: AliasAction, reason: str, details: Mapping[str, Any]
) -> Alias:
    """Point an alias at a version, and write that down: in its history and in the audit chain."""
    refuse_buried(connection, f"alias {version.name}@{alias}", adapters=[version.digest])
    before = read_alias(connection, version.name, alias)
    after = Alias(adapter_name=version.name, alias=alias, version=version.version, moved_at=now(), moved_by=actor)
    versions = {"version": version.version, "version_before": before.version if before else None}
    row = {"adapter_name": version.name, "alias": alias}
    connection.execute(delete(aliases).where(aliases.c.adapter_name == version.name, aliases.c.alias == alias))
    connection.execute(insert(aliases).values(**row, version=version.version, moved_at=after.moved_at, moved_by=actor))
    connection.execute(insert(alias_history).values(**row, **versions, action=action, at=after.moved_at, actor=actor, reason=reason))
    details = {"digest": version.digest, **details, **versions}
    record(connection, actor=actor, action=action, subject=after.id, reason=reason, details=details)
    return after


def _read_history(connection: Connection, name: str, alias: str) -> tuple[AliasMove, ...]:
    columns = [column for column in alias_history.columns if column.name != "id"]
    query = select(*columns).where(alias_history.c.adapter_name == name, alias_history.c.alias == alias).order_by(alias_history.c.id)
    return tuple(AliasMove(**row) for row in connection.execute(query).mappings())
