"""Erasure requests: who asked, who approved, how far each is, by when it has to be done. What is done in each state is in erase.py.

    received -> scoped -> approved -> quarantined -> erased -> retraining -> gated -> released -> certified

A request keeps subject keys, digests and counts. Neither the person's own id nor anything of the rows is in it.
"""

import calendar
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from lorimer.database import begin_write
from lorimer.errors import AccessError, LorimerError, NotFoundError, UsageError
from lorimer.registry.audit import current_actor, now, record
from lorimer.registry.records import Action
from lorimer.registry.registry import Registry
from lorimer.registry.roles import require_role
from lorimer.registry.schema import erasures, legal_holds, roles

State = Literal[
    "received", "scoped", "approved", "quarantined", "erased", "retraining", "gated", "released", "certified", "rejected", "merged"
]  # fmt: skip
STATES: tuple[State, ...] = get_args(State)
ENDED: tuple[State, ...] = ("certified", "rejected", "merged")
WAITING: tuple[State, ...] = ("received", "scoped")
Also = Callable[[Connection], Mapping[str, Any] | None]
"""What else a step does in its transaction; returns what the request keeps of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """One request, of one person or several."""

    id: str
    state: State
    requested_at: str
    requested_by: str
    due_at: str
    """One month after it came (GDPR Art. 12(3))."""
    approved_at: str | None = None
    approved_by: str | None = None
    finished_at: str | None = None
    document: dict[str, Any]
    """Keys, digests, counts."""
    receipt: dict[str, Any] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the subjects."""
        return tuple(self.document["keys"])

    @property
    def days_left(self) -> int:
        """Until it is due; below 0 if it is late."""
        return (datetime.fromisoformat(self.due_at) - datetime.fromisoformat(now())).days

    def to_json(self) -> dict[str, Any]:
        """The JSON value that `--json` prints."""
        return {**asdict(self), "days_left": self.days_left}


@dataclass(frozen=True, slots=True, kw_only=True)
class LegalHold:
    """Somebody's rows that must not be erased for now."""

    key: str
    placed_at: str
    placed_by: str
    reason: str


def receive(registry: Registry, keys: Collection[str], *, actor: str | None = None, reason: str = "") -> Erasure:
    """Keep a request; the same one that still waits is not kept twice.

    Raises:
        AccessError: if the actor may not ask for it.
    """
    actor = actor or current_actor()
    at = now()
    new = Erasure(
        id=secrets.token_hex(6),
        state="received",
        requested_at=at,
        requested_by=actor,
        due_at=a_month_after(at),
        document={"keys": sorted(set(keys))},
    )
    with begin_write(registry.engine) as connection:
        require_role(connection, actor, "request_erasure")
        for row in connection.execute(select(erasures).where(erasures.c.state.not_in(ENDED))).mappings():
            if set(row["document"]["keys"]) >= set(keys):
                return Erasure(**row)
        details = {"num_subjects": len(new.keys), "due_at": new.due_at}
        record(connection, actor=actor, action="request_erasure", subject=new.id, reason=reason, details=details)
        connection.execute(insert(erasures).values(asdict(new)))
    return new


def change(
    registry: Registry,
    erasure: Erasure,
    state: State,
    action: Action,
    *,
    actor: str | None = None,
    reason: str = "",
    details: Mapping[str, Any] | None = None,
    also: Also | None = None,
    **values: Any,
) -> Erasure:
    """Bring a request from the state it is in to another, with all that belongs to it, in one transaction.

    Raises:
        LorimerError: if somebody else has changed it meanwhile.
        AccessError: if the actor may not.
    """
    with begin_write(registry.engine) as connection:
        fresh = _take(connection, erasure)
        more = dict((also(connection) if also else None) or {})
        described = {"before": fresh.state, "after": state, **(details or {})}
        record(connection, actor=actor, action=action, subject=erasure.id, reason=reason, details=described)
        row = {"state": state, "document": {**fresh.document, **more}, **values}
        connection.execute(update(erasures).where(erasures.c.id == erasure.id).values(row))
        return replace(fresh, **row)


def note(registry: Registry, erasure: Erasure, **more: Any) -> Erasure:
    """Keep what was found on the way, without another state."""
    with begin_write(registry.engine) as connection:
        fresh = _take(connection, erasure)
        document = {**fresh.document, **more}
        connection.execute(update(erasures).where(erasures.c.id == erasure.id).values(document=document))
        return replace(fresh, document=document)


