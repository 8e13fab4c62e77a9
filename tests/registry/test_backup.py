"""Backups: everything comes back, from each kind of database into each; no changed byte comes back as another."""

import random
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, insert, select, text
from typer.testing import CliRunner

from lorimer.cli.main import app
from lorimer.config import home
from lorimer.data.curate import curate
from lorimer.data.dataset import read_dataset
from lorimer.database import begin_write, open_database, open_database_at
from lorimer.errors import IntegrityError, LorimerError, UsageError
from lorimer.evaluation.gates import GateResult
from lorimer.registry import backup as backup_module
from lorimer.registry.archive import ArchiveWriter
from lorimer.registry.audit import read_audit
from lorimer.registry.audit_check import check_audit
from lorimer.registry.backup import backup, restore
from lorimer.registry.compositions import compose
from lorimer.registry.promotion import promote
from lorimer.registry.records import NewVersion
from lorimer.registry.registry import Registry
from lorimer.registry.rows import reflect
from lorimer.serving.grants import Grant, Quota
from lorimer.serving.keys import Keys
from lorimer.storage import canonical_json, write_bytes

MakeNew = Callable[..., NewVersion]
MakeGate = Callable[..., GateResult]


@pytest.fixture
def go(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Another, empty home with an empty database of a kind."""

    def away(name: str, kind: str) -> Path:
        monkeypatch.setenv("LORIMER_HOME", str(tmp_path / name))
        if kind == "postgresql":
            monkeypatch.setenv("LORIMER_DATABASE", request.getfixturevalue("postgresql_server").new_database())
        else:
            monkeypatch.delenv("LORIMER_DATABASE", raising=False)
        return tmp_path / name

    return away


@pytest.fixture
def filled(registry: Registry, make_new: MakeNew, make_gate: MakeGate, tmp_path: Path, home: Path) -> Registry:
    """One of everything."""
    first, second = registry.register(make_new()), registry.register(make_new(weights="w2"), actor="ada")
    registry.record_gate(make_gate(first), first)
    promote(registry, first, reason="better: in German, 100%")
    compose(registry, "both", ["helpdesk@v1*0.5", "helpdesk@v2"])
    keys = Keys(registry.engine)
    keys.create("acme", tenant="acme", grant=Grant(), quota=Quota(requests_per_minute=3))
    keys.revoke("acme")
    rows = b"".join(canonical_json({"prompt": f"Größe {n}?", "completion": f"{n}"}) + b"\n" for n in range(20))
    write_bytes(tmp_path / "tickets.jsonl", rows)
    curate([tmp_path / "tickets.jsonl"], name="tickets")
    write_bytes(home / "runs" / "r1" / "recipe.yaml", b"base: b")
    write_bytes(home / "runs" / "r1" / "checkpoints" / "big", b"0" * 1000)
    write_bytes(home / "keys" / "other.pem", b"secret", mode=0o600)
    write_bytes(home / "answers" / "cache.json", b"{}")
    assert second.version == 2
    return registry


def rows_of(engine: Engine) -> dict[str, list[Any]]:
    with engine.connect() as connection:
        found = {table.name: connection.execute(select(table).order_by(*table.primary_key.columns)).all() for table in reflect(connection)}
    return {name: [tuple(row) for row in rows] for name, rows in found.items()}


def files_of(home: Path) -> dict[str, bytes]:
    own = {home / "audit", *home.glob("lorimer.db*")}  # the database, and what this home has seen of its audit chain
    files = (path for path in home.rglob("*") if path.is_file() and not {path, path.parent} & own)
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_everything_comes_back(filled: Registry, make_new: MakeNew, home: Path, go: Any, kind: str, tmp_path: Path) -> None:
    """From each kind of database into each."""
    rows, files, dataset = rows_of(filled.engine), files_of(home), read_dataset("tickets")
    made = backup(filled.engine, tmp_path / "b.tar")
    other = go("other", kind)
    back = restore(tmp_path / "b.tar", actor="bob")
    assert (back.digest, back.num_files, back.num_rows) == (made.digest, made.num_files, made.num_rows)
    registry = Registry(open_database())
    found = rows_of(registry.engine)
    assert found["audit"][: len(rows["audit"])] == rows["audit"]
    changed: dict[str, list[Any]] = {"audit": [], "audit_heads": []}  # by the restore's own entry
    assert {**found, **changed} == {**rows, **changed}
    assert check_audit(registry.engine).problems == ()
    kept = {name: data for name, data in files.items() if not name.startswith(("answers", "runs/r1/checkpoints"))}
    assert kept == files_of(other)
    assert (other / "keys" / "other.pem").stat().st_mode & 0o777 == 0o600
    assert read_dataset("tickets").digest == dataset.digest
    assert registry.resolve("helpdesk").id == "helpdesk@v1"
    registry.verify_files(registry.resolve("both"))
    entry = read_audit(registry.engine)[-1]
    assert (entry.actor, entry.action, entry.details["backup_digest"]) == ("bob", "restore", made.digest)
    registry.record_gate(replace(registry.newest_gate(registry.resolve("helpdesk")), report_digest="9" * 64), registry.resolve("helpdesk"))
    assert registry.register(make_new(weights="w9")).version == 3  # numbers go on where they were
    with pytest.raises(Exception, match="append-only"), begin_write(registry.engine) as connection:
        connection.execute(text("DELETE FROM audit"))
    registry.engine.dispose()


def test_backup_without_keys_has_none(filled: Registry, tmp_path: Path, go: Any) -> None:
    backup(filled.engine, tmp_path / "b.tar", with_keys=False)
    own = {path.read_bytes() for path in (home() / "keys").rglob("*") if path.is_file()}
    other = go("other", "sqlite")
    restore(tmp_path / "b.tar")  # which is signed by a key of the new home's own
    assert own
    assert own.isdisjoint({path.read_bytes() for path in (other / "keys").rglob("*") if path.is_file()})


def test_something_here_is_not_lost_unless_that_is_said(filled: Registry, make_new: MakeNew, tmp_path: Path, go: Any) -> None:
    made = backup(filled.engine, tmp_path / "b.tar")
    other = go("other", "sqlite")
    engine = open_database()
    Registry(engine).register(make_new("mine", "w7"))
    with pytest.raises(UsageError, match=r"something here already .*adapter_versions.*--replace"):
        restore(tmp_path / "b.tar")
    before = rows_of(engine)
    assert [version.id for version in Registry(engine).list_versions()] == ["mine@v1"]
    assert restore(tmp_path / "b.tar", replace=True).digest == made.digest
    assert "mine" not in {version.name for version in Registry(engine).list_versions()}
    assert before != rows_of(engine)
    assert len(list((other / "adapters").iterdir())) == 2
    engine.dispose()


def test_no_changed_byte_comes_back_as_another(filled: Registry, home: Path, tmp_path: Path, go: Any) -> None:
    """Any byte flipped, or the end cut off: refused with nothing touched, or, in a tar's padding, without any effect."""
    backup(filled.engine, tmp_path / "b.tar")
    good, wanted, draw = (tmp_path / "b.tar").read_bytes(), files_of(home), random.Random(7)
    num_refused = 0
    for attempt in range(60):
        broken = bytearray(good)
        if attempt % 6 == 0:
            del broken[draw.randrange(len(broken) - 10240) :]
        else:
            broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        (tmp_path / "broken.tar").write_bytes(broken)
        other = go(f"other{attempt}", "sqlite")
        try:
            restore(tmp_path / "broken.tar")
        except IntegrityError:  # exit 6
            num_refused += 1
            assert files_of(other) == {}
        else:
            assert {name: wanted[name] for name in files_of(other)} == files_of(other)
    assert num_refused > 20


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "keys/../../evil"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, home: Path, name: str) -> None:
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(IntegrityError, match="has no place in it"):
        restore(tmp_path / "b.tar")


