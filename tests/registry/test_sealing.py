"""Seals: every byte of a folder counts, late companions are sealed too, and wherever that ends the folder agrees with its seal."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete

from lorimer.database import begin_write
from lorimer.errors import IntegrityError, UsageError
from lorimer.registry import seal as seal_module
from lorimer.registry.audit import read_audit
from lorimer.registry.officers import add_key, remove_key
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry
from lorimer.registry.schema import seals
from lorimer.registry.seal import SEAL, parse_seal, read_seal
from lorimer.registry.sealing import Seals
from lorimer.registry.signing import KEY_VARIABLE, key_folder, open_signer
from lorimer.registry.trust import list_keys

MakeNew = Callable[..., NewVersion]
COMPANIONS = {"fingerprint.json": b"{}", "routing.safetensors": b"12"}


@pytest.fixture
def version(registry: Registry, make_new: MakeNew) -> AdapterVersion:
    """One with a lock, a template and companions."""
    new = make_new()
    for name in ("adapter.lock.json", "chat_template.jinja"):
        (new.source / name).write_text("{}")
    return registry.register(replace(new, companions=COMPANIONS))


def use_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sign with another key from now on."""
    own = key_folder()
    own.rename(own.with_name("aside"))
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    open_signer()
    own.rename(path)
    own.with_name("aside").rename(own)
    monkeypatch.setenv(KEY_VARIABLE, str(path / "private.pem"))


def test_registration_seals_all_files(registry: Registry, version: AdapterVersion) -> None:
    seal = Seals(registry.engine).verify(version.digest, version.path)
    assert seal is not None
    assert set(seal.files) == {file.name for file in version.path.iterdir()} - {SEAL}
    assert (seal.adapter_digest, seal.origin, seal.key_id) == (version.digest, "registered", open_signer().public.id)
    (entry,) = read_audit(registry.engine, version.id)
    assert (entry.details["manifest_digest"], entry.details["key_id"]) == (seal.manifest_digest, seal.key_id)


