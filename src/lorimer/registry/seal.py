"""A seal: which files an adapter's folder holds, each with its SHA-256, signed. It lies in the folder as `adapter.seal.json`.

The payload is an in-toto statement (https://in-toto.io/Statement/v1) with the files as its subjects, in a DSSE envelope. Neither holds a
time, so the same files and key make the same seal. Which keys count, and what the database knows, is told by others.
"""

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorimer.blobs import fetch, publish
from lorimer.errors import AdapterError, IntegrityError
from lorimer.registry.signing import PublicKey, Signer, envelope, find_signature, open_envelope
from lorimer.storage import canonical_json, digest_of, digest_of_file, write_bytes

FILES = ("adapter_model.safetensors", "adapter_config.json")
"""What an adapter is; its digest is theirs."""
SEAL = "adapter.seal.json"
STATEMENT_TYPE, PAYLOAD_TYPE = "https://in-toto.io/Statement/v1", "application/vnd.in-toto+json"
PREDICATE_TYPE = "urn:lorimer:adapter-seal:v1"
PAPERS = ("README.md", "SHA256SUMS")
"""What an export puts beside an adapter's files, for people: nothing reads it, and no seal lists it."""
MAX_SEAL_BYTES = 1 << 20
NEXT = ".next-"  # the name of a file that the next seal lists begins so until that seal is there

Origin = Literal["registered", "imported-signed", "imported-unsigned"]
"""How the files came here: made here, or from elsewhere with a signature that was trusted, or without one."""
ORIGINS: tuple[Origin, ...] = ("registered", "imported-signed", "imported-unsigned")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What was sealed, and by whom."""

    adapter_digest: str
    origin: Origin
    files: Mapping[str, str]
    """SHA-256 by name."""
    signatures: Mapping[str, bytes]
    """By key id."""
    payload: bytes

    @property
    def manifest_digest(self) -> str:
        """SHA-256 of the statement: what the database keeps."""
        return hashlib.sha256(self.payload).hexdigest()

    @property
    def key_id(self) -> str:
        """Who signed first."""
        return next(iter(self.signatures), "")

    def signer_among(self, trusted: Mapping[str, PublicKey]) -> str | None:
        """The first trusted key that has signed it."""
        return find_signature(PAYLOAD_TYPE, self.payload, self.signatures, trusted)


def digest_of_hashes(hashes: Mapping[str, str]) -> str:
    """The digest of an adapter: SHA-256 over its two files' names and SHA-256."""
    return digest_of({file: hashes[file] for file in FILES})


def digest_of_folder(path: Path) -> str:
    """The digest of an adapter, from its files.

    Raises:
        AdapterError: if one is missing, or is elsewhere: what a link points at can change without the folder's knowing.
    """
    require_files(path)
    refuse_links(path, FILES)
    return digest_of_hashes({file: digest_of_file(path / file) for file in FILES})


def require_files(path: Path) -> None:
    """See that a folder has an adapter's two files.

    Raises:
        AdapterError: if not.
    """
    if not all((path / file).is_file() for file in FILES):
        fetch(path)
    if missing := [file for file in FILES if not (path / file).is_file()]:
        raise AdapterError(f"{str(path)!r} is not an adapter's folder: {' and '.join(missing)} missing; give the folder a run has written")


def refuse_links(path: Path, files: tuple[str, ...]) -> None:
    """See that files are in a folder themselves.

    Raises:
        AdapterError: if some are elsewhere.
    """
    if links := [file for file in files if (path / file).is_symlink()]:
        raise AdapterError(f"{' and '.join(links)} in {str(path)!r} are symbolic links: put the files themselves there (`cp -rL`)")


def hashes_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder but its seal and an export's papers. Names with a dot in front are nobody's: nothing reads them.

    Raises:
        IntegrityError: if there is something else than files in it.
    """
    if not folder.is_dir():
        fetch(folder)
    try:
        entries = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name not in (SEAL, *PAPERS))
        if strange := [name for name in entries if (folder / name).is_symlink() or not (folder / name).is_file()]:
            raise IntegrityError(f"{', '.join(strange)} in it are links or no files: an adapter's own files lie there alone")
        return {name: digest_of_file(folder / name) for name in entries}
    except OSError as exc:
        raise IntegrityError(f"its files cannot be read ({exc.strerror})") from exc


def make_seal(hashes: Mapping[str, str], origin: Origin, signer: Signer) -> bytes:
    """A seal over these files, as its own file holds it."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": hashes[name]}} for name in sorted(hashes)],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"adapter_digest": digest_of_hashes(hashes), "origin": origin},
    }
    return canonical_json(envelope(PAYLOAD_TYPE, canonical_json(statement), signer)) + b"\n"


def read_seal(folder: Path) -> Seal | None:
    """A folder's seal, its signatures not checked yet; None if it has none.

    Raises:
        IntegrityError: if there is one that cannot be read, or that is written otherwise than seals are.
    """
    path = folder / SEAL
    if path.is_symlink():
        raise IntegrityError(f"{SEAL} is a symbolic link")
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_SEAL_BYTES else b""
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise IntegrityError(f"{SEAL} cannot be read ({exc.strerror})") from exc
    return parse_seal(data)