def test_links_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        link = tarfile.TarInfo("adapters/x")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(IntegrityError, match="has no place in it"):
        restore(tmp_path / "b.tar")


@pytest.mark.parametrize("text_", ["", "These are my notes. " * 1000])
def test_file_that_is_no_backup_is_refused(tmp_path: Path, text_: str) -> None:
    (tmp_path / "b.tar").write_text(text_)
    with pytest.raises(IntegrityError, match="is damaged or is none"):
        restore(tmp_path / "b.tar")
    with pytest.raises(UsageError, match="there is no backup"):
        restore(tmp_path / "c.tar")


def test_gone_files_are_told(filled: Registry, home: Path, tmp_path: Path) -> None:
    (home / "adapters" / filled.resolve("helpdesk@v2").digest[:16]).rename(tmp_path / "gone")
    with pytest.raises(IntegrityError, match=r"files of helpdesk@v2 are gone"):
        backup(filled.engine, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()
    assert backup(filled.engine, tmp_path / "b.tar", allow_missing=True).missing == ("helpdesk@v2",)
    with pytest.raises(UsageError, match="is there already"):
        backup(filled.engine, tmp_path / "b.tar")


def test_backup_is_of_one_moment_while_others_write(registry: Registry, make_new: MakeNew, tmp_path: Path, go: Any) -> None:
    """Whatever is written meanwhile: each version that came back has its files, and its entry in the audit table."""
    stop, failures = threading.Event(), list[BaseException]()

    def write() -> None:
        own = Registry(open_database())
        try:
            for number in range(10_000):
                if stop.is_set():
                    return
                own.register(make_new(weights=f"x{number}"))
        except BaseException as exc:
            failures.append(exc)
        finally:
            own.engine.dispose()

    registry.register(make_new())
    writer = threading.Thread(target=write)
    writer.start()
    archives = [tmp_path / f"{number}.tar" for number in range(4)]
    try:
        for archive in archives:
            backup(registry.engine, archive)
    finally:
        stop.set()
        writer.join()
    assert failures == []
    for number, archive in enumerate(archives):
        go(f"other{number}", "sqlite")
        restore(archive)
        back = Registry(open_database())
        versions = back.list_versions()
        assert len(versions) == [entry.action for entry in read_audit(back.engine)].count("register")
        for version in versions:
            back.verify_files(version)
        back.engine.dispose()


def revisions() -> list[str]:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "lorimer:migrations")
    return sorted(script.revision for script in ScriptDirectory.from_config(config).walk_revisions())