def test_seal_is_an_in_toto_statement_in_a_dsse_envelope(version: AdapterVersion) -> None:
    import base64

    value = json.loads((version.path / SEAL).read_bytes())
    assert set(value) == {"payloadType", "payload", "signatures"}
    assert value["payloadType"] == "application/vnd.in-toto+json"
    statement = json.loads(base64.b64decode(value["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert {"name", "digest"} == set(statement["subject"][0])
    assert statement["predicate"] == {"adapter_digest": version.digest, "origin": "registered"}


@pytest.mark.parametrize(
    "name",
    ["adapter_model.safetensors", "adapter_config.json", "adapter.lock.json", "chat_template.jinja", *COMPANIONS, SEAL],
)
def test_a_changed_byte_anywhere_is_noticed(registry: Registry, version: AdapterVersion, name: str) -> None:
    data = (version.path / name).read_bytes()
    for at in range(0, len(data), 1 if len(data) < 100 else 23):
        changed = bytearray(data)
        changed[at] ^= 1
        (version.path / name).write_bytes(bytes(changed))
        with pytest.raises(IntegrityError, match=".*" if name == SEAL else name) as caught:
            registry.verify_files(version)
        assert caught.value.exit_code == 6
    for longer in (data + b" ", data + b"\n", data[:-1]):
        (version.path / name).write_bytes(longer)
        with pytest.raises(IntegrityError):
            registry.verify_files(version)
    (version.path / name).write_bytes(data)
    registry.verify_files(version)


def test_a_file_more_or_less_is_noticed_and_all_is_said_at_once(registry: Registry, version: AdapterVersion) -> None:
    (version.path / "fingerprint.json").unlink()
    (version.path / "extra.json").write_text("{}")
    (version.path / "chat_template.jinja").write_text("other")
    said = "fingerprint.json is missing; chat_template.jinja has SHA-256 .*; extra.json was not there"
    with pytest.raises(IntegrityError, match=said):
        registry.verify_files(version)


@pytest.mark.parametrize("what", ["link", "folder"])
def test_links_and_folders_in_it_are_refused(registry: Registry, version: AdapterVersion, what: str, tmp_path: Path) -> None:
    file = version.path / "chat_template.jinja"
    shutil.move(file, tmp_path / "moved")
    file.symlink_to(tmp_path / "moved") if what == "link" else file.mkdir()
    with pytest.raises(IntegrityError, match="links or no files"):
        registry.verify_files(version)


def test_a_seal_taken_away_is_noticed(registry: Registry, version: AdapterVersion) -> None:
    (version.path / SEAL).unlink()
    with pytest.raises(IntegrityError, match="its seal is missing: it had one"):
        registry.verify_files(version)


def test_another_adapters_seal_is_no_seal(registry: Registry, version: AdapterVersion, make_new: MakeNew) -> None:
    other = registry.register(make_new(weights="w2"))
    shutil.copy(other.path / SEAL, version.path / SEAL)
    with pytest.raises(IntegrityError, match="its seal is that of adapter"):
        registry.verify_files(version)


def test_an_adapter_from_before_seals_is_served_and_can_be_signed(registry: Registry, version: AdapterVersion) -> None:
    (version.path / SEAL).unlink()
    with begin_write(registry.engine) as connection:
        connection.execute(delete(seals))
    assert Seals(registry.engine).verify(version.digest, version.path) is None
    sealed = Seals(registry.engine).renew(version.digest, version.path, actor="ada", reason="upgrade")
    assert Seals(registry.engine).verify(version.digest, version.path) == sealed
    entry = read_audit(registry.engine)[-1]
    assert (entry.actor, entry.action, entry.reason) == ("ada", "seal", "upgrade")


def test_late_companions_are_sealed_and_recorded_and_nothing_is_replaced(registry: Registry, make_new: MakeNew) -> None:
    version = registry.register(make_new())
    found = Seals(registry.engine)
    sealed = found.add(version.digest, version.path, {"fingerprint.json": b"{}"})
    assert found.verify(version.digest, version.path) == sealed
    assert [entry.action for entry in read_audit(registry.engine)] == ["register", "seal"]
    assert found.add(version.digest, version.path, {"fingerprint.json": b"other"}) == sealed
    assert (version.path / "fingerprint.json").read_bytes() == b"{}"


def test_nothing_is_added_to_a_folder_that_was_changed(registry: Registry, version: AdapterVersion) -> None:
    (version.path / "chat_template.jinja").write_text("other")
    for deed in (lambda: Seals(registry.engine).add(version.digest, version.path, {"x": b""}), lambda: registry.verify_files(version)):
        with pytest.raises(IntegrityError, match=r"chat_template\.jinja"):
            deed()
    with pytest.raises(IntegrityError, match=r"chat_template\.jinja"):
        Seals(registry.engine).renew(version.digest, version.path)


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("steps", range(4))
def test_a_crash_while_files_are_added_leaves_a_folder_that_agrees_with_its_seal(
    registry: Registry, make_new: MakeNew, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Before the file is written, before the seal is, before the file gets its name, and not at all."""
    version, write, rename = registry.register(make_new()), seal_module.write_bytes, os.replace
    left = iter(range(steps))

    def stop() -> None:
        if next(left, None) is None:
            raise Crash

    def rename_or_stop(source: Path, target: Path) -> None:
        if Path(source).name.startswith(".next-"):
            stop()
        rename(source, target)

    with monkeypatch.context() as patch, contextlib.suppress(Crash):
        patch.setattr(seal_module, "write_bytes", lambda *given: (stop(), write(*given)))
        patch.setattr(os, "replace", rename_or_stop)
        Seals(registry.engine).add(version.digest, version.path, {"fingerprint.json": b"{}"})
    assert (version.path / "fingerprint.json").is_file() == (steps == 3)
    registry.verify_files(version)
    Seals(registry.engine).add(version.digest, version.path, {"fingerprint.json": b"{}"})
    assert (version.path / "fingerprint.json").read_bytes() == b"{}"
    registry.verify_files(version)


def test_keys_come_and_go(registry: Registry, version: AdapterVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = open_signer().public
    with pytest.raises(UsageError, match="signs here"):
        remove_key(registry, old.id[:8])
    use_key(tmp_path / "new", monkeypatch)
    registry.verify_files(version)  # the old key still counts
    found = Seals(registry.engine).renew(version.digest, version.path)  # the new one is trusted at its first use
    assert found.key_id == open_signer().public.id != old.id
    remove_key(registry, old.id[:8], reason="lost")
    registry.verify_files(version)
    assert [key.removed_at is None for key in list_keys(registry.engine)].count(True) == 1
    actions = [entry.action for entry in read_audit(registry.engine)]
    assert actions == ["register", "trust_key", "seal", "distrust_key"]


def test_what_an_untrusted_key_signed_is_refused_until_it_is_trusted(
    registry: Registry, version: AdapterVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(tmp_path / "stranger", monkeypatch)
    stranger = open_signer()
    (version.path / SEAL).write_bytes(seal_module.make_seal(seal_module.hashes_of(version.path), "registered", stranger))
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(IntegrityError, match="not a trusted key with a right signature"):
        registry.verify_files(version)
    add_key(registry, stranger.public, name="the other site")
    registry.verify_files(version)


def test_seal_is_written_in_one_way_only(version: AdapterVersion) -> None:
    data = (version.path / SEAL).read_bytes()
    assert read_seal(version.path) == parse_seal(data)
    value = json.loads(data)
    for other in (json.dumps(value).encode(), data.replace(b'{"payload"', b'{ "payload"'), b"[]", b"[" * 100_000, b"\xff", b""):
        with pytest.raises(IntegrityError, match="cannot be read as a seal"):
            parse_seal(other)


@given(st.binary(max_size=200))
def test_strangers_bytes_are_no_seal(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="cannot be read as a seal"):
        parse_seal(data)
