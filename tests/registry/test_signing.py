"""The key, the envelope, and what a changed byte does to them."""

import base64
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.errors import IntegrityError, StorageError, UsageError
from lorimer.registry.signing import (
    KEY_VARIABLE,
    PublicKey,
    envelope,
    find_signature,
    key_folder,
    open_envelope,
    open_signer,
    own_public_key,
    pre_authentication_encoding,
    public_key_of,
    read_public_key,
)


def test_encoding_is_that_of_the_specification() -> None:
    """The example in DSSE's protocol.md."""
    found = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert found == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_signature_is_that_of_rfc_8032() -> None:
    """Section 7.1, test 2."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    public = PublicKey(raw=private.public_key().public_bytes_raw())
    assert public.raw.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert private.sign(b"\x72") == signature
    assert public.verifies(signature, b"\x72")
    assert not public.verifies(signature, b"\x73")


def test_key_is_made_once_and_kept_from_others() -> None:
    assert own_public_key() is None
    first = open_signer()
    assert open_signer().public == first.public == own_public_key()
    assert oct((key_folder() / "private.pem").stat().st_mode & 0o777) == "0o600"
    assert read_public_key(key_folder() / "public.pem") == first.public == public_key_of(first.public.text)


def test_key_that_others_can_read_is_refused() -> None:
    open_signer()
    (key_folder() / "private.pem").chmod(0o640)
    with pytest.raises(StorageError, match="can be read by others: `chmod 600`"):
        open_signer()


def test_key_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = open_signer().public
    (key_folder()).rename(tmp_path / "elsewhere")
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "elsewhere" / "private.pem"))
    assert open_signer().public == own
    assert not key_folder().exists()
    for content in ("", "nothing", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        (tmp_path / "bad.pem").write_text(content)
        monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "bad.pem"))
        with pytest.raises(UsageError, match="cannot be read as an unencrypted private key"):
            open_signer()
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "none.pem"))
    with pytest.raises(UsageError, match="LORIMER_SIGNING_KEY names"):
        open_signer()


def test_key_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    private = X25519PrivateKey.generate()
    (tmp_path / "x.pem").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "x.pub").write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "x.pem"))
    with pytest.raises(UsageError, match="Ed25519 is needed"):
        open_signer()
    with pytest.raises(UsageError, match="Ed25519 is needed"):
        read_public_key(tmp_path / "x.pub")


def report_key(queue: "multiprocessing.Queue[str]", barrier: "multiprocessing.synchronize.Barrier") -> None:
    barrier.wait()
    queue.put(open_signer().public.id)


def test_processes_that_begin_at_once_share_one_key() -> None:
    fork = multiprocessing.get_context("fork")
    queue, barrier = fork.Queue(), fork.Barrier(6)
    processes = [fork.Process(target=report_key, args=(queue, barrier)) for _ in range(6)]
    for process in processes:
        process.start()
    assert {queue.get(timeout=30) for _ in processes} == {open_signer().public.id}
    for process in processes:
        process.join()


def test_envelope_is_read_back_and_its_signature_found() -> None:
    signer = open_signer()
    payload, signatures = open_envelope(envelope("a/b", b"said", signer), "a/b")
    assert payload == b"said"
    assert find_signature("a/b", payload, signatures, {signer.public.id: signer.public}) == signer.public.id
    assert find_signature("a/b", b"Said", signatures, {signer.public.id: signer.public}) is None
    assert find_signature("a/c", payload, signatures, {signer.public.id: signer.public}) is None
    assert find_signature("a/b", payload, signatures, {}) is None
    other = PublicKey(raw=b"\0" * 32)
    assert find_signature("a/b", payload, signatures, {signer.public.id: other}) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(base64.b64encode(b"x").decode()),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["payloadType", "payload", "signatures", "keyid", "sig", "x"]), inner, max_size=4)
        ),
        max_leaves=8,
    )
)
def test_what_is_no_envelope_is_an_integrity_error(value: object) -> None:
    try:
        payload, signatures = open_envelope(value, "a/b")
    except IntegrityError:
        return
    assert isinstance(payload, bytes)
    assert all(isinstance(signature, bytes) for signature in signatures.values())
