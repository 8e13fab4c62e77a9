"""Who did what, when and why: written in the transaction of the deed itself, never changed afterwards."""

import getpass
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from lorimer.registry.records import Action, AuditEntry
from lorimer.registry.schema import audit


def record(
    connection: Connection, *, actor: str | None, action: Action, subject: str, reason: str = "", details: Mapping[str, Any]
) -> None:
    """Add an entry to the open transaction: the deed and its record happen together or not at all."""
    connection.execute(
        insert(audit).values(at=now(), actor=actor or current_actor(), action=action, subject=subject, reason=reason, details=dict(details))
    )


def read_audit(engine: Engine, subject: str | None = None) -> tuple[AuditEntry, ...]:
    """All entries, oldest first; of one version or alias, if named."""
    query = select(audit).order_by(audit.c.id)
    if subject is not None:
        query = query.where(audit.c.subject == subject)
    with engine.connect() as connection:
        return tuple(AuditEntry(**row) for row in connection.execute(query).mappings())


def current_actor() -> str:
    """The operating system's user; a service without one is `unknown`."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user id in this container, and no USER in the environment
        return "unknown"


def now() -> str:
    """The time as every record has it: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
