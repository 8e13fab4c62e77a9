"""Which adapter is which: versions by digest, found again by name, number, alias or digest. It loads no weights."""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, Select, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError as UniqueViolation

from lorimer.blobs import fetch, publish
from lorimer.config import home
from lorimer.database import begin_write
from lorimer.errors import ErasedError, IntegrityError, NotFoundError, UsageError
from lorimer.evaluation.gates import GateResult, gate_from_json
from lorimer.registry.audit import current_actor, now, record, take_turn
from lorimer.registry.records import Action, AdapterVersion, Alias, NewVersion, VersionPart
from lorimer.registry.schema import adapter_versions, aliases, gate_results, held_routes, tombstones
from lorimer.registry.seal import FILES as FILES
from lorimer.registry.seal import SEAL, Seal, hashes_of, make_seal, read_seal, refuse_links
from lorimer.registry.seal import digest_of_folder as digest_of_folder
from lorimer.registry.sealing import Seals, keep_seal
from lorimer.registry.tombstones import refuse_buried
from lorimer.storage import digest_of_file, new_folder, write_bytes

COMPANIONS = ("adapter.lock.json", "chat_template.jinja")
"""Kept beside them where the source has them: what the adapter belongs to, and how it is spoken to."""
FINGERPRINT = "fingerprint.json"
CHAMPION = "champion"
NAME_PATTERN = r"[a-z0-9][a-z0-9_-]{0,62}"
MIN_DIGEST_LEN = 6
MAX_LISTED = 12  # names in one message
MAX_TRIES = 20  # of taking the next version number, where the database lets two writers in at once


