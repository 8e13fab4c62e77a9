"""The one database: opened, tuned, brought to the newest schema. It knows no table: rooms name theirs, `migrations/` makes them."""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from lorimer.config import home
from lorimer.errors import ConfigError, IntegrityError, LorimerError, StorageError, UsageError
from lorimer.storage import explain_disk_errors

HEAD = "0007"
"""The newest revision in `migrations/versions`; known here so that a database already there is opened without alembic."""
BUSY_SECONDS = 10.0
MIGRATION_LOCK = 5_046_183  # a PostgreSQL advisory lock: any number, the same in every process
_one_at_a_time = threading.Lock()  # alembic's operations are global to the process


def open_database(url: str | None = None) -> Engine:
    """Open the database at `url` (by default `LORIMER_DATABASE`, else `lorimer.db` in the home folder), making or upgrading its tables.

    Raises:
        ConfigError: if the URL is not one, or its driver is not installed.
        StorageError: if the file cannot be made.
        IntegrityError: if the file is not a database.
        UsageError: if a newer Lorimer made it.
    """
    engine = _create_engine(_parse_url(url or os.environ.get("LORIMER_DATABASE") or f"sqlite:///{home() / 'lorimer.db'}"))
    with explain_database_errors(engine.url):
        if _read_revision(engine) != HEAD:
            upgrade(engine)
    return engine


@contextlib.contextmanager
def begin_write(engine: Engine) -> Iterator[Connection]:
    """One transaction that writes: all of it or nothing. On SQLite it takes the write lock at once, so that what it reads stays true.

    Raises:
        StorageError: if the disk is full or the file read-only.
        LorimerError: if other processes hold the lock too long.
    """
    with explain_database_errors(engine.url), engine.connect() as connection:
        connection = connection.execution_options(lorimer_writes=True)
        with connection.begin():
            yield connection


@contextlib.contextmanager
def explain_database_errors(url: URL) -> Iterator[None]:
    """Turn what a database says of its disk, its lock or its file into one sentence for the reader."""
    name = url.database if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)
    try:
        yield
    except DatabaseError as exc:
        said = str(exc.orig)
        if "locked" in said:
            raise LorimerError(f"database {name!r} is busy: other processes were writing for {BUSY_SECONDS:.0f} s; try again") from exc
        if "is full" in said:
            raise StorageError(f"the disk is full while writing {name!r}: free some space or point LORIMER_HOME elsewhere") from exc
        if "readonly" in said or "unable to open" in said:
            raise StorageError(f"cannot write database {name!r} ({said}): check its permissions or point LORIMER_HOME elsewhere") from exc
        if "not a database" in said or "malformed" in said:
            raise IntegrityError(f"{name!r} is not a database or is damaged ({said}): restore it from a backup or move it away") from exc
        raise


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as exc:  # its text is left out: it may hold a password
        raise ConfigError("LORIMER_DATABASE is not a database URL: write it as 'postgresql://user:password@host/name'") from exc
    # which driver is meant where none is named differs between versions of SQLAlchemy; ours is psycopg
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername in ("postgresql", "postgres") else parsed


def _create_engine(url: URL) -> Engine:
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite and url.database not in (None, "", ":memory:"):
        with explain_disk_errors(home()):
            os.makedirs(os.path.dirname(os.path.abspath(str(url.database))), exist_ok=True)
    try:
        engine = create_engine(url, pool_pre_ping=not is_sqlite)  # a server may have been restarted since the last statement
    except (ModuleNotFoundError, NoSuchModuleError) as exc:
        raise ConfigError(f"no driver for {url.drivername!r} is installed ({exc}): pip install 'lorimer[postgresql]'") from exc
    event.listen(engine, "handle_error", _explain_lost_connection)
    if is_sqlite:
        event.listen(engine, "connect", _tune)
        event.listen(engine, "begin", _begin)
    return engine


def _explain_lost_connection(context: ExceptionContext) -> None:
    """A server that is away, or went away, said in one sentence wherever it is noticed, reading or writing."""
    if context.engine is None or context.engine.dialect.name == "sqlite" or context.is_pre_ping:
        return
    if context.connection is None or context.is_disconnect:
        name = context.engine.url.render_as_string(hide_password=True)
        said = str(context.original_exception).strip().partition("\n")[0]
        what = "cannot be reached" if context.connection is None else "went away in the middle"
        raise StorageError(
            f"database {name!r} {what} ({said}): what was being written is there whole or not at all; see that it runs, try again"
        ) from context.original_exception


def _tune(connection: sqlite3.Connection, _record: Any) -> None:
    """Readers beside one writer (WAL), patience for locks, foreign keys; and no transactions but ours."""
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    connection.execute("PRAGMA foreign_keys = ON")
    deadline = time.monotonic() + BUSY_SECONDS
    while True:  # while another process makes the switch, SQLite refuses at once, whatever the timeout
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin(connection: Connection) -> None:
    """A transaction that reads first and writes later could not go on if another wrote between: writers say so at the start."""
    writes = connection.get_execution_options().get("lorimer_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _read_revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def open_database_at(url: str, revision: str) -> Engine:
    """A database brought to an older schema, to receive what was written in it; `upgrade` brings it on."""
    engine = _create_engine(_parse_url(url))
    upgrade(engine, revision)
    return engine


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Run the missing migrations in one transaction, one process at a time; who comes second finds nothing to do.

    Raises:
        UsageError: if a newer Lorimer made the database, or the revision.
    """
    from alembic import command  # imported only here: a database at HEAD does not need it
    from alembic.config import Config
    from alembic.util import CommandError

    with _one_at_a_time, begin_write(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        config = Config()
        config.set_main_option("script_location", "lorimer:migrations")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, revision)
        except CommandError as exc:
            raise UsageError(f"the database was made by a newer Lorimer ({exc}): upgrade this one, or use another database") from exc
