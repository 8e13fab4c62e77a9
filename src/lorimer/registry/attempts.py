"""How often a suite was used: each adapter it judged taught something about its items, so the count stands beside every verdict."""

from sqlalchemy import func, insert, select

from lorimer.database import begin_write
from lorimer.registry.audit import current_actor, now
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.registry.schema import suite_attempts


def count_attempt(registry: Registry, suite_digest: str, suite_id: str, version: AdapterVersion, *, actor: str | None = None) -> int:
    """Note that a version of a suite judges an adapter; returns which one of its adapters it is, from 1. The same adapter counts once."""
    attempts = suite_attempts.c
    with begin_write(registry.engine) as connection:
        own = attempts.suite_digest == suite_digest
        known = connection.execute(select(attempts.number).where(own, attempts.adapter_digest == version.digest)).scalar()
        if known is not None:
            return int(known)
        number = int(connection.execute(select(func.count()).where(own)).scalar_one()) + 1
        row = {"suite_digest": suite_digest, "adapter_digest": version.digest, "suite": suite_id, "number": number}
        connection.execute(insert(suite_attempts).values(**row, attempted_at=now(), attempted_by=actor or current_actor()))
    return number