VERSION = {
    "name": "old", "version": 1, "digest": "d" * 64, "base_name": "b", "base_digest": "b" * 64, "dataset_name": "t",
    "dataset_digest": "e" * 64, "run_id": "r", "rank": 16, "alpha": 32.0, "num_parameters": 1, "num_bytes": 1,
    "path": "adapters/d", "template_digest": "t" * 64, "created_at": "2026-01-01T00:00:00+00:00", "created_by": "ada",
}  # fmt: skip
ENTRY = {"id": 1, "at": "2026-01-01T00:00:00+00:00", "actor": "ada", "action": "register", "subject": "old@v1", "reason": "", "details": {}}
OLD_ROWS = {
    "adapter_versions": VERSION,
    "aliases": {"adapter_name": "old", "alias": "champion", "version": 1, "moved_at": "", "moved_by": "ada"},
    "audit": ENTRY,
    "tenants": {"name": "acme", "created_at": ""},
}


def fill_old(engine: Engine) -> None:
    """A row in each table that a schema has."""
    with begin_write(engine) as connection:
        for table in reflect(connection):
            if row := OLD_ROWS.get(table.name):
                connection.execute(insert(table).values(row))


@pytest.mark.parametrize("revision", revisions())
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_every_released_schema_comes_up_with_what_it_holds(
    request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch, revision: str, kind: str
) -> None:
    home.mkdir()
    server = request.getfixturevalue("postgresql_server") if kind == "postgresql" else None
    url = server.new_database(empty=True) if server else f"sqlite:///{home / 'lorimer.db'}"
    old = open_database_at(url, revision)
    fill_old(old)
    old.dispose()
    engine = open_database(url)
    assert [version.id for version in Registry(engine).list_versions()] == ["old@v1"]
    assert [alias.id for alias in Registry(engine).aliases()] == ["old@champion"]
    (entry,) = read_audit(engine)
    assert (entry.actor, entry.subject) == ("ada", "old@v1")
    with pytest.raises(Exception, match="append-only"), begin_write(engine) as connection:
        connection.execute(text("UPDATE audit SET actor = 'nobody'"))
    engine.dispose()


