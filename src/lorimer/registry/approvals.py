"""Protected aliases, and the promotions to them that wait for a second person. What happens once one is approved is promotion.py's."""

import secrets
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, insert, or_, select, update

from lorimer.database import begin_write
from lorimer.errors import AccessError, NotFoundError, UsageError
from lorimer.registry.audit import current_actor, now, record
from lorimer.registry.records import Action, AdapterVersion, PromotionRequest, ProtectedAlias, RequestState
from lorimer.registry.registry import Registry
from lorimer.registry.schema import promotion_requests, protected_aliases

DAYS, MAX_DAYS = 7, 90
EVERY = ""  # in the place of an adapter's name


def protect(registry: Registry, alias: str, *, name: str = EVERY, days: int = DAYS, actor: str | None = None, reason: str = "") -> None:
    """From now on an alias, of one adapter or of all, moves only with a second person's approval, asked for at most `days` before.

    Raises:
        UsageError: if it cannot wait so long.
        AccessError: if the actor may not.
    """
    if not 1 <= days <= MAX_DAYS:
        raise UsageError(f"a request can wait 1 to {MAX_DAYS} days, not {days}")
    actor = actor or current_actor()
    with begin_write(registry.engine) as connection:
        row = ProtectedAlias(adapter_name=name, alias=alias, days=days, protected_at=now(), protected_by=actor)
        record(connection, actor=actor, action="protect_alias", subject=row.id, reason=reason, details={"days": days})
        connection.execute(delete(protected_aliases).where(*_is(name, alias)))
        values = {column.name: getattr(row, column.name) for column in protected_aliases.columns}
        connection.execute(insert(protected_aliases).values(values))


def unprotect(registry: Registry, alias: str, *, name: str = EVERY, actor: str | None = None, reason: str = "") -> None:
    """Let an alias move without approval again.

    Raises:
        NotFoundError: if it is not protected.
        AccessError: if the actor may not.
    """
    with begin_write(registry.engine) as connection:
        found = connection.execute(select(protected_aliases).where(*_is(name, alias))).mappings().first()
        if found is None:
            named = ", ".join(one.id for one in list_protected(registry)) or "none"
            raise NotFoundError(f"{name + '@' if name else ''}{alias} is not protected; protected are: {named}")
        record(connection, actor=actor, action="unprotect_alias", subject=ProtectedAlias(**found).id, reason=reason, details={})
        connection.execute(delete(protected_aliases).where(*_is(name, alias)))


def list_protected(registry: Registry) -> tuple[ProtectedAlias, ...]:
    """What moves only with approval."""
    query = select(protected_aliases).order_by(protected_aliases.c.alias, protected_aliases.c.adapter_name)
    with registry.engine.connect() as connection:
        return tuple(ProtectedAlias(**row) for row in connection.execute(query).mappings())


def find_protection(connection: Connection, name: str, alias: str) -> ProtectedAlias | None:
    """What protects an alias: its own entry, else the one for every adapter."""
    columns = protected_aliases.c
    query = select(protected_aliases).where(columns.alias == alias, or_(columns.adapter_name == name, columns.adapter_name == EVERY))
    row = connection.execute(query.order_by(columns.adapter_name.desc()).limit(1)).mappings().first()
    return ProtectedAlias(**row) if row else None


def ask(
    connection: Connection,
    version: AdapterVersion,
    alias: str,
    gate: RowMapping | None,
    overrides: bool,
    protection: ProtectedAlias,
    *,
    actor: str,
    reason: str,
) -> PromotionRequest:
    """Keep a request, unless the same one waits already."""
    gate_digest, columns = digest_of_gate(gate), promotion_requests.c
    same = (
        columns.adapter_name == version.name,
        columns.alias == alias,
        columns.version == version.version,
        columns.digest == version.digest,
    )
    found = connection.execute(select(promotion_requests).where(*same, columns.state == "waiting", columns.expires_at > now())).mappings()
    for row in found:
        if (row["gate_digest"], row["overrides_gate"]) == (gate_digest, overrides):
            return PromotionRequest(**row)
    request = PromotionRequest(
        id=secrets.token_hex(6),
        adapter_name=version.name,
        alias=alias,
        version=version.version,
        digest=version.digest,
        gate_digest=gate_digest,
        overrides_gate=overrides,
        reason=reason,
        requested_at=now(),
        requested_by=actor,
        expires_at=(datetime.now(UTC) + timedelta(days=protection.days)).isoformat(timespec="seconds"),
        state="waiting",
    )
    values = {column.name: getattr(request, column.name) for column in promotion_requests.columns}
    connection.execute(insert(promotion_requests).values(values))
    details = {"request": request.id, "digest": version.digest, "gate_digest": gate_digest, "version": version.version}
    details |= {"overrides_gate": overrides, "expires_at": request.expires_at}
    record(connection, actor=actor, action="request_promotion", subject=request.target, reason=reason, details=details)
    return request


