"""Changes to who decides: roles given and taken, keys trusted and no longer, each with its entry in the audit chain."""

from sqlalchemy import delete, func, insert, select, update

from lorimer.database import begin_write
from lorimer.errors import NotFoundError, UsageError
from lorimer.registry.audit import MAX_ACTOR_LEN, current_actor, now, record
from lorimer.registry.registry import Registry
from lorimer.registry.roles import ROLES, Grant, Role, list_roles
from lorimer.registry.schema import roles, trusted_keys
from lorimer.registry.signing import PublicKey, own_public_key
from lorimer.registry.trust import TrustedKey, insert_key, list_keys


def grant_role(registry: Registry, actor: str, role: str, *, by: str | None = None, reason: str = "") -> Grant:
    """Give somebody a role, in the place of the one they have.

    Raises:
        UsageError: if there is no such role, the name cannot be one, or nobody would be admin.
        AccessError: if who grants it may not.
    """
    by = by or current_actor()
    wanted = _read_role(role)
    if not actor.strip() or len(actor) > MAX_ACTOR_LEN or not actor.isprintable() or actor != actor.strip():
        raise UsageError(f"{actor[:40]!r} names nobody: give up to {MAX_ACTOR_LEN} printable characters, as LORIMER_ACTOR or a login name")
    grant = Grant(actor=actor, role=wanted, granted_at=now(), granted_by=by)
    with begin_write(registry.engine) as connection:
        others = connection.execute(select(func.count()).where(roles.c.role == "admin", roles.c.actor != actor)).scalar() or 0
        if wanted != "admin" and not others:
            raise UsageError(
                f"{actor!r} as {wanted} would leave nobody who is admin: begin with `lorimer roles grant {by} admin`, then grant the others"
            )
        details = {"actor": actor, "role": wanted}
        record(connection, actor=by, action="grant_role", subject=actor, reason=reason, details=details)
        connection.execute(delete(roles).where(roles.c.actor == actor))
        connection.execute(insert(roles).values(actor=actor, role=wanted, granted_at=grant.granted_at, granted_by=by))
    return grant


def revoke_role(registry: Registry, actor: str, *, by: str | None = None, reason: str = "") -> None:
    """Take somebody's role away; they may look then, and change nothing.

    Raises:
        NotFoundError: if they have none.
        UsageError: if nobody would be admin.
        AccessError: if who takes it may not.
    """
    by = by or current_actor()
    with begin_write(registry.engine) as connection:
        own = connection.execute(select(roles.c.role).where(roles.c.actor == actor)).scalar()
        if own is None:
            named = ", ".join(f"{grant.actor} ({grant.role})" for grant in list_roles(registry.engine)) or "nobody has one"
            raise NotFoundError(f"{actor!r} has no role: {named}")
        others = connection.execute(select(func.count()).where(roles.c.role == "admin", roles.c.actor != actor)).scalar() or 0
        if own == "admin" and not others:
            raise UsageError(f"{actor!r} is the last admin: grant somebody else the role first")
        record(connection, actor=by, action="revoke_role", subject=actor, reason=reason, details={"actor": actor, "role": own})
        connection.execute(delete(roles).where(roles.c.actor == actor))


def add_key(registry: Registry, key: PublicKey, *, name: str, actor: str | None = None, reason: str = "") -> TrustedKey:
    """Let a key's signatures count from now on.

    Raises:
        AccessError: if the actor may not add any.
    """
    actor = actor or current_actor()
    with begin_write(registry.engine) as connection:
        record(connection, actor=actor, action="trust_key", subject=key.id[:16], reason=reason, details={"key_id": key.id, "name": name})
        insert_key(connection, key, name=name, actor=actor, at=now())
    return next(one for one in list_keys(registry.engine) if one.key_id == key.id)


def remove_key(registry: Registry, reference: str, *, actor: str | None = None, reason: str = "") -> TrustedKey:
    """Let a key's signatures count no more: what it alone has signed is refused until it is signed again.

    Raises:
        NotFoundError: if there is not exactly one key of that name or beginning.
        UsageError: if it is the one that signs here.
        AccessError: if the actor may not remove any.
    """
    keys = [key for key in list_keys(registry.engine) if key.removed_at is None]
    found = [key for key in keys if key.name == reference or (len(reference) >= 6 and key.key_id.startswith(reference))]
    if len(found) != 1:
        there = ", ".join(f"{key.key_id[:16]} ({key.name})" for key in keys) or "none yet"
        raise NotFoundError(f"{reference!r} names {len(found)} trusted keys, there are: {there}")
    own = own_public_key()
    if own is not None and own.id == found[0].key_id:
        raise UsageError(f"key {own.id[:16]} signs here: set LORIMER_SIGNING_KEY to another, `lorimer adapters sign --all`, then remove it")
    with begin_write(registry.engine) as connection:
        details = {"key_id": found[0].key_id, "name": found[0].name}
        record(connection, actor=actor, action="distrust_key", subject=found[0].key_id[:16], reason=reason, details=details)
        connection.execute(update(trusted_keys).where(trusted_keys.c.key_id == found[0].key_id).values(removed_at=now()))
    return found[0]


def _read_role(text: str) -> Role:
    role = next((role for role in ROLES if role == text), None)
    if role is None:
        raise UsageError(f"there is no role {text!r}: the roles are {', '.join(ROLES)}, each may what those before it may")
    return role
