"""Who did what, when and why: written in the transaction of the deed itself, each entry chained to the one before, the newest one signed.

An entry's digest is SHA-256 over the canonical JSON of all its fields, the digest of the entry before among them. New entries follow the
signed head, not the last row, so that rows cut off the end stay missing for ever. Whether the chain holds is for audit_check.py to say.
"""

import base64
import getpass
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, text, update

from lorimer.config import home
from lorimer.errors import UsageError
from lorimer.registry.records import Action, AuditEntry
from lorimer.registry.roles import require_role
from lorimer.registry.schema import audit, audit_heads
from lorimer.registry.signing import PublicKey, Signer, pre_authentication_encoding
from lorimer.registry.trust import enrol
from lorimer.storage import canonical_json, digest_of, read_json, write_bytes

ACTOR_VARIABLE = "LORIMER_ACTOR"
MAX_ACTOR_LEN = 200
FIRST = "0" * 64
"""What the first entry has for the digest of the one before."""
HEAD_TYPE = "application/vnd.lorimer.audit-head+json"
AUDIT_LOCK = 5_046_184  # a PostgreSQL advisory lock: any number, the same in every process


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The newest entry, as somebody has signed it."""

    sequence: int
    digest: str
    key_id: str = ""
    signature: str = ""
    """Base64; empty, as the key, where an upgrade has computed the chain and nothing was recorded since."""

    @property
    def message(self) -> bytes:
        """What is signed."""
        return pre_authentication_encoding(HEAD_TYPE, canonical_json({"digest": self.digest, "sequence": self.sequence}))

    def is_signed_by(self, key: PublicKey) -> bool:
        """Whether the signature is right."""
        try:
            return key.verifies(base64.b64decode(self.signature, validate=True), self.message)
        except ValueError:
            return False


def record(
    connection: Connection, *, actor: str | None, action: Action, subject: str, reason: str = "", details: Mapping[str, Any]
) -> None:
    """Add an entry to the open transaction: the deed and its record happen together or not at all.

    Raises:
        AccessError: if roles were granted here, and the actor's is not enough for this deed; the transaction is then undone.
    """
    actor = actor or current_actor()
    signer = open_trusted_signer(connection, actor, action)
    _append(connection, signer, actor=actor, action=action, subject=subject, reason=reason, details=details)


def open_trusted_signer(connection: Connection, actor: str, action: Action) -> Signer:
    """The key that signs here, once it is seen that the actor may do this and that the key counts; others who write wait from here on.

    Raises:
        AccessError: if the actor may not, or the key is not trusted and the actor may not add it.
        IntegrityError: if the key was removed from the trusted ones.
    """
    take_turn(connection)
    require_role(connection, actor, action)
    signer, is_new = enrol(connection, actor=actor, at=now())
    if is_new:
        added = {"key_id": signer.public.id}
        _append(connection, signer, actor=actor, action="trust_key", subject=signer.public.id[:16], reason="first use", details=added)
    return signer


def take_turn(connection: Connection) -> None:
    """Wait until no other transaction is adding entries. SQLite has one writer anyway: `begin_write` waits for it at the start."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": AUDIT_LOCK})


def read_head(connection: Connection) -> Head | None:
    """The signed head of the chain; None while nothing was recorded."""
    row = connection.execute(select(audit_heads).where(audit_heads.c.id == 1)).mappings().first()
    return None if row is None else Head(**{name: row[name] for name in ("sequence", "digest", "key_id", "signature")})


def digest_of_entry(entry: Mapping[str, Any]) -> str:
    """SHA-256 over an entry's fields, but for its own digest."""
    return digest_of({name: entry[name] for name in ("id", "at", "actor", "action", "subject", "reason", "details", "previous")})


def read_audit(engine: Engine, subject: str | None = None) -> tuple[AuditEntry, ...]:
    """All entries, oldest first; of one version or alias, if named."""
    query = select(audit).order_by(audit.c.id)
    if subject is not None:
        query = query.where(audit.c.subject == subject)
    with engine.connect() as connection:
        return tuple(AuditEntry(**row) for row in connection.execute(query).mappings())


def current_actor() -> str:
    """Who acts: `LORIMER_ACTOR`, else the operating system's user; a service without one is `unknown`.

    Raises:
        UsageError: if the variable names nobody that could be written into a record.
    """
    if (named := os.environ.get(ACTOR_VARIABLE)) is not None:
        if not named.strip() or len(named) > MAX_ACTOR_LEN or not named.isprintable():
            raise UsageError(f"{ACTOR_VARIABLE} is {named[:40]!r}, which names nobody: give up to {MAX_ACTOR_LEN} printable characters")
        return named.strip()
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user id in this container, and no USER in the environment
        return "unknown"


def now() -> str:
    """The time as every record has it: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _append(
    connection: Connection, signer: Signer, *, actor: str, action: Action, subject: str, reason: str, details: Mapping[str, Any]
) -> None:
    before = read_head(connection) or _last_row(connection)
    entry = {
        "id": before.sequence + 1,
        "at": now(),
        "actor": actor,
        "action": action,
        "subject": subject,
        "reason": reason,
        "details": json.loads(canonical_json(dict(details))),  # as it will be read back
        "previous": before.digest,
    }
    digest = digest_of_entry(entry)
    connection.execute(insert(audit).values(**entry, digest=digest))
    _sign_head(connection, Head(sequence=before.sequence + 1, digest=digest), signer)
    if (
        connection.info.get("lorimer_noted") is not connection.get_transaction()
    ):  # a later entry of one transaction follows none that is kept
        connection.info["lorimer_noted"] = connection.get_transaction()
        remember(connection, before)


def _last_row(connection: Connection) -> Head:
    row = connection.execute(select(audit.c.id, audit.c.digest).order_by(audit.c.id.desc()).limit(1)).first()
    return Head(sequence=0, digest=FIRST) if row is None else Head(sequence=row[0], digest=row[1])


def _sign_head(connection: Connection, head: Head, signer: Signer) -> None:
    signature = base64.b64encode(signer.sign(head.message)).decode()
    row = {"sequence": head.sequence, "digest": head.digest, "key_id": signer.public.id, "signature": signature}
    if connection.execute(update(audit_heads).where(audit_heads.c.id == 1).values(row)).rowcount == 0:
        connection.execute(insert(audit_heads).values(id=1, **row))


def remember(connection: Connection, head: Head) -> None:
    """Note a committed head in the home folder, outside the database; never over one that this chain does not hold, nor a later one."""
    if head.sequence == 0:
        return
    known = remembered(connection.engine)
    if known is not None:
        if known.sequence >= head.sequence:
            return
        if connection.execute(select(audit.c.digest).where(audit.c.id == known.sequence)).scalar() != known.digest:
            return
    write_bytes(_memory(connection.engine), canonical_json({"sequence": head.sequence, "digest": head.digest}) + b"\n")


def remembered(engine: Engine) -> Head | None:
    """The newest head that this home has seen of this database."""
    try:
        value = read_json(_memory(engine))
        return Head(sequence=int(value["sequence"]), digest=str(value["digest"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Head(sequence=0, digest="")  # somebody has been at it: no chain holds this


def memory_path(engine: Engine) -> str:
    """Where that is noted."""
    return str(_memory(engine))


def _memory(engine: Engine) -> Any:
    url, own = engine.url, str(home() / "lorimer.db")
    name = "own" if url.database == own else digest_of(url.render_as_string(hide_password=True))[:16]
    return home() / "audit" / f"{name}.json"