class Registry:
    """The adapter versions of one database; their files lie under the home folder, by digest."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def register(
        self, new: NewVersion, *, actor: str | None = None, action: Action = "register", more: Mapping[str, Any] | None = None
    ) -> AdapterVersion:
        """Keep an adapter's files and give it the next version of its name; the same bytes under the same name are one version.

        Raises:
            UsageError: if the name cannot be one.
            AdapterError: if files are missing, or symbolic links.
            IntegrityError: if other bytes lie where these belong.
            AccessError: if the actor may not.
            ErasedError: if it learned from a dataset that is erased meanwhile.
        """
        check_name(new.name)
        digest = digest_of_folder(new.source)
        with self.engine.connect() as connection:
            is_trained_here = action == "register" and bool(new.run_id)  # the same bytes, learned without the rows, are free of them
            made_of = [*new.parents, *(() if is_trained_here else (digest,))]
            refuse_buried(connection, f"adapter {new.name!r}", datasets=[new.dataset_digest], adapters=made_of)
        refuse_links(new.source, COMPANIONS)
        path, seal = self._keep_files(new, digest, actor)
        draft = AdapterVersion(
            name=new.name,
            version=0,
            digest=digest,
            base_name=new.base_name,
            base_digest=new.base_digest,
            dataset_name=new.dataset_name,
            dataset_digest=new.dataset_digest,
            run_id=new.run_id,
            rank=new.rank,
            alpha=new.alpha,
            num_parameters=new.num_parameters,
            num_bytes=sum((path / file).stat().st_size for file in FILES),
            path=path,
            template_digest=new.template_digest,
            parents=new.parents,
            report_digest=None,
            gate_digest=None,
            gate_verdict=None,
            created_at=now(),
            created_by="",
        )
        details = {"digest": digest, "base_digest": new.base_digest, "dataset_digest": new.dataset_digest, "run_id": new.run_id}
        if (path / FINGERPRINT).is_file():
            details["fingerprint_digest"] = digest_of_file(path / FINGERPRINT)
        details |= {"manifest_digest": seal.manifest_digest, "key_id": seal.key_id}
        details |= {"recipe_digest": new.recipe_digest} if new.recipe_digest else {}
        return self.keep(draft, action=action, details={**details, **(more or {})}, actor=actor, seal=seal)

    def keep(
        self, draft: AdapterVersion, *, action: Action, details: Mapping[str, Any], actor: str | None = None, seal: Seal | None = None
    ) -> AdapterVersion:
        """Give a version, whose number is still open, the next one of its name; the same digest under the same name is one version."""
        actor = actor or current_actor()
        num_tries = 0
        while True:
            try:
                with begin_write(self.engine) as connection:
                    take_turn(connection)  # who erases goes before or after this, as a whole
                    made_of = [*draft.parents, *(part.digest for part in draft.parts)]
                    refuse_buried(connection, f"adapter {draft.name!r}", datasets=[draft.dataset_digest], adapters=made_of)
                    version = self._add_version(connection, replace(draft, created_by=actor), action, details)
                    if seal is not None:
                        keep_seal(connection, seal, actor=actor, is_told=False)
                    return version
            except UniqueViolation:  # another process took the number, or registered the same bytes
                num_tries += 1
                if num_tries == MAX_TRIES:
                    raise

    def record_gate(self, result: GateResult, version: AdapterVersion, *, actor: str | None = None) -> AdapterVersion:
        """Keep what a gate said of a version; the newest result counts. The same result twice is one.

        Raises:
            IntegrityError: if the gate judged other bytes or another base.
        """
        if (result.candidate_digest, result.base_digest) != (version.digest, version.base_digest):
            raise IntegrityError(
                f"the gate judged adapter {result.candidate_digest[:12]} on base {result.base_digest[:12]}, but {version.id} is "
                f"{version.digest[:12]} on {version.base_digest[:12]}: evaluate {version.id} itself"
            )
        try:
            return self._record_gate(result, version, actor)
        except UniqueViolation:  # another process recorded the same result at the same moment: now it is there
            return self._record_gate(result, version, actor)

    def _record_gate(self, result: GateResult, version: AdapterVersion, actor: str | None) -> AdapterVersion:
        with begin_write(self.engine) as connection:
            known = connection.execute(select(gate_results.c.id).where(gate_results.c.digest == result.digest)).first()
            if known is None:
                self._add_gate(connection, result, version, actor)
            query = _select_versions().where(adapter_versions.c.name == version.name, adapter_versions.c.version == version.version)
            return _version_from_row(connection.execute(query).mappings().one())

    def newest_gate(self, version: AdapterVersion) -> GateResult | None:
        """The newest result of a gate that judged these bytes on this base, with its checks."""
        gates = gate_results.c
        query = select(gates.document).where(gates.adapter_digest == version.digest, gates.base_digest == version.base_digest)
        with self.engine.connect() as connection:
            document = connection.execute(query.order_by(gates.id.desc()).limit(1)).scalar()
        return None if document is None else gate_from_json(document)

    def resolve(self, name: str) -> AdapterVersion:
        """Find a version by `name` (its champion, else its newest), `name@v3`, `name@alias` or `name@sha256:ab12cd`.

        One that is fenced off is not found by its name alone: then the newest is that answers in its stead.

        Raises:
            NotFoundError: if there is none; the message says what there is.
            UsageError: if a digest's beginning fits several versions.
            ErasedError: if somebody's data was in the one that is meant.
        """
        return _refuse_erased(name, self.find(name))

    def find(self, name: str) -> AdapterVersion:
        """`resolve` for those who only look: versions that are fenced off are found too.

        Raises:
            NotFoundError, UsageError: as `resolve`.
        """
        adapter, _, reference = name.partition("@")
        named = self.aliases(adapter)  # before the versions: what an alias points at is among them then
        versions = self.history(adapter)
        if not versions:
            raise NotFoundError(self._describe_missing(adapter))
        by_number = {f"v{version.version}": version for version in versions}
        by_alias = {alias.alias: by_number[f"v{alias.version}"] for alias in named}
        if not reference and "@" not in name:
            return by_alias.get(CHAMPION, next((version for version in versions if version.erasure is None), versions[0]))
        if reference.startswith("sha256:"):
            return _match_digest(name, reference.removeprefix("sha256:").lower(), versions)
        if found := by_number.get(reference) or by_alias.get(reference):
            return found
        raise NotFoundError(_describe_missing_reference(name, adapter, reference, by_number, by_alias))

    def list_versions(self) -> tuple[AdapterVersion, ...]:
        """Every version of every adapter, by name, newest first."""
        return self._read(_select_versions())

    def history(self, name: str) -> tuple[AdapterVersion, ...]:
        """The versions of one adapter, newest first; none if there is no such adapter."""
        return self._read(_select_versions().where(adapter_versions.c.name == name))

    def find_digest(self, digest: str) -> AdapterVersion:
        """The adapter of a digest; if several versions have the same bytes, the last by name and number.

        Raises:
            NotFoundError: if there is none.
        """
        found = self._read(_select_versions().where(adapter_versions.c.digest == digest))
        if not found:
            raise NotFoundError(f"no adapter has digest {digest[:12]!r}: it was registered in another database; register it here")
        return found[-1]

    def aliases(self, name: str | None = None) -> tuple[Alias, ...]:
        """All aliases, or those of one adapter."""
        query = select(aliases).order_by(aliases.c.adapter_name, aliases.c.alias)
        if name is not None:
            query = query.where(aliases.c.adapter_name == name)
        with self.engine.connect() as connection:
            return tuple(Alias(**row) for row in connection.execute(query).mappings())

    def is_held(self, name: str, alias: str) -> bool:
        """Whether an alias was taken away because of an erasure that is not finished, or whose new version did not pass."""
        query = select(held_routes.c.erasure).where(held_routes.c.adapter_name == name, held_routes.c.alias == alias)
        with self.engine.connect() as connection:
            return connection.execute(query).first() is not None

    def names_by_digest(self) -> dict[str, str]:
        """What versions are called (`helpdesk@v3`), by digest; of several with the same bytes, the last by name and number."""
        columns = adapter_versions.c
        query = select(columns.digest, columns.name, columns.version).order_by(columns.name, columns.version)
        with self.engine.connect() as connection:
            return {digest: f"{name}@v{version}" for digest, name, version in connection.execute(query)}

    def verify_files(self, version: AdapterVersion) -> None:
        """Check that a version's files still are the bytes that were registered.

        Raises:
            IntegrityError: if they are missing or differ.
            ErasedError: if somebody's data was in them.
        """
        _refuse_erased(version.id, version)
        if version.parts:
            for part in version.parts:
                self.verify_files(self.find_digest(part.digest))
            return
        try:
            Seals(self.engine).verify(version.digest, version.path)
        except IntegrityError as exc:
            raise IntegrityError(
                f"the files of {version.id} in {str(version.path)!r} are not those that were registered: {exc}; "
                "they were changed after registration: restore them or register the new ones"
            ) from exc

    def _keep_files(self, new: NewVersion, digest: str, actor: str | None) -> tuple[Path, Seal]:
        """Copy an adapter and its companions to the folder named by its digest, sealed; what is there already is seen to be the same."""
        path, seals = folder_of(digest), Seals(self.engine)
        signer = seals.open_signer(actor or current_actor(), "register")
        if path.is_symlink():
            raise IntegrityError(f"{str(path)!r} is a symbolic link, adapters lie there themselves: remove it, try again")
        if not fetch(path) and not path.is_dir():  # what other homes added is there before it is sealed anew
            with new_folder(path) as folder:
                for file in (*FILES, *(name for name in COMPANIONS if (new.source / name).is_file())):
                    shutil.copy(new.source / file, folder / file)
                for file, data in new.companions.items():
                    write_bytes(folder / file, data)
                write_bytes(folder / SEAL, make_seal(hashes_of(folder), new.origin, signer))
        try:
            seals.verify(digest, path)
            seal = read_seal(path)
            if seal is None or any(not (path / file).is_file() for file in new.companions):
                seal = seals.add(digest, path, new.companions, actor=actor)  # the same bytes were registered before these were kept
        except IntegrityError as exc:
            raise IntegrityError(
                f"{str(path)!r} does not hold adapter {digest[:12]} as it was sealed: {exc}; remove the folder, try again"
            ) from exc
        publish(path)
        return path, seal

    def _add_version(self, connection: Connection, draft: AdapterVersion, action: Action, details: Mapping[str, Any]) -> AdapterVersion:
        """Insert one row and its audit entry, unless the same bytes are there already."""
        columns = adapter_versions.c
        query = _select_versions().where(columns.name == draft.name, columns.digest == draft.digest)
        if same := connection.execute(query).mappings().first():
            known = _version_from_row(same)
            return known if known.erasure is None else self._renew(connection, known, draft, action, details)
        newest = connection.execute(select(func.max(columns.version)).where(columns.name == draft.name)).scalar()
        version = replace(draft, version=(newest or 0) + 1)
        connection.execute(insert(adapter_versions).values(_row_of(version)))
        record(connection, actor=version.created_by, action=action, subject=version.id, details=details)
        return _version_from_row(connection.execute(query).mappings().one())  # with the gate, if these bytes have met one

    def _renew(
        self, connection: Connection, known: AdapterVersion, draft: AdapterVersion, action: Action, details: Mapping[str, Any]
    ) -> AdapterVersion:
        """The bytes of a version that was fenced off, learned anew without the rows: proof that they never depended on them."""
        columns = adapter_versions.c
        lineage = {name: getattr(draft, name) for name in ("dataset_name", "dataset_digest", "run_id")}
        is_it = (columns.name == known.name, columns.version == known.version)
        connection.execute(update(adapter_versions).where(*is_it).values(lineage))
        connection.execute(delete(tombstones).where(tombstones.c.kind == "adapter", tombstones.c.value == known.digest))
        record(connection, actor=draft.created_by, action=action, subject=known.id, details={**details, "renewed": True})
        return _version_from_row(connection.execute(_select_versions().where(*is_it)).mappings().one())

    def _add_gate(self, connection: Connection, result: GateResult, version: AdapterVersion, actor: str | None) -> None:
        row = {
            "digest": result.digest,
            "adapter_digest": result.candidate_digest,
            "base_digest": result.base_digest,
            "report_digest": result.report_digest,
            "verdict": result.verdict,
            "document": result.to_json(),
            "recorded_at": now(),
        }
        connection.execute(insert(gate_results).values(row))
        details = {"digest": version.digest, "gate_digest": result.digest, "report_digest": result.report_digest, "verdict": result.verdict}
        record(connection, actor=actor, action="record_gate", subject=version.id, details=details)

    def _read(self, query: Select[Any]) -> tuple[AdapterVersion, ...]:
        with self.engine.connect() as connection:
            return tuple(_version_from_row(row) for row in connection.execute(query).mappings())

    def _describe_missing(self, name: str) -> str:
        known = sorted({version.name for version in self.list_versions()})
        if not known:
            return f"no adapter {name!r}: none is registered yet; train one with `lorimer train`"
        near = get_close_matches(name, known, n=1)
        return f"no adapter {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"there are {_join(known)}")


def check_name(name: str) -> None:
    """See that an adapter can be called so.

    Raises:
        UsageError: if it cannot.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"{name!r} cannot name an adapter: use up to 63 of a-z, 0-9, - and _, starting with a letter or digit")


