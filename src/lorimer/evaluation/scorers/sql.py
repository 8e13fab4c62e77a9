"""Answers that are SQL: run read-only in SQLite, on a small database in memory, and compared by what they find."""

import itertools
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from lorimer.evaluation.scorers.score import Score, scored
from lorimer.evaluation.task import Sample

MAX_STEPS = 20_000_000
"""Instructions of SQLite's virtual machine; a bound that is the same on every machine."""
MAX_SECONDS = 10.0
"""For what the steps do not catch; reaching it leaves an answer unscored, as it would differ between machines."""
MAX_ROWS = 10_000
MAX_VALUE_BYTES = 100_000
"""Of a text in the database or in a result: single steps of SQLite that read texts cannot be stopped, so texts are short."""
MAX_VARIANTS = 500
STEPS_PER_LOOK = 10_000
READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
NEVER = {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA}

_FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
# what may hide a word from a reader of SQL: texts, names in quotes, comments
_HIDDEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|--[^\n]*|/\*.*?\*/", re.DOTALL)
_ORDER_BY = re.compile(r"\border\s+by\b", re.IGNORECASE)
_WIDTH = re.compile(r"%[^a-zA-Z%]*?(\*|\d{4,})")
_COLUMNS = re.compile(r"\{([^{}]*)\}")

Row = tuple[Any, ...]


class QueryError(Exception):
    """A query that gives no result, and why."""


class TooSlow(Exception):
    """A query that took longer than MAX_SECONDS within its steps."""


def sql_result(answer: str, sample: Sample) -> Score:
    """Right if the answer's query finds what the target's finds, in a database made of `spec["schema"]` and `spec["rows"]`.

    `schema` is a list of CREATE statements, `rows` maps a table to lists of values in its columns' order; `script`, instead of both, is
    SQL that makes the database. The query is the answer's first block of code, or all of it. Columns count in their order, whatever
    their names; rows in any order, unless the target has an ORDER BY (write it without ties). Numbers are compared to nine digits.

    The target may be several queries ended by ";", any of which may be met; in each, "{a, b}" stands for any choice of these columns in
    any order, and "{}" after it for the same choice, as in defog's sql-eval. A target that finds no row is met by too much to prove
    anything: then the sample is unscored. Queries only read: no ATTACH, no PRAGMA, no extension, bounded in steps, rows and sizes.
    """
    queries = list(itertools.islice(variants(sample.target), MAX_VARIANTS + 1))
    problems = _problems(sample.spec)
    if not queries:
        problems.append("the target holds no query")
    if len(queries) > MAX_VARIANTS:
        problems.append(f"the target stands for more than {MAX_VARIANTS} queries: name fewer columns in braces")
    if problems:
        return Score(value=None, answer=answer, explanation="; ".join(problems))
    try:
        with closing(build(sample.spec)) as database:
            return _compare(database, answer, queries)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        return Score(value=None, answer=answer, explanation=f"the database of this sample cannot be made: {error}")


def build(spec: dict[str, Any]) -> sqlite3.Connection:
    """A database in memory with the tables and rows of a sample; only reading is allowed from then on.

    Raises:
        sqlite3.Error: if a statement is wrong.
    """
    database = sqlite3.connect(":memory:", isolation_level=None)
    try:
        database.text_factory = lambda raw: raw.decode("utf-8", errors="replace")
        database.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action in NEVER else sqlite3.SQLITE_OK)
        database.executescript(spec.get("script", ""))
        for statement in spec.get("schema", []):
            database.execute(statement)
        for table, rows in spec.get("rows", {}).items():
            name = '"' + table.replace('"', '""') + '"'
            for row in rows:
                database.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(row))})", row)
        for name in ("printf", "format"):
            database.create_function(name, -1, _formatted, deterministic=True)
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        database.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 200)
        database.set_authorizer(_only_reads)
    except BaseException:
        database.close()
        raise
    return database


