"""Fencing off: nothing that learned from a person's rows answers or is built upon; routes go to the newest version that is free of them."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from lorimer.errors import LorimerError
from lorimer.registry.audit import record, take_turn
from lorimer.registry.promotion import move
from lorimer.registry.records import AdapterVersion, Alias
from lorimer.registry.registry import Registry
from lorimer.registry.schema import adapter_versions, alias_history, aliases, held_routes
from lorimer.registry.scope import Scope
from lorimer.registry.tombstones import bury


def fence(
    connection: Connection, registry: Registry, scope: Scope, keys: Collection[str], *, erasure: str, actor: str
) -> list[dict[str, Any]]:
    """Bury all that a scope reaches and move the aliases that point there, in the caller's transaction; returns what became of them.

    Raises:
        LorimerError: if something was registered since the scope was taken: take it again.
    """
    connection.execute(
        select(adapter_versions.c.version).with_for_update()
    )  # whoever moves an alias goes before or after this, and so does
    take_turn(connection)  # whoever registers
    bury(connection, "subject", keys, erasure=erasure)
    bury(connection, "dataset", scope.radius.datasets, erasure=erasure)
    bury(connection, "adapter", scope.adapters, erasure=erasure)
    columns = adapter_versions.c
    learned = select(columns.name).where(columns.dataset_digest.in_(scope.radius.datasets), columns.digest.not_in(scope.adapters))
    if found := connection.execute(learned).scalar():
        raise LorimerError(f"a version of {found!r} was registered while its dataset was being searched: run the command again")
    everything = registry.list_versions()
    gone = set(scope.adapters)
    return [_hold(connection, alias, everything, gone, erasure=erasure, actor=actor) for alias in _pointing(connection, everything, gone)]


def _pointing(connection: Connection, everything: Sequence[AdapterVersion], gone: Collection[str]) -> list[Alias]:
    ids = {(version.name, version.version) for version in everything if version.digest in gone}
    found = (Alias(**row) for row in connection.execute(select(aliases)).mappings())
    return [alias for alias in found if (alias.adapter_name, alias.version) in ids]


def _hold(
    connection: Connection, alias: Alias, everything: Sequence[AdapterVersion], gone: Collection[str], *, erasure: str, actor: str
) -> dict[str, Any]:
    """Point one alias elsewhere, or nowhere, and write down where it pointed."""
    own = held_routes.c.adapter_name == alias.adapter_name, held_routes.c.alias == alias.alias
    if connection.execute(select(held_routes.c.version).where(*own)).first() is None:
        row = {"adapter_name": alias.adapter_name, "alias": alias.alias, "version": alias.version, "erasure": erasure}
        connection.execute(insert(held_routes).values(row))
    free = [v for v in everything if v.name == alias.adapter_name and v.digest not in gone and v.erasure is None]
    target = _newest_trusted(connection, alias, free)
    route = {"alias": alias.alias, "name": alias.adapter_name, "version": alias.version, "fallback": target and target.version}
    why = f"erasure {erasure}"
    if target is not None:
        move(connection, target, alias.alias, actor=actor, action="quarantine", reason=why, details={"erasure": erasure})
    else:
        connection.execute(delete(aliases).where(aliases.c.adapter_name == alias.adapter_name, aliases.c.alias == alias.alias))
        details = {"erasure": erasure, "version": None, "version_before": alias.version}
        record(connection, actor=actor, action="quarantine", subject=alias.id, reason=why, details=details)
    return route


def _newest_trusted(connection: Connection, alias: Alias, free: Sequence[AdapterVersion]) -> AdapterVersion | None:
    """Of versions free of the rows, the newest that passed its gate or held this very alias before; what nobody let through stays out."""
    history = alias_history.c
    query = select(history.version).where(history.adapter_name == alias.adapter_name, history.alias == alias.alias)
    held = set(connection.execute(query).scalars())
    trusted = [version for version in free if version.gate_verdict == "PASS" or version.version in held]
    return max(trusted, key=lambda version: version.version, default=None)
