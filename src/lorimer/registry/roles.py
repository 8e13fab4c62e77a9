"""Who may change what. While no role was granted everybody may do everything; from the first grant on nobody may without one.

The check stands where the deed is recorded (audit.py), in its transaction, so that there is no way around it through this program.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import Connection, Engine, select

from lorimer.errors import AccessError
from lorimer.registry.records import Action
from lorimer.registry.schema import roles

Role = Literal["viewer", "trainer", "approver", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""From the least to the most; each may what those before it may."""

NEEDED: dict[str, Role] = {
    "approve": "approver",
    "reject": "approver",
    "override_gate": "approver",
    "approve_erasure": "approver",
    "reject_erasure": "approver",
    "merge_erasures": "approver",
    "hold_subject": "admin",
    "lift_hold": "admin",
    "protect_alias": "admin",
    "unprotect_alias": "admin",
    "grant_role": "admin",
    "revoke_role": "admin",
    "trust_key": "admin",
    "distrust_key": "admin",
    "create_key": "admin",
    "revoke_key": "admin",
    "limit_tenant": "admin",
    "restore": "admin",
}
"""What a deed needs; those that are not here, a trainer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A person or service, and its role."""

    actor: str
    role: Role
    granted_at: str
    granted_by: str


def require_role(connection: Connection, actor: str, action: Action) -> None:
    """See that somebody may do something.

    Raises:
        AccessError: if roles were granted here, and the actor's is not enough.
    """
    needed = NEEDED.get(action, "trainer")
    if not has_role(connection, actor, needed):
        own = _role_of(connection, actor)
        has = f"has the role {own!r}" if own else "has no role"
        raise AccessError(
            f"{actor!r} {has} in this registry, {action.replace('_', ' ')!r} needs {needed!r}: "
            f"an admin gives it with `lorimer roles grant {actor} {needed}`"
        )


def check_role(engine: Engine, actor: str, action: Action) -> None:
    """`require_role` before work that would only be refused at its end."""
    with engine.connect() as connection:
        require_role(connection, actor, action)


def has_role(connection: Connection, actor: str, needed: Role) -> bool:
    """Whether an actor's role is at least that one, or there are no roles yet."""
    own = _role_of(connection, actor)
    if own is None:
        return connection.execute(select(roles.c.actor).limit(1)).first() is None
    return ROLES.index(own) >= ROLES.index(needed)


def list_roles(engine: Engine) -> tuple[Grant, ...]:
    """Who has which role."""
    with engine.connect() as connection:
        return tuple(Grant(**row) for row in connection.execute(select(roles).order_by(roles.c.actor)).mappings())


def actor_of_key(prefix: str | None) -> str:
    """How whoever uses an API key, or none where none is asked for, is called in records."""
    return f"key:{prefix or 'none'}"


def _role_of(connection: Connection, actor: str) -> Role | None:
    found = connection.execute(select(roles.c.role).where(roles.c.actor == actor)).scalar()
    return next((role for role in ROLES if role == found), None)