def parse_seal(data: bytes) -> Seal:
    """A seal from its file's bytes.

    Raises:
        IntegrityError: if they are none; not a byte may differ from how seals are written.
    """
    try:
        value = json.loads(data)
        payload, signatures = open_envelope(value, PAYLOAD_TYPE)
        statement = json.loads(payload)
        seal = _seal_of(statement, payload, signatures)
        if _written(payload, signatures) != data or canonical_json(statement) != payload:
            raise ValueError("it is written otherwise")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, IntegrityError) as exc:
        raise IntegrityError(f"{SEAL} cannot be read as a seal ({exc or type(exc).__name__}): it was changed") from exc
    return seal


def _seal_of(statement: Any, payload: bytes, signatures: Mapping[str, bytes]) -> Seal:
    if set(statement) != {"_type", "subject", "predicateType", "predicate"}:
        raise ValueError("its statement has other fields")
    if (statement["_type"], statement["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise ValueError(f"it is a statement of another kind ({str(statement['predicateType'])[:80]!r})")
    files = {str(one["name"]): str(one["digest"]["sha256"]) for one in statement["subject"]}
    predicate = statement["predicate"]
    origin = next((one for one in ORIGINS if one == predicate["origin"]), None)
    if origin is None or digest_of_hashes(files) != predicate["adapter_digest"] or len(files) != len(statement["subject"]):
        raise ValueError("its statement does not agree with itself")
    return Seal(adapter_digest=predicate["adapter_digest"], origin=origin, files=files, signatures=signatures, payload=payload)


def _written(payload: bytes, signatures: Mapping[str, bytes]) -> bytes:
    listed = [{"keyid": key_id, "sig": base64.b64encode(signature).decode()} for key_id, signature in signatures.items()]
    value = {"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(payload).decode(), "signatures": listed}
    return canonical_json(value) + b"\n"


def differences(found: Mapping[str, str], listed: Mapping[str, str]) -> list[str]:
    """How a folder's files differ from those of its seal, a sentence each."""
    changed = [f"{name} has SHA-256 {found[name][:12]}, sealed was {listed[name][:12]}" for name in sorted(found.keys() & listed.keys())]
    same = {name for name in found.keys() & listed.keys() if found[name] == listed[name]}
    return [
        *(f"{name} is missing" for name in sorted(listed.keys() - found.keys())),
        *(text for name, text in zip(sorted(found.keys() & listed.keys()), changed, strict=True) if name not in same),
        *(f"{name} was not there when it was sealed" for name in sorted(found.keys() - listed.keys())),
    ]


def verify_adapter_folder(folder: Path, digest: str, trusted: Mapping[str, PublicKey]) -> Seal | None:
    """See that a folder holds the adapter of a digest, all its files as they were sealed, by a trusted key; without a seal, the adapter.

    Raises:
        IntegrityError: if not, with everything that differs.
    """
    if not folder.exists():
        fetch(folder)
    if folder.is_symlink() or not folder.is_dir():
        raise IntegrityError("its folder is gone or a symbolic link: adapters lie there themselves")
    seal, problems = read_seal(folder), list[str]()
    finish_files(folder, seal)
    found = hashes_of(folder)
    if seal is not None:
        problems += differences(found, seal.files)
        if seal.adapter_digest != digest:
            problems.append(f"its seal is that of adapter {seal.adapter_digest[:12]}, not of {digest[:12]}")
        if seal.signer_among(trusted) is None:
            ids = ", ".join(key_id[:16] for key_id in seal.signatures) or "nobody"
            problems.append(f"its seal is signed by {ids}, which is not a trusted key with a right signature (`lorimer trust list`)")
    if missing := [file for file in FILES if file not in found]:
        problems += [f"{file} is missing" for file in missing if seal is None or file not in seal.files]
    elif (own := digest_of_hashes(found)) != digest:
        problems.append(f"its files have digest {own[:12]!r}, registered was {digest[:12]!r}")
    if problems:
        raise IntegrityError("; ".join(problems))
    return seal


def place_files(folder: Path, files: Mapping[str, bytes], seal: bytes) -> None:
    """Put files into a sealed folder, and the seal that lists them: wherever it ends, the folder agrees with the seal that is in it."""
    for name, data in files.items():
        write_bytes(folder / f"{NEXT}{name}", data)
    write_bytes(folder / SEAL, seal)
    finish_files(folder, parse_seal(seal))
    publish(folder)


def finish_files(folder: Path, seal: Seal | None) -> None:
    """Give files that a seal lists their names, where somebody who put them there did not come so far."""
    for path in folder.glob(f"{NEXT}*") if seal is not None else ():
        name = path.name.removeprefix(NEXT)
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if seal is not None and name in seal.files and not (folder / name).exists() and digest_of_file(path) == seal.files[name]:
                os.replace(path, folder / name)
