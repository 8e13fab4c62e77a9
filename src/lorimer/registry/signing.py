"""Signatures: one Ed25519 key of this home, DSSE envelopes, and whether a signature is right. What is signed, it does not know.

Ed25519 is RFC 8032; the envelope and its pre-authentication encoding are DSSE's (https://github.com/secure-systems-lab/dsse, protocol.md).
"""

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorimer.config import home
from lorimer.errors import IntegrityError, StorageError, UsageError
from lorimer.storage import new_folder, write_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_VARIABLE = "LORIMER_SIGNING_KEY"
"""Names a file with an Ed25519 private key (PEM, PKCS 8); without it the home folder has one of its own."""
PRIVATE_FILE, PUBLIC_FILE = "private.pem", "public.pem"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """Who signed."""

    raw: bytes
    """32 bytes."""

    @property
    def id(self) -> str:
        """SHA-256 (hex) of the key: how it is named everywhere."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def text(self) -> str:
        """As the database keeps it."""
        return base64.b64encode(self.raw).decode()

    @property
    def pem(self) -> str:
        """As files and other programs have it."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return Ed25519PublicKey.from_public_bytes(self.raw).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether this key has signed these bytes."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """The key that signs here."""

    private: "Ed25519PrivateKey"
    public: PublicKey

    def sign(self, message: bytes) -> bytes:
        """64 bytes; the same for the same message, always."""
        return self.private.sign(message)


def open_signer() -> Signer:
    """The key of this home, made at its first use, or the one `LORIMER_SIGNING_KEY` names.

    Raises:
        UsageError: if the variable names no Ed25519 key.
        StorageError: if the home's own key cannot be written, or can be read by others.
    """
    if given := os.environ.get(KEY_VARIABLE):
        return _read_signer(Path(given).expanduser(), f"{KEY_VARIABLE} names {given!r}, which")
    folder = key_folder()
    if not (folder / PRIVATE_FILE).is_file():
        _make_key(folder)
    path = folder / PRIVATE_FILE
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise StorageError(f"the signing key {str(path)!r} can be read by others: `chmod 600` it, or make another if somebody has")
    return _read_signer(path, f"the signing key {str(path)!r}")


def own_public_key() -> PublicKey | None:
    """Of the key that signs here, if there is one yet."""
    if not os.environ.get(KEY_VARIABLE) and not (key_folder() / PRIVATE_FILE).is_file():
        return None
    return open_signer().public


def key_folder() -> Path:
    """Where the home keeps its own key."""
    return home() / "keys" / "signing"


def read_public_key(path: Path) -> PublicKey:
    """An Ed25519 public key from a PEM file.

    Raises:
        UsageError: if there is none in it.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        found = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise UsageError(f"{str(path)!r} is not a public key in PEM ({exc}): `lorimer trust show` prints the one of a home") from exc
    if not isinstance(found, Ed25519PublicKey):
        raise UsageError(f"{str(path)!r} holds a key of another kind: Ed25519 is needed, as `lorimer trust show` prints it")
    return PublicKey(raw=found.public_bytes_raw())


def public_key_of(text: str) -> PublicKey:
    """The key that `PublicKey.text` wrote.

    Raises:
        IntegrityError: if it is none.
    """
    try:
        return PublicKey(raw=base64.b64decode(text, validate=True))
    except ValueError as exc:
        raise IntegrityError(f"a trusted key in the database is {text[:60]!r}, which is none: it was changed") from exc


def envelope(payload_type: str, payload: bytes, signer: Signer) -> dict[str, Any]:
    """A DSSE envelope over a payload."""
    signature = signer.sign(pre_authentication_encoding(payload_type, payload))
    return {
        "payloadType": payload_type,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": signer.public.id, "sig": base64.b64encode(signature).decode()}],
    }


def open_envelope(value: Any, payload_type: str) -> tuple[bytes, dict[str, bytes]]:
    """The payload of a DSSE envelope, and its signatures by key id; none of them is checked yet.

    Raises:
        IntegrityError: if it is not one, or of another type.
    """
    try:
        if set(value) != {"payloadType", "payload", "signatures"} or value["payloadType"] != payload_type:
            raise ValueError(f"it is no envelope of {payload_type!r}")
        payload = base64.b64decode(value["payload"], validate=True)
        signatures = {str(one["keyid"]): base64.b64decode(one["sig"], validate=True) for one in value["signatures"]}
        if any(set(one) != {"keyid", "sig"} for one in value["signatures"]):
            raise ValueError("its signatures hold more than `keyid` and `sig`")
    except (TypeError, KeyError, ValueError, binascii.Error) as exc:
        raise IntegrityError(f"the signed envelope cannot be read ({exc})") from exc
    return payload, signatures


def find_signature(payload_type: str, payload: bytes, signatures: Mapping[str, bytes], trusted: Mapping[str, PublicKey]) -> str | None:
    """The id of the first trusted key that has signed; None if none has."""
    message = pre_authentication_encoding(payload_type, payload)
    for key_id, signature in signatures.items():
        key = trusted.get(key_id)
        if key is not None and key.verifies(signature, message):
            return key_id
    return None


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """DSSE's PAE: what is signed says of which type it is and how long."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _make_key(folder: Path) -> None:
    """Write a new key pair; of two processes that do so at once, the first one's is kept."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = Ed25519PrivateKey.generate()
    with new_folder(folder) as new:
        write_bytes(new / PRIVATE_FILE, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
        write_bytes(new / PUBLIC_FILE, PublicKey(raw=private.public_key().public_bytes_raw()).pem.encode())


def _read_signer(path: Path, what: str) -> Signer:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise UsageError(f"{what} cannot be read as an unencrypted private key in PEM ({type(exc).__name__}): restore it") from exc
    if not isinstance(private, Ed25519PrivateKey):
        raise UsageError(f"{what} holds a key of another kind: Ed25519 is needed, as `openssl genpkey -algorithm ed25519` makes it")
    return Signer(private=private, public=PublicKey(raw=private.public_key().public_bytes_raw()))