def list_requests(registry: Registry, *, waiting_only: bool = False) -> tuple[PromotionRequest, ...]:
    """All requests, newest first; one whose time is over is `expired`."""
    query = select(promotion_requests).order_by(promotion_requests.c.requested_at.desc(), promotion_requests.c.id)
    with registry.engine.connect() as connection:
        found = [_request_from(row) for row in connection.execute(query).mappings()]
    return tuple(request for request in found if request.state == "waiting" or not waiting_only)


def find_request(registry: Registry, request_id: str) -> PromotionRequest:
    """The request whose id begins so.

    Raises:
        NotFoundError: if there is not exactly one.
    """
    requests = list_requests(registry)
    found = [request for request in requests if request_id and request.id.startswith(request_id)]
    if len(found) != 1:
        waiting = ", ".join(f"{one.id} ({one.version_id} for {one.target})" for one in requests if one.state == "waiting") or "none"
        raise NotFoundError(f"{request_id!r} names {len(found)} requests; waiting are: {waiting}")
    return found[0]


def reject(registry: Registry, request_id: str, *, actor: str | None = None, reason: str = "") -> PromotionRequest:
    """Refuse a request, as the second person.

    Raises:
        NotFoundError, UsageError, AccessError: as `promotion.approve`.
    """
    actor = actor or current_actor()
    asked = find_request(registry, request_id)
    with begin_write(registry.engine) as connection:
        decide(connection, take(connection, asked.id, actor=actor), "rejected", actor=actor, reason=reason)
    return find_request(registry, asked.id)


def take(connection: Connection, request_id: str, *, actor: str) -> PromotionRequest:
    """A request that waits, for its second person to decide; others who would decide it wait until that is done.

    Raises:
        UsageError: if it does not wait any more.
        AccessError: if the actor asked for it.
    """
    row = connection.execute(select(promotion_requests).where(promotion_requests.c.id == request_id).with_for_update()).mappings().one()
    request = _request_from(row)
    if request.state != "waiting":
        when = f"at {request.expires_at[:16]}" if request.state == "expired" else f"by {request.decided_by!r} at {request.decided_at}"
        raise UsageError(
            f"request {request.id} is {request.state} ({when}): ask again with `lorimer adapters promote {request.version_id}`"
        )
    if request.requested_by == actor:
        raise AccessError(
            f"request {request.id} was made by {actor!r} too: a second person decides; `lorimer adapters requests` shows who asked"
        )
    return request


def decide(connection: Connection, request: PromotionRequest, state: RequestState, *, actor: str, reason: str) -> None:
    """Write down what became of a request."""
    details = {"request": request.id, "digest": request.digest, "gate_digest": request.gate_digest, "requested_by": request.requested_by}
    action: Action = "approve" if state == "approved" else "reject"
    record(connection, actor=actor, action=action, subject=request.target, reason=reason, details={**details, "state": state})
    decided = {"state": state, "decided_at": now(), "decided_by": actor, "decision_reason": reason}
    connection.execute(update(promotion_requests).where(promotion_requests.c.id == request.id).values(decided))


def digest_of_gate(gate: RowMapping | None) -> str | None:
    """That of a gate result as the database has it; None if there is none."""
    return None if gate is None else str(gate["digest"])


def _request_from(row: RowMapping) -> PromotionRequest:
    state = "expired" if row["state"] == "waiting" and row["expires_at"] <= now() else row["state"]
    return PromotionRequest(**{**row, "state": state})


def _is(name: str, alias: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return protected_aliases.c.adapter_name == name, protected_aliases.c.alias == alias