@pytest.mark.parametrize("revision", revisions())
def test_backup_of_every_released_schema_is_restored(home: Path, tmp_path: Path, go: Any, revision: str) -> None:
    """Their backups, as this version writes them: rows of the schema of then."""
    old = open_database_at(f"sqlite:///{tmp_path / 'old.db'}", revision)
    fill_old(old)
    with ArchiveWriter(path=tmp_path / "b.tar") as archive:
        backup_module._dump_database(old, tmp_path, archive)
        archive.described.update({"created_at": "", "num_rows": 1, "missing": []})
    old.dispose()
    restore(tmp_path / "b.tar")
    engine = open_database()
    assert [version.id for version in Registry(engine).list_versions()] == ["old@v1"]
    actions = [entry.action for entry in read_audit(engine)]
    assert (actions[0], actions[-1]) == ("register", "restore")
    engine.dispose()


def test_backup_of_a_newer_lorimer_is_refused(filled: Registry, tmp_path: Path, go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_module, "read_revision", lambda engine: "9999")
    backup(filled.engine, tmp_path / "b.tar")
    other = go("other", "sqlite")
    with pytest.raises(UsageError, match=r"newer Lorimer"):
        restore(tmp_path / "b.tar")
    assert files_of(other) == {}


def test_what_was_erased_since_is_erased_again(filled: Registry, tmp_path: Path, go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of what was erased outlives the restore, and whoever erases is called with it."""
    backup(filled.engine, tmp_path / "b.tar")
    with begin_write(filled.engine) as connection:
        connection.execute(text("INSERT INTO tombstones VALUES ('adapter', 'since', 'e1', '2026-11-22')"))
    seen = list[Any]()

    def replay(engine: Engine) -> None:
        with engine.connect() as connection:
            seen.extend(connection.execute(text("SELECT value FROM tombstones")).scalars())

    monkeypatch.setattr(backup_module, "AFTER_RESTORE", [replay])
    restore(tmp_path / "b.tar", replace=True)
    assert seen == ["since"]


def test_restore_that_fails_in_the_database_leaves_it_as_it_was(
    filled: Registry, make_new: MakeNew, tmp_path: Path, go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(filled.engine, tmp_path / "b.tar")
    go("other", "sqlite")
    engine = open_database()
    Registry(engine).register(make_new("mine", "w7"))
    before = rows_of(engine)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise LorimerError("the power went")

    monkeypatch.setattr(backup_module, "record", fail)
    with pytest.raises(LorimerError, match="power"):
        restore(tmp_path / "b.tar", replace=True)
    assert rows_of(engine) == before
    monkeypatch.undo()


def test_commands(filled: Registry, tmp_path: Path, go: Any) -> None:
    for command, said in ((["backup", str(tmp_path / "b.tar")], "holds"), (["restore", str(tmp_path / "b.tar")], "Restored")):
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0
        assert said in result.stdout
        go("other", "sqlite")
