"""All that is recorded of a version held against what is there: files, seal, lock, base, tokenizer, template, dataset, gates, fingerprint.

What is not on this machine (a base, a dataset) is said to be absent, which is no fault; what is there and differs is.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal

from sqlalchemy import select

from lorimer.data.dataset import read_dataset
from lorimer.errors import IntegrityError, LorimerError, NotFoundError
from lorimer.evaluation.gates import gate_from_json
from lorimer.registry.audit import read_audit
from lorimer.registry.lock import read_trained_lock
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import FINGERPRINT, Registry
from lorimer.registry.schema import gate_results, seals
from lorimer.registry.seal import FILES, differences, digest_of_hashes, hashes_of, read_seal
from lorimer.registry.trust import trusted
from lorimer.storage import digest_of, digest_of_file

TEMPLATE = "chat_template.jinja"
Status = Literal["ok", "differs", "absent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One thing that was looked at."""

    check: str
    status: Status
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionReport:
    """What was found of one version."""

    version: AdapterVersion
    checks: tuple[Checked, ...]

    @property
    def differing(self) -> tuple[str, ...]:
        """Everything that differs, a sentence each."""
        return tuple(f"{one.check}: {one.found}" for one in self.checks if one.status == "differs")

    def to_json(self) -> dict[str, Any]:
        """The JSON value that `--json` prints."""
        return {"adapter": self.version.id, "digest": self.version.digest, "checks": [asdict(one) for one in self.checks]}


