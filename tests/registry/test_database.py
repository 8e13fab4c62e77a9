"""Opening the database: once, twice, by several processes at once, and where it cannot be opened."""

import multiprocessing
import os
import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, insert, select, text
from sqlalchemy.exc import DatabaseError

from lorimer.database import HEAD, begin_write, open_database
from lorimer.errors import ConfigError, IntegrityError, LorimerError, StorageError, UsageError
from lorimer.registry.schema import aliases, api_keys, audit, metadata

VERSION = {
    "name": "helpdesk", "version": 1, "digest": "d" * 64, "base_name": "gemma3-270m", "base_digest": "b" * 64, "dataset_name": "tickets",
    "dataset_digest": "e" * 64, "run_id": "run-1", "rank": 16, "alpha": 32.0, "num_parameters": 1, "num_bytes": 1, "path": "adapters/d",
    "template_digest": "t" * 64, "created_at": "", "created_by": "",
}  # fmt: skip


def migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", "lorimer:migrations")
    return config


def test_database_is_made_in_the_home_folder_and_opened_again(home: Path) -> None:
    for _ in range(2):
        engine = open_database()
        with engine.connect() as connection:
            assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [HEAD]
            assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
            assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
        engine.dispose()
    assert (home / "lorimer.db").is_file()


