"""Which public keys count: those that were added to this database. The first one to sign here is, without being asked for."""

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, insert, select, update

from lorimer.errors import AccessError, IntegrityError
from lorimer.registry.roles import has_role
from lorimer.registry.schema import trusted_keys
from lorimer.registry.signing import PublicKey, Signer, open_signer, own_public_key, public_key_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A key whose signatures count, or did until it was removed."""

    key_id: str
    public_key: str
    name: str
    added_at: str
    added_by: str
    removed_at: str | None = None


def enrol(connection: Connection, *, actor: str, at: str) -> tuple[Signer, bool]:
    """The key that signs here, trusted from now on; and whether that is news worth an entry, which the first of all is not.

    Raises:
        IntegrityError: if it was removed from the trusted ones.
        AccessError: if there are others, and the actor may not add any.
    """
    signer = open_signer()
    known = {row.key_id: row.removed_at for row in connection.execute(select(trusted_keys.c.key_id, trusted_keys.c.removed_at))}
    if signer.public.id in known:
        if known[signer.public.id] is not None:
            raise IntegrityError(
                f"this home signs with key {signer.public.id[:16]}, which is trusted no more: set LORIMER_SIGNING_KEY to another, "
                "or have an admin add it again (`lorimer trust show`, `lorimer trust add`)"
            )
        return signer, False
    if known and not has_role(connection, actor, "admin"):
        raise AccessError(
            f"this home signs with key {signer.public.id[:16]}, which this registry does not trust yet, and {actor!r} may not add it: "
            "an admin does so with `lorimer trust add FILE`, on what `lorimer trust show` prints here"
        )
    insert_key(connection, signer.public, name=f"home of {actor}", actor=actor, at=at)
    return signer, bool(known)


def insert_key(connection: Connection, key: PublicKey, *, name: str, actor: str, at: str) -> None:
    """Add a key, or take one back that was removed."""
    row = {"public_key": key.text, "name": name, "added_at": at, "added_by": actor, "removed_at": None}
    if connection.execute(update(trusted_keys).where(trusted_keys.c.key_id == key.id).values(row)).rowcount == 0:
        connection.execute(insert(trusted_keys).values(key_id=key.id, **row))


def list_keys(engine: Engine) -> tuple[TrustedKey, ...]:
    """All keys that were ever added, oldest first."""
    with engine.connect() as connection:
        rows = connection.execute(select(trusted_keys).order_by(trusted_keys.c.added_at, trusted_keys.c.key_id)).mappings()
        return tuple(TrustedKey(**row) for row in rows)


def trusted(engine: Engine | None) -> dict[str, PublicKey]:
    """The keys whose signatures count, by id; without a database the home's own alone."""
    if engine is None:
        own = own_public_key()
        return {} if own is None else {own.id: own}
    found = (public_key_of(key.public_key) for key in list_keys(engine) if key.removed_at is None)
    return {key.id: key for key in found}