def folder_of(digest: str) -> Path:
    """Where the files of the adapter of a digest are kept."""
    return home() / "adapters" / digest[:16]


def _select_versions() -> Select[Any]:
    """Versions with the newest gate result of their bytes on their base, by name, newest first."""
    gates, columns = gate_results.c, adapter_versions.c
    same = (gates.adapter_digest == columns.digest) & (gates.base_digest == columns.base_digest)
    newest = select(func.max(gates.id)).where(same).correlate(adapter_versions).scalar_subquery()
    is_buried = (tombstones.c.kind == "adapter") & (tombstones.c.value == columns.digest)
    verdict = (gates.report_digest, gates.digest.label("gate_digest"), gates.verdict.label("gate_verdict"))
    return (
        select(adapter_versions, *verdict, tombstones.c.erasure)
        .select_from(adapter_versions.outerjoin(gate_results, gates.id == newest).outerjoin(tombstones, is_buried))
        .order_by(columns.name, columns.version.desc())
    )


def _version_from_row(row: RowMapping) -> AdapterVersion:
    parts = tuple(VersionPart(**part) for part in row["parts"] or ())
    return AdapterVersion(**{**row, "path": home() / row["path"], "parts": parts, "parents": tuple(row["parents"] or ())})


def _row_of(version: AdapterVersion) -> dict[str, Any]:
    row = {column.name: getattr(version, column.name) for column in adapter_versions.columns}
    return {
        **row,
        "path": str(version.path.relative_to(home())),
        "parts": [part.to_json() for part in version.parts] or None,
        "parents": list(version.parents) or None,
    }


