"""Seals and the database: folders are sealed when they are registered, checked whenever they are read, and every seal made is recorded."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from sqlalchemy import Connection, Engine, insert, select

from lorimer.database import begin_write
from lorimer.errors import IntegrityError, StorageError
from lorimer.registry.audit import current_actor, now, open_trusted_signer, record
from lorimer.registry.records import Action
from lorimer.registry.schema import seals
from lorimer.registry.seal import Seal, hashes_of, make_seal, parse_seal, place_files, read_seal, verify_adapter_folder
from lorimer.registry.signing import PublicKey, Signer, open_signer, public_key_of
from lorimer.registry.trust import list_keys, trusted


class Seals:
    """Checks folders against the keys that count and the seals that were made; without a database, against the home's own key."""

    def __init__(self, engine: Engine | None = None) -> None:
        self.engine = engine

    def verify(self, digest: str, folder: Path) -> Seal | None:
        """See that a folder holds the adapter of a digest as it was sealed. One from before there were seals has none.

        Raises:
            IntegrityError: if it does not, with everything that differs.
        """
        seal = verify_adapter_folder(folder, digest, trusted(self.engine))
        if seal is None and self.is_sealed(digest):
            raise IntegrityError("its seal is missing: it had one")
        return seal

    def open_signer(self, actor: str, action: Action) -> Signer:
        """The key that signs here, trusted from now on.

        Raises:
            AccessError: if the actor may not do this, or may not add the key.
        """
        if self.engine is None:
            return open_signer()
        with begin_write(self.engine) as connection:
            return open_trusted_signer(connection, actor, action)

    def is_sealed(self, digest: str) -> bool:
        """Whether a seal of this adapter was ever recorded."""
        if self.engine is None:
            return False
        with self.engine.connect() as connection:
            return connection.execute(select(seals.c.id).where(seals.c.adapter_digest == digest).limit(1)).first() is not None

    def add(self, digest: str, folder: Path, files: Mapping[str, bytes], *, actor: str | None = None) -> Seal:
        """Put files into an adapter's folder that it does not have yet, and seal it anew. What is there already is not replaced.

        Raises:
            IntegrityError: if the folder is not as it was sealed.
            AccessError: if the actor may not.
        """
        if self.engine is None:
            return self._add(digest, folder, files, open_signer())
        actor = actor or current_actor()
        with begin_write(self.engine) as connection:  # who adds to the same folder at the same time waits here
            seal = self._add(digest, folder, files, open_trusted_signer(connection, actor, "seal"))
            keep_seal(connection, seal, actor=actor)
            return seal

    def _add(self, digest: str, folder: Path, files: Mapping[str, bytes], signer: Signer) -> Seal:
        before = self.verify(digest, folder)
        new = {name: data for name, data in files.items() if not (folder / name).exists()}
        if before is not None and not new:
            return before
        hashes = {**hashes_of(folder), **{name: sha256(data).hexdigest() for name, data in new.items()}}
        data = make_seal(hashes, before.origin if before else "registered", signer)
        place_files(folder, new, data)
        return parse_seal(data)

    def renew(self, digest: str, folder: Path, *, actor: str | None = None, reason: str = "") -> Seal:
        """Sign a folder that is as it was sealed, or never was, with the key of this home.

        Raises:
            IntegrityError: if the adapter's own two files are not those that were registered, or others differ from a seal by anybody.
            AccessError: if the actor may not.
        """
        if self.engine is None:
            raise StorageError("seals are renewed in a registry: open one")
        actor = actor or current_actor()
        with begin_write(self.engine) as connection:
            signer = open_trusted_signer(connection, actor, "seal")
            seal = read_seal(folder)
            keys = trusted(self.engine)
            if seal is not None:  # a key that is trusted no more is no reason not to sign again; other bytes are
                keys = {**keys, **_all_keys(self.engine)}
            elif self.is_sealed(digest):
                raise IntegrityError("its seal is missing: it had one; restore the folder")
            verify_adapter_folder(folder, digest, keys)
            data = make_seal(hashes_of(folder), seal.origin if seal else "registered", signer)
            place_files(folder, {}, data)
            renewed = parse_seal(data)
            keep_seal(connection, renewed, actor=actor, reason=reason)
            return renewed


def keep_seal(connection: Connection, seal: Seal, *, actor: str | None, reason: str = "", is_told: bool = True) -> None:
    """Record a seal, unless it is recorded; with an entry in the audit chain, unless the deed it belongs to tells of it."""
    columns = seals.c
    same = (columns.adapter_digest == seal.adapter_digest, columns.manifest_digest == seal.manifest_digest, columns.key_id == seal.key_id)
    if connection.execute(select(columns.id).where(*same)).first() is not None:
        return
    actor = actor or current_actor()
    if is_told:
        details = {"digest": seal.adapter_digest, "manifest_digest": seal.manifest_digest, "key_id": seal.key_id, "files": dict(seal.files)}
        record(connection, actor=actor, action="seal", subject=f"sha256:{seal.adapter_digest}", reason=reason, details=details)
    row = {"adapter_digest": seal.adapter_digest, "manifest_digest": seal.manifest_digest, "key_id": seal.key_id, "origin": seal.origin}
    connection.execute(insert(seals).values(**row, sealed_at=now(), sealed_by=actor))


def _all_keys(engine: Engine) -> dict[str, PublicKey]:
    return {key.key_id: public_key_of(key.public_key) for key in list_keys(engine)}