def run(database: sqlite3.Connection, query: str) -> list[Row]:
    """The rows that one query finds, in its order.

    Raises:
        QueryError: if it is no single query that reads, or finds or does too much.
        TooSlow: if it was still running after MAX_SECONDS.
    """
    started, looks = time.monotonic(), itertools.count(1)

    def look() -> bool:
        return next(looks) * STEPS_PER_LOOK > MAX_STEPS or time.monotonic() - started > MAX_SECONDS

    database.set_progress_handler(look, STEPS_PER_LOOK)
    try:
        with closing(database.cursor()) as cursor:
            cursor.execute(query)
            if cursor.description is None:
                raise QueryError("it is no query")
            rows = cursor.fetchmany(MAX_ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
        if time.monotonic() - started > MAX_SECONDS:
            raise TooSlow(f"was still running after {MAX_SECONDS:g} s") from error
        explanation = f"it takes more than {MAX_STEPS:,} steps" if str(error) == "interrupted" else str(error)
        raise QueryError(explanation) from error
    finally:
        database.set_progress_handler(None, 0)
    if len(rows) > MAX_ROWS:
        raise QueryError(f"it finds more than {MAX_ROWS:,} rows")
    return [tuple(_one_spelling(value) for value in row) for row in rows]


def query_of(answer: str) -> str:
    """The SQL in an answer: its first block marked as SQL, else its first block of code, else all of it."""
    blocks = _FENCE.findall(answer)
    marked = [content for name, content in blocks if name.lower().startswith("sql")]
    return str((marked or [content for _, content in blocks] or [answer])[0]).strip()


def variants(target: str) -> Iterator[str]:
    """The queries that a target stands for: those between semicolons, each with any choice of the columns it names in braces."""
    for query in _statements(target):
        braces = _COLUMNS.search(_without_hidden(query))
        if braces is None:
            yield query
            continue
        columns = [column.strip() for column in _split(query[braces.start(1) : braces.end(1)], ",")]
        for num_columns in range(1, len(columns) + 1):
            for chosen in itertools.permutations(columns, num_columns):
                text = ", ".join(chosen)
                yield (query[: braces.start()] + text + query[braces.end() :]).replace("{}", text)


def is_ordered(query: str) -> bool:
    """Does the query itself, and not only a part of it in brackets, ask for an order?"""
    depth, outside = 0, []
    for sign in _without_hidden(query):
        depth += (sign == "(") - (sign == ")")
        outside.append(sign if depth <= 0 else " ")
    return _ORDER_BY.search("".join(outside)) is not None


def _compare(database: sqlite3.Connection, answer: str, queries: list[str]) -> Score:
    found: list[Row] | None = None
    try:
        found = run(database, query_of(answer))
        problem = f"the query finds {len(found)} rows, but not those wanted"
    except TooSlow as error:
        return Score(value=None, answer=answer, explanation=f"the query {error}")
    except QueryError as error:
        problem = f"the query cannot be run: {error}"
    failures, num_telling = [], 0
    for query in queries:
        try:
            wanted = run(database, query)
        except (QueryError, TooSlow) as error:
            failures.append(f"{query[:80]!r}: {error}")
            continue
        num_telling += bool(wanted)
        if wanted and found is not None and _are_equal(found, wanted, is_ordered(query)):
            return scored(True, answer, "")
    if failures:  # the answer might have met these
        return Score(value=None, answer=answer, explanation=f"a query of the target cannot be run: {'; '.join(failures[:3])}")
    if not num_telling:
        return Score(value=None, answer=answer, explanation="the target finds no row in this database: give it rows that it finds")
    return scored(False, answer, problem)


def _are_equal(found: list[Row], wanted: list[Row], in_order: bool) -> bool:
    return found == wanted if in_order else sorted(found, key=repr) == sorted(wanted, key=repr)


def _one_spelling(value: Any) -> Any:
    """Numbers as text of nine digits, marked as numbers: 2.0 is 2, and a sum does not depend on the order of its terms."""
    return ("number", f"{value + 0.0:.9g}") if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**9) else value


def _formatted(*values: Any) -> Any:
    """SQLite's own printf, but for fields padded to a billion places, which it fills in one step that nothing can stop."""
    if values and _WIDTH.search(str(values[0])):
        raise ValueError("printf pads to 999 places at most here")
    with closing(sqlite3.connect(":memory:")) as other:
        return other.execute(f"SELECT printf({', '.join('?' * len(values))})", values).fetchone()[0]


def _only_reads(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action not in READING or (action == sqlite3.SQLITE_FUNCTION and second == "load_extension"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _problems(spec: dict[str, Any]) -> list[str]:
    problems = []
    if not isinstance(spec.get("script", ""), str):
        problems.append("spec script is a text of SQL")
    schema, rows = spec.get("schema", []), spec.get("rows", {})
    if not isinstance(schema, list) or not all(isinstance(statement, str) for statement in schema):
        problems.append("spec schema is a list of CREATE statements")
    if not isinstance(rows, dict) or not all(
        isinstance(table, list) and all(isinstance(row, list) and row for row in table) for table in rows.values()
    ):
        problems.append("spec rows is {table: [[value, ...], ...]}")
    if not spec.get("script") and not schema:
        problems.append('needs spec {"schema": [CREATE statements], "rows": {table: rows}} or {"script": SQL}')
    return problems


def _without_hidden(query: str) -> str:
    return _HIDDEN.sub(lambda match: " " * len(match[0]), query)


def _statements(text: str) -> list[str]:
    return [statement.strip() for statement in _split(text, ";") if _without_hidden(statement).strip()]


def _split(text: str, mark: str) -> list[str]:
    """Split where `mark` stands outside texts, comments and brackets."""
    parts, start, depth = [], 0, 0
    for place, sign in enumerate(_without_hidden(text)):
        depth += (sign == "(") - (sign == ")")
        if sign == mark and depth <= 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]