def _refuse_erased(name: str, version: AdapterVersion) -> AdapterVersion:
    if version.erasure is not None:
        raise ErasedError(
            f"{name!r} is {version.id}, in which somebody's data was: erasure {version.erasure} has fenced it off; "
            f"`lorimer erasures show {version.erasure}` says what answers in its stead"
        )
    return version


def _match_digest(name: str, prefix: str, versions: Sequence[AdapterVersion]) -> AdapterVersion:
    """The one version whose digest begins so."""
    if not re.fullmatch(f"[0-9a-f]{{{MIN_DIGEST_LEN},64}}", prefix):
        raise UsageError(f"{name!r} has no digest after 'sha256:': give {MIN_DIGEST_LEN} to 64 hex digits")
    found = [version for version in versions if version.digest.startswith(prefix)]
    if len(found) > 1:
        raise UsageError(f"{name!r} fits {_join(version.id for version in found)}: give more digits")
    if not found:
        known = _join(f"{version.id} = sha256:{version.digest[:12]}" for version in versions)
        raise NotFoundError(f"no version of {versions[0].name!r} has a digest that begins with {prefix!r}: there are {known}")
    return found[0]


def _describe_missing_reference(name: str, adapter: str, reference: str, by_number: Iterable[str], by_alias: Iterable[str]) -> str:
    versions, aliases = list(by_number), list(by_alias)
    near = get_close_matches(reference, [*aliases, *versions], n=1)
    has = f"versions {_join(reversed(versions))} and {'aliases ' + _join(aliases) if aliases else 'no aliases'}"
    return f"{name!r} does not exist: adapter {adapter!r} has {has}" + (f"; did you mean {adapter + '@' + near[0]!r}?" if near else "")


def _join(names: Iterable[str]) -> str:
    listed = list(names)
    rest = len(listed) - MAX_LISTED
    return ", ".join(listed[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