class Verifier:
    """Looks at versions one after the other; bases and datasets that several share are read once."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.trusted = trusted(registry.engine)
        self.entries = read_audit(registry.engine)
        self._look_at_base, self._look_at_dataset = cache(_look_at_base), cache(_look_at_dataset)

    def verify(self, version: AdapterVersion) -> VersionReport:
        """Every check of one version; of a composition, those of its parts."""
        if version.parts:
            parts = [self.verify(self.registry.find_digest(part.digest)) for part in version.parts]
            checks = tuple(replace(one, check=f"{part.version.id} {one.check}") for part in parts for one in part.checks)
            return VersionReport(version=version, checks=checks)
        return VersionReport(version=version, checks=tuple(self._checks(version)))

    def _checks(self, version: AdapterVersion) -> Iterator[Checked]:
        yield _tried("files", lambda: self._files(version))
        yield _tried("seal", lambda: self._seal(version))
        lock = _tried("lock", lambda: _check_lock(version))
        yield lock
        locked = read_trained_lock(version.path) if lock.status == "ok" else {}
        yield from self._base(version, locked)
        yield self._look_at_dataset(version.dataset_digest) if version.dataset_digest else _absent("dataset", "none is recorded")
        yield _tried("gates", lambda: self._gates(version))
        yield _tried("fingerprint", lambda: self._fingerprint(version))

    def _files(self, version: AdapterVersion) -> Checked:
        found = hashes_of(version.path)
        if missing := [file for file in FILES if file not in found]:
            raise IntegrityError(f"{', '.join(missing)} missing")
        seal, problems = read_seal(version.path), list[str]()
        if seal is not None:
            problems += differences(found, seal.files)
        if (own := digest_of_hashes(found)) != version.digest:
            problems.append(f"their digest is {own[:12]}, registered was {version.digest[:12]}")
        if problems:
            raise IntegrityError("; ".join(problems))
        return _ok("files", f"{len(found)} files as they were sealed" if seal else "as they were registered")

    def _seal(self, version: AdapterVersion) -> Checked:
        seal = read_seal(version.path)
        rows = self._recorded_seals(version)
        if seal is None:
            if rows:
                raise IntegrityError("it is missing: there was one")
            return _absent("seal", f"registered before there were seals: `lorimer adapters sign {version.id}` makes one")
        if seal.adapter_digest != version.digest:
            raise IntegrityError(f"it is that of adapter {seal.adapter_digest[:12]}")
        key_id = seal.signer_among(self.trusted)
        if key_id is None:
            signed = ", ".join(one[:16] for one in seal.signatures) or "nobody"
            raise IntegrityError(f"signed by {signed}, which is not a trusted key with a right signature")
        is_recorded = (seal.manifest_digest, key_id) in rows
        note = "" if is_recorded else ", not in the database: somebody was interrupted, or it comes from another registry"
        unsigned = ", came in unsigned" if seal.origin == "imported-unsigned" else ""
        return _ok("seal", f"signed by {key_id[:16]}{unsigned}{note}")

    def _recorded_seals(self, version: AdapterVersion) -> set[tuple[str, str]]:
        query = select(seals.c.manifest_digest, seals.c.key_id).where(seals.c.adapter_digest == version.digest)
        with self.registry.engine.connect() as connection:
            return {(row.manifest_digest, row.key_id) for row in connection.execute(query)}

    def _base(self, version: AdapterVersion, lock: Mapping[str, Any]) -> Iterator[Checked]:
        here = self._look_at_base(version.base_name)
        if isinstance(here, str):
            yield from (_absent(name, here) for name in ("base", "tokenizer", "template"))
            return
        if digest_of(here.files) == version.base_digest:
            yield _ok("base", f"{version.base_name} here is {version.base_digest[:12]}")
        else:
            changed = _compare(lock.get("base_files", {}), here.files)
            yield _differs(
                "base", f"{version.base_name} here is {digest_of(here.files)[:12]}, made for {version.base_digest[:12]}{changed}"
            )
        locked = lock.get("tokenizer_files", {})
        if not locked:
            yield _absent("tokenizer", "the lock names none")
        elif changed := _compare(locked, here.tokenizer_files):
            yield _differs("tokenizer", f"another is here{changed}")
        else:
            yield _ok("tokenizer", f"{len(locked)} files as they were")
        yield _tried("template", lambda: _check_template(version, here.template, here.template_digest))

    def _gates(self, version: AdapterVersion) -> Checked:
        query = select(gate_results).where(gate_results.c.adapter_digest == version.digest).order_by(gate_results.c.id)
        with self.registry.engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        told = {entry.details.get("gate_digest") for entry in self.entries if entry.action == "record_gate"}
        for row in rows:
            result = gate_from_json(row["document"])
            found = (result.digest, result.verdict, result.candidate_digest, result.base_digest, result.report_digest)
            if found != tuple(row[name] for name in ("digest", "verdict", "adapter_digest", "base_digest", "report_digest")):
                raise IntegrityError(
                    f"gate result {row['digest'][:12]} was changed: it reads {result.verdict} and has digest {result.digest[:12]}"
                )
            if row["digest"] not in told:
                raise IntegrityError(f"gate result {row['digest'][:12]} is in no entry of the audit chain")
        newest = [row for row in rows if row["base_digest"] == version.base_digest][-1:]
        verdict = f"{len(rows)}, the newest says {newest[0]['verdict']}" if newest else ""
        return _ok("gates", verdict) if verdict else _absent("gates", "it has met none")

    def _fingerprint(self, version: AdapterVersion) -> Checked:
        path = version.path / FINGERPRINT
        known = [
            entry.details["fingerprint_digest"]
            for entry in self.entries
            if entry.subject == version.id and entry.action in ("register", "import") and "fingerprint_digest" in entry.details
        ]
        if not path.is_file():
            if known:
                raise IntegrityError(f"{FINGERPRINT} is missing: it was registered with one")
            return _absent("fingerprint", "none yet: the first server that loads it takes one")
        if known and digest_of_file(path) != known[0]:
            raise IntegrityError(f"{FINGERPRINT} has digest {digest_of_file(path)[:12]}, registered was {known[0][:12]}")
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["adapter_digest"] != version.digest:
            raise IntegrityError(f"it is that of adapter {value['adapter_digest'][:12]}")
        return _ok("fingerprint", digest_of_file(path)[:12])


@dataclass(frozen=True, slots=True, kw_only=True)
class _BaseHere:
    files: Mapping[str, str]
    tokenizer_files: Mapping[str, str]
    template: str
    template_digest: str


def _look_at_base(name: str) -> "_BaseHere | str":
    """A base as this machine has it; or why it is not looked at."""
    try:
        from lorimer.model.base import digests_of_base, digests_of_tokenizer, find_base
        from lorimer.model.base_text import read_base_text
    except ImportError as exc:
        return f"{name} is not looked at: {exc.name} is not installed (`pip install 'lorimer[engine]'`)"
    try:
        folder = find_base(name)
        files = digests_of_base(folder)
        renderer = read_base_text(name, folder, digest_of(files)).renderer
    except (LorimerError, OSError, ValueError) as exc:
        return f"{name} is not here: {str(exc).partition(':')[0]}"
    return _BaseHere(
        files=files, tokenizer_files=digests_of_tokenizer(folder), template=renderer.template, template_digest=renderer.template_digest
    )


def _look_at_dataset(digest: str) -> Checked:
    try:
        found = read_dataset(digest)
    except NotFoundError:
        return _absent("dataset", f"{digest[:12]} is not here")
    except LorimerError as exc:
        return _differs("dataset", str(exc))
    if found.digest != digest:
        return _differs("dataset", f"{found.digest[:12]} is here, {digest[:12]} was trained on")
    return _ok("dataset", f"{digest[:12]}, every row as it was")


def _check_lock(version: AdapterVersion) -> Checked:
    lock = read_trained_lock(version.path)
    if not lock:
        return _absent("lock", "made elsewhere, without one")
    names = ("base_digest", "template_digest", "dataset_digest")  # two runs may make the same bytes: the lock names the first
    if wrong := [name for name in names if lock.get(name) not in ("", getattr(version, name))]:
        raise IntegrityError(
            "; ".join(f"{name} {str(lock.get(name))[:12]!r}, registered {getattr(version, name)[:12]!r}" for name in wrong)
        )
    return _ok("lock", "agrees with what was registered")


def _check_template(version: AdapterVersion, template: str, template_digest: str) -> Checked:
    if version.template_digest and version.template_digest != template_digest:
        raise IntegrityError(f"the base's is {template_digest[:12]} here, trained was behind {version.template_digest[:12]}")
    path = version.path / TEMPLATE
    if path.is_file() and path.read_text(encoding="utf-8") != template:
        raise IntegrityError(f"{TEMPLATE} is not the template that the base has here")
    return _ok("template", template_digest[:12])


def _compare(locked: Mapping[str, str], here: Mapping[str, str]) -> str:
    """`; which files differ`, where the lock names them."""
    names = sorted(name for name in locked.keys() | here.keys() if locked.get(name) != here.get(name)) if locked else []
    shown = (f"{name} (locked {locked.get(name, 'none')[:12]}, here {here.get(name, 'none')[:12]})" for name in names)
    return "".join(f"; {one}" for one in shown)


def _tried(check: str, look: Any) -> Checked:
    """A check's result; what makes it impossible counts as a difference."""
    try:
        found: Checked = look()
    except LorimerError as exc:
        return _differs(check, str(exc))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        return _differs(check, f"cannot be read ({type(exc).__name__})")
    return found


def _ok(check: str, found: str) -> Checked:
    return Checked(check=check, status="ok", found=found)


def _absent(check: str, found: str) -> Checked:
    return Checked(check=check, status="absent", found=found)


def _differs(check: str, found: str) -> Checked:
    return Checked(check=check, status="differs", found=found)
