"""An alias moves only past a gate, and everybody can read who moved it. What the alias is used for, it does not know."""

import re

from sqlalchemy import Connection, delete, insert, select

from lorimer.database import begin_write
from lorimer.errors import GateFailedError, InconclusiveError, UsageError
from lorimer.evaluation.gates import gate_from_json
from lorimer.registry.audit import current_actor, now, record
from lorimer.registry.records import AdapterVersion, Alias
from lorimer.registry.registry import CHAMPION, NAME_PATTERN, Registry
from lorimer.registry.schema import adapter_versions, aliases, gate_results


def promote(registry: Registry, version: AdapterVersion, *, alias: str = CHAMPION, actor: str | None = None, reason: str = "") -> Alias:
    """Point an alias at a version whose newest gate result, for these very bytes, is PASS.

    Raises:
        GateFailedError: if the gate said FAIL or ERROR, or none was recorded.
        InconclusiveError: if it said INCONCLUSIVE.
        IntegrityError: if the version's files are no longer the registered bytes.
        UsageError: if the alias cannot be one.
    """
    if not re.fullmatch(NAME_PATTERN, alias) or re.fullmatch(r"v\d+", alias):
        raise UsageError(f"{alias!r} cannot be an alias: use up to 63 of a-z, 0-9, - and _, and nothing that reads as a version (v3)")
    registry.verify_files(version)
    actor = actor or current_actor()
    with begin_write(registry.engine) as connection:
        # on PostgreSQL, who promotes another version of this adapter waits here; SQLite has one writer anyway
        connection.execute(select(adapter_versions.c.version).where(adapter_versions.c.name == version.name).with_for_update())
        gate_digest = _require_passed_gate(connection, version)
        before = _read_alias(connection, version.name, alias)
        if before and before.version == version.version:
            return before
        after = Alias(adapter_name=version.name, alias=alias, version=version.version, moved_at=now(), moved_by=actor)
        _move(connection, after)
        versions = {"version": version.version, "version_before": before.version if before else None}
        details = {"digest": version.digest, "gate_digest": gate_digest, **versions}
        record(connection, actor=actor, action="promote", subject=after.id, reason=reason, details=details)
        return after


def _require_passed_gate(connection: Connection, version: AdapterVersion) -> str:
    """The digest of the passed gate result; read anew, since `version` may be an old record."""
    gates = gate_results.c
    query = select(gate_results).where(gates.adapter_digest == version.digest, gates.base_digest == version.base_digest)
    gate = connection.execute(query.order_by(gates.id.desc()).limit(1)).mappings().first()
    if gate is None:
        raise GateFailedError(f"{version.id} has met no gate: evaluate it with `lorimer evaluate {version.id}` before it is promoted")
    if gate["verdict"] != "PASS":
        sentence = gate_from_json(gate["document"]).sentence
        error = InconclusiveError if gate["verdict"] == "INCONCLUSIVE" else GateFailedError
        raise error(f"{version.id} cannot be promoted, its gate says {gate['verdict']}: {sentence}")
    return str(gate["digest"])


def _read_alias(connection: Connection, name: str, alias: str) -> Alias | None:
    query = select(aliases).where(aliases.c.adapter_name == name, aliases.c.alias == alias)
    row = connection.execute(query).mappings().first()
    return Alias(**row) if row else None


def _move(connection: Connection, alias: Alias) -> None:
    row = {"adapter_name": alias.adapter_name, "alias": alias.alias, "version": alias.version}
    connection.execute(delete(aliases).where(aliases.c.adapter_name == alias.adapter_name, aliases.c.alias == alias.alias))
    connection.execute(insert(aliases).values(**row, moved_at=alias.moved_at, moved_by=alias.moved_by))
