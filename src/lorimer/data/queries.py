"""Rows out of a database, by a query of the user's own. It reads as the rows come, and changes nothing there."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from lorimer.data.raw import Chunk, ReadyRows, as_table_row
from lorimer.data.sources import ROWS_A_CHUNK, check_unique
from lorimer.errors import ConfigError, DataError, NotFoundError

NAME = "query"


@dataclass(slots=True)
class QuerySource:
    """The rows a query returns, numbered as they come."""

    url: URL
    query: str
    name: str = NAME
    num_bytes: int | None = None
    _digest: str = field(default="", init=False)

    def chunks(self) -> Iterator[Chunk]:
        """See `Source.chunks`."""
        digest, row = hashlib.sha256(), 1
        try:
            engine = create_engine(self.url)
            with engine.connect() as connection:
                _decode_leniently(connection)
                result = connection.execution_options(stream_results=True, yield_per=ROWS_A_CHUNK).execute(text(self.query))
                if not result.returns_rows:
                    raise ConfigError(f"query {self.query!r} returns no rows, it changes some: give a select (nothing was changed)")
                columns = list(result.keys())
                check_unique(columns, "the query")
                for part in result.partitions(ROWS_A_CHUNK):
                    found = [as_table_row(number, dict(zip(columns, cells, strict=True))) for number, cells in enumerate(part, row)]
                    digest.update(repr([tuple(cells) for cells in part]).encode(errors="backslashreplace"))
                    yield ReadyRows(found)
                    row += len(part)
                connection.rollback()
            engine.dispose()
        except (ModuleNotFoundError, NoSuchModuleError) as exc:
            raise ConfigError(f"no driver for {self.url.drivername!r} is installed ({exc}): install one, as `pip install psycopg`") from exc
        except SQLAlchemyError as exc:
            said = str(getattr(exc, "orig", None) or exc).partition("\n")[0]
            raise DataError(f"query {self.query!r} on {self._shown()!r} failed ({said}): correct it") from exc
        self._digest = digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """See `Source.describe`; its digest is that of the rows as they came."""
        return {"file": self.name, "sha256": self._digest, "num_bytes": None, "query": self.query, "url": self._shown()}

    def _shown(self) -> str:
        """The address, as far as it is the same everywhere and no secret: a file without its folder, no password."""
        if self.url.get_backend_name() == "sqlite" and self.url.database:
            return f"{self.url.drivername}:///{Path(self.url.database).name}"
        return self.url.render_as_string(hide_password=True)


def open_query(url: str, query: str) -> QuerySource:
    """A query as a source.

    Raises:
        ConfigError: if the address is not one, or the query is empty.
        NotFoundError: if it names a SQLite file that is not there.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as exc:  # its text is left out: it may hold a password
        raise ConfigError("`--sql` is not a database URL: write it as 'postgresql://user:password@host/name'") from exc
    if not query.strip():
        raise ConfigError("`--query` is empty: give a select")
    if parsed.get_backend_name() == "sqlite" and parsed.database and not Path(parsed.database).is_file():
        raise NotFoundError(f"database file {parsed.database!r} does not exist: check `--sql`")
    return QuerySource(parsed, query)


def _decode_leniently(connection: Connection) -> None:
    """SQLite keeps bytes that are not UTF-8 as texts: they are one row's problem, not the end of the query."""
    if connection.dialect.name == "sqlite":
        driver: Any = connection.connection.dbapi_connection
        driver.text_factory = lambda data: data.decode(errors="surrogateescape")