def test_database_follows_the_environment(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIMER_DATABASE", f"sqlite:///{tmp_path / 'elsewhere' / 'x.db'}")
    open_database().dispose()
    assert (tmp_path / "elsewhere" / "x.db").is_file()
    assert not (home / "lorimer.db").exists()


def test_head_is_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(migrations()).get_current_head() == HEAD


def test_migrations_make_the_tables_that_queries_name() -> None:
    engine = open_database()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def open_and_report(url: str, barrier: "multiprocessing.synchronize.Barrier", queue: "multiprocessing.Queue[str]") -> None:
    barrier.wait()
    try:
        open_database(url).dispose()
        queue.put("opened")
    except BaseException as exc:
        queue.put(repr(exc))
        raise


def test_database_is_made_once_by_many_processes(tmp_path: Path) -> None:
    fork, num = multiprocessing.get_context("fork"), 6
    for attempt in range(3):
        url = f"sqlite:///{tmp_path / f'{attempt}.db'}"
        barrier, queue = fork.Barrier(num), fork.Queue()
        processes = [fork.Process(target=open_and_report, args=(url, barrier, queue)) for _ in range(num)]
        for process in processes:
            process.start()
        assert [queue.get(timeout=30) for _ in processes] == ["opened"] * num
        for process in processes:
            process.join()


def insert_audit(engine: Engine, *, num: int, reason: str = "", pages: int | None = None) -> None:
    row = {"id": 1, "at": "", "actor": "", "action": "", "subject": "", "reason": reason, "details": {}}
    with begin_write(engine) as connection:
        if pages:
            connection.execute(text(f"PRAGMA max_page_count = {pages}"))
        for _ in range(num):
            connection.execute(insert(audit).values(row))


def test_write_is_all_or_nothing() -> None:
    engine = open_database()
    with pytest.raises(DatabaseError, match="append-only"):
        insert_audit(engine, num=2)
    with engine.connect() as connection:
        assert connection.execute(select(audit)).all() == []


def test_full_disk_is_a_storage_error() -> None:
    engine = open_database()
    with pytest.raises(StorageError, match=r"the disk is full while writing .*lorimer\.db"):
        insert_audit(engine, num=1, reason="x" * 1_000_000, pages=1)
    with engine.connect() as connection:
        assert connection.execute(select(audit)).all() == []


def test_write_waits_for_another_and_says_so_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorimer.database.BUSY_SECONDS", 0.05)
    engine, other = open_database(), open_database()
    with begin_write(engine), pytest.raises(LorimerError, match="is busy"), begin_write(other):
        pass
    with begin_write(other) as connection:
        assert connection.execute(select(aliases)).all() == []


def test_readers_do_not_wait_for_a_writer() -> None:
    engine, other = open_database(), open_database()
    with begin_write(engine), other.connect() as connection:
        assert connection.execute(select(aliases)).all() == []


@pytest.mark.parametrize("url", ["not a url", "nosuchdatabase://host/name", "sqlite+nosuchdriver:///x.db"])
def test_url_that_is_none_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_database(url)
    assert "not a url" not in str(caught.value)  # it may hold a password


def test_file_that_is_no_database_is_an_integrity_error(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("These are my notes. " * 100)
    with pytest.raises(IntegrityError, match=r"x\.db' is not a database"):
        open_database(f"sqlite:///{tmp_path / 'x.db'}")
    assert (tmp_path / "x.db").read_text().startswith("These are my notes.")


def test_database_of_a_newer_lorimer_is_refused_unchanged(home: Path) -> None:
    open_database().dispose()
    with sqlite3.connect(home / "lorimer.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(UsageError, match=r"newer Lorimer.*9999"):
        open_database()


def test_database_of_the_first_schema_is_brought_up_with_what_it_holds(home: Path) -> None:
    home.mkdir()
    old = create_engine(f"sqlite:///{home / 'lorimer.db'}")
    with old.begin() as connection:
        config = migrations()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(insert(aliases.metadata.tables["adapter_versions"]).values(VERSION))
        connection.execute(insert(aliases).values(adapter_name="helpdesk", alias="champion", version=1, moved_at="", moved_by=""))
    old.dispose()
    engine = open_database()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [HEAD]
        assert connection.execute(select(aliases.c.alias)).scalars().all() == ["champion"]
        assert connection.execute(select(api_keys)).all() == []
    with pytest.raises(DatabaseError, match="append-only"):
        insert_audit(engine, num=2)


def test_folder_in_the_way_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "x.db").mkdir()
    with pytest.raises(StorageError, match="unable to open"):
        open_database(f"sqlite:///{tmp_path / 'x.db'}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="permissions"):
        open_database(f"sqlite:///{tmp_path / 'locked' / 'deep' / 'x.db'}")


POSTGRESQL = {
    "0001": ("id SERIAL NOT NULL", "num_bytes BIGINT", "document JSON", "EXECUTE FUNCTION audit_refuse()", "FOREIGN KEY(adapter_name"),
    "0002": (
        "may_use_base BOOLEAN NOT NULL",
        "tokens_per_minute BIGINT",
        "adapters JSON NOT NULL",
        "FOREIGN KEY(tenant) REFERENCES tenants",
    ),
    "0003": ("ALTER TABLE adapter_versions ADD COLUMN parts JSON",),
    "0004": ("overrides_gate BOOLEAN NOT NULL", "key CHAR(32) NOT NULL", "ALTER TABLE audit ADD COLUMN digest", "id SERIAL NOT NULL"),
    "0005": ("ALTER TABLE adapter_versions ADD COLUMN parents JSON", "id SERIAL NOT NULL", "left_platform BOOLEAN"),
    "0006": ("document JSON NOT NULL", "key CHAR(32) NOT NULL", "PRIMARY KEY (kind, value)"),
    "0007": ("PRIMARY KEY (suite_digest, adapter_digest)", "number INTEGER NOT NULL"),
}


def test_every_migration_is_tried_for_postgresql() -> None:
    assert set(POSTGRESQL) == {script.revision for script in ScriptDirectory.from_config(migrations()).walk_revisions()}


@pytest.mark.parametrize("revision", list(POSTGRESQL))
def test_migration_speaks_postgresql(capsys: pytest.CaptureFixture[str], revision: str) -> None:
    """The statements for PostgreSQL, without a server: types it knows, and its own trigger."""
    script = ScriptDirectory.from_config(migrations()).get_revision(revision)
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True})
    with Operations.context(context):
        script.module.upgrade()
    sql = capsys.readouterr().out
    for part in POSTGRESQL[revision]:
        assert part in sql, part
    assert "RAISE(ABORT" not in sql