def approve(
    registry: Registry, ids: Sequence[str], *, actor: str | None = None, reason: str = "", allows_same_person: bool = False
) -> Erasure:
    """Let requests happen, as the second person; several become one, due when the first of them is.

    Raises:
        UsageError: if one does not wait for approval.
        AccessError: if the actor asked for it, and roles are granted here or it is not allowed; or may not approve.
        LorimerError: if a legal hold is on one of the subjects.
    """
    actor = actor or current_actor()
    found = sorted({one.id: one for one in (find_erasure(registry, each) for each in ids)}.values(), key=lambda one: one.due_at)
    first, others = found[0], found[1:]

    def merge(connection: Connection) -> dict[str, Any]:
        has_roles = connection.execute(select(roles.c.actor).limit(1)).first() is not None
        for one in found:
            if one.state != "scoped":
                raise UsageError(f"erasure {one.id} is {one.state}: only one that is scoped waits for approval")
            if one.requested_by == actor and (has_roles or not allows_same_person):
                how = (
                    "somebody with the role approver"
                    if has_roles
                    else "somebody else (or the same person with --yes, while nobody has a role)"
                )
                raise AccessError(f"erasure {one.id} was asked for by {actor!r} too: {how} approves it")
        keys = sorted({key for one in found for key in one.keys})
        _refuse_held(connection, first.id, keys)
        for one in others:
            details = {"into": first.id}
            record(connection, actor=actor, action="merge_erasures", subject=one.id, reason=reason, details=details)
            document = {**one.document, "into": first.id}
            connection.execute(update(erasures).where(erasures.c.id == one.id).values(state="merged", document=document, finished_at=now()))
        return {"keys": keys}

    more = {"merged": [one.id for one in others], "requested_by": first.requested_by}
    by = {"approved_at": now(), "approved_by": actor}
    return change(registry, first, "approved", "approve_erasure", actor=actor, reason=reason, details=more, also=merge, **by)


def reject(registry: Registry, erasure_id: str, *, actor: str | None = None, reason: str = "") -> Erasure:
    """Refuse a request; why is told to the person by whoever refuses.

    Raises:
        UsageError: if it does not wait any more, or no reason is given.
        AccessError: if the actor may not.
    """
    found = find_erasure(registry, erasure_id)
    if found.state not in WAITING:
        raise UsageError(f"erasure {found.id} is {found.state}: only one that waits for approval can be rejected")
    if not reason.strip():
        raise UsageError("a person whose request is rejected is told why (GDPR Art. 12(4)): give `--reason`")
    return change(registry, found, "rejected", "reject_erasure", actor=actor, reason=reason, finished_at=now())


def list_erasures(registry: Registry, *, open_only: bool = False) -> tuple[Erasure, ...]:
    """All requests, the one that is due first first."""
    query = select(erasures).order_by(erasures.c.due_at, erasures.c.id)
    if open_only:
        query = query.where(erasures.c.state.not_in(ENDED))
    with registry.engine.connect() as connection:
        return tuple(Erasure(**row) for row in connection.execute(query).mappings())


def find_erasure(registry: Registry, erasure_id: str) -> Erasure:
    """The request whose id begins so.

    Raises:
        NotFoundError: if there is not exactly one.
    """
    everything = list_erasures(registry)
    found = [one for one in everything if erasure_id and one.id.startswith(erasure_id)]
    if len(found) != 1:
        there = ", ".join(f"{one.id} ({one.state})" for one in everything if one.state not in ENDED) or "none"
        raise NotFoundError(f"{erasure_id!r} names {len(found)} erasures; open are: {there}")
    return found[0]


def place_hold(registry: Registry, key: str, *, actor: str | None = None, reason: str = "") -> LegalHold:
    """Keep a subject's rows from being erased until the hold is lifted.

    Raises:
        UsageError: without a reason.
        AccessError: if the actor may not.
    """
    if not reason.strip():
        raise UsageError("a legal hold needs a reason: give `--reason`; it stays in the audit chain")
    actor = actor or current_actor()
    hold = LegalHold(key=key, placed_at=now(), placed_by=actor, reason=reason)
    with begin_write(registry.engine) as connection:
        record(connection, actor=actor, action="hold_subject", subject="subject", reason=reason, details={})
        connection.execute(delete(legal_holds).where(legal_holds.c.key == key))
        connection.execute(insert(legal_holds).values(asdict(hold)))
    return hold


def lift_hold(registry: Registry, key: str, *, actor: str | None = None, reason: str = "") -> None:
    """Let a subject's rows be erased again.

    Raises:
        NotFoundError: if there is no hold.
        AccessError: if the actor may not.
    """
    with begin_write(registry.engine) as connection:
        record(connection, actor=actor, action="lift_hold", subject="subject", reason=reason, details={})
        if not connection.execute(delete(legal_holds).where(legal_holds.c.key == key)).rowcount:
            raise NotFoundError("there is no legal hold on this subject")


def a_month_after(at: str) -> str:
    """The same day of the next month, or its last."""
    moment = datetime.fromisoformat(at)
    year, month = moment.year + moment.month // 12, moment.month % 12 + 1
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return moment.replace(year=year, month=month, day=day).isoformat(timespec="seconds")


def _take(connection: Connection, erasure: Erasure) -> Erasure:
    """The request as it is now, for nobody else to change until the transaction ends."""
    row: RowMapping | None = connection.execute(select(erasures).where(erasures.c.id == erasure.id).with_for_update()).mappings().first()
    if row is None or row["state"] != erasure.state:
        found = "gone" if row is None else row["state"]
        raise LorimerError(f"erasure {erasure.id} was {erasure.state} and is {found} now: somebody else works on it, look at it again")
    return Erasure(**row)


def _refuse_held(connection: Connection, erasure_id: str, keys: Collection[str]) -> None:
    query = select(legal_holds).where(legal_holds.c.key.in_(keys))
    if found := connection.execute(query).mappings().first():
        raise LorimerError(
            f"erasure {erasure_id} waits: a legal hold is on a subject of it since {found['placed_at'][:10]}, by {found['placed_by']!r} "
            f"({found['reason']}); `lorimer erasures lift --subject ID` ends it"
        )
