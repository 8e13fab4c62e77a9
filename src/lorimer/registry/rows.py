"""The database's rows as JSON Lines, out of one database and into another: SQLite and PostgreSQL read each other's."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Connection, Engine, LargeBinary, MetaData, Table, delete, insert, select, text

from lorimer.errors import IntegrityError
from lorimer.storage import canonical_json

REVISION_TABLE = "alembic_version"
BATCH = 500
BYTES_KEY = "$bytes"


def reflect(connection: Connection) -> list[Table]:
    """The tables that are there, those that others refer to first."""
    metadata = MetaData()
    metadata.reflect(connection)
    for table in metadata.sorted_tables:
        for column in table.columns:
            if isinstance(column.type, JSON):
                column.type.none_as_null = True
    return [table for table in metadata.sorted_tables if table.name != REVISION_TABLE]


def begin_snapshot(connection: Connection) -> Connection:
    """From here on this connection sees the database as it was at one moment, whatever others write."""
    if connection.dialect.name == "postgresql":
        connection = connection.execution_options(isolation_level="REPEATABLE READ")
    connection.execute(text(f"SELECT version_num FROM {REVISION_TABLE}")).all()  # SQLite's begins with its first read (WAL)
    return connection


def dump_rows(connection: Connection, table: Table) -> Iterator[bytes]:
    """A table's rows, a line each, in the order of their keys."""
    query = select(table).order_by(*table.primary_key.columns)
    for row in connection.execution_options(yield_per=BATCH).execute(query).mappings():
        yield canonical_json({name: _plain(value) for name, value in row.items()}) + b"\n"


def load_rows(connection: Connection, tables: Sequence[Table], folder: Path) -> None:
    """Insert what `dump_rows` wrote, a file for each table.

    Raises:
        IntegrityError: if a file is of a table that is not there, or has no rows of it.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if strange := sorted(set(files) - {table.name for table in tables}):
        raise IntegrityError(f"the backup holds rows of {', '.join(map(repr, strange))}, tables this database has none of")
    for table in tables:
        if table.name in files:
            with files[table.name].open(encoding="utf-8") as lines:
                copy_rows(connection, table, (json.loads(line) for line in lines))


def copy_rows(connection: Connection, table: Table, rows: Iterator[Mapping[str, Any]]) -> None:
    """Insert rows, and have PostgreSQL count on from the highest of them."""
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append({column.name: _value(column.type, row[column.name]) for column in table.columns if column.name in row})
        if len(batch) == BATCH:
            connection.execute(insert(table), batch)
            batch = []
    if batch:
        connection.execute(insert(table), batch)
    if connection.dialect.name == "postgresql":
        for column in table.primary_key.columns:
            named = {"table": table.name, "column": column.name}
            sequence = connection.execute(text("SELECT pg_get_serial_sequence(:table, :column)"), named).scalar()
            if sequence and (highest := connection.execute(select(column).order_by(column.desc()).limit(1)).scalar()):
                connection.execute(text("SELECT setval(:sequence, :highest)"), {"sequence": sequence, "highest": highest})


def empty_tables(connection: Connection, tables: Sequence[Table]) -> None:
    """Take every row out, also out of tables that otherwise only grow; their triggers are back before the transaction ends."""
    triggers = _suspend_triggers(connection, tables)
    for table in reversed(tables):
        connection.execute(delete(table))
    for statement in triggers:
        connection.exec_driver_sql(statement)


def has_rows(connection: Connection, tables: Sequence[Table]) -> list[str]:
    """The tables that hold something."""
    return [table.name for table in tables if connection.execute(select(text("1")).select_from(table).limit(1)).first()]


def read_revision(engine: Engine) -> str:
    """Of the schema."""
    with engine.connect() as connection:
        return str(connection.execute(text(f"SELECT version_num FROM {REVISION_TABLE}")).scalar_one())


def _suspend_triggers(connection: Connection, tables: Sequence[Table]) -> list[str]:
    """Switch off what refuses deletion; returns the statements that switch it on again."""
    if connection.dialect.name == "postgresql":
        names = [f'"{table.name}"' for table in tables]
        for name in names:
            connection.execute(text(f"ALTER TABLE {name} DISABLE TRIGGER USER"))
        return [f"ALTER TABLE {name} ENABLE TRIGGER USER" for name in names]
    found = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
    for name, _ in found:
        connection.execute(text(f'DROP TRIGGER "{name}"'))
    return [str(sql) for _, sql in found]


def _plain(value: Any) -> Any:
    return {BYTES_KEY: base64.b64encode(value).decode()} if isinstance(value, bytes | memoryview) else value


def _value(kind: Any, value: Any) -> Any:
    if isinstance(kind, LargeBinary) and isinstance(value, dict):
        return base64.b64decode(value[BYTES_KEY])
    return value
