"""Queries that are right, wrong, dangerous and endless, on a small shop of our own and on sql-eval's questions."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorimer.evaluation.scorers import sql
from lorimer.evaluation.scorers.sql import build, is_ordered, query_of, sql_result, variants
from lorimer.evaluation.task import Sample

SHOP = {
    "schema": ["CREATE TABLE item (id INTEGER, name TEXT, price REAL)", "CREATE TABLE sale (item INTEGER, day TEXT, amount INTEGER)"],
    "rows": {
        "item": [[1, "lamp", 40.0], [2, "desk", 180.5], [3, "chair", 75.25], [4, "shelf", None]],
        "sale": [[1, "2026-01-03", 2], [1, "2026-01-09", 1], [2, "2026-01-09", 1], [3, "2026-02-01", 4]],
    },
}


def wanting(target: str, **spec: Any) -> Sample:
    return Sample(id="1", prompt=(), target=target, spec=spec or SHOP)


@pytest.mark.parametrize(
    ("answer", "target", "value"),
    [
        ("SELECT name FROM item WHERE price > 50", "SELECT i.name AS n FROM item i WHERE i.price > 50;", 1),
        ("Here:\n```sql\nSELECT name FROM item WHERE price > 50;\n```\nDone.", "SELECT name FROM item WHERE price > 50", 1),
        ("```\nSELECT 1\n```\n```sql\nSELECT name FROM item\n```", "SELECT name FROM item", 1),
        ("SELECT name FROM item WHERE price > 100", "SELECT name FROM item WHERE price > 50", 0),
        ("SELECT name, id FROM item", "SELECT id, name FROM item", 0),
        ("SELECT name FROM item ORDER BY price DESC", "SELECT name FROM item", 1),
        ("SELECT name FROM item ORDER BY name DESC", "SELECT name FROM item ORDER BY name", 0),
        ("SELECT name FROM item ORDER BY name", "SELECT name FROM (SELECT name FROM item ORDER BY name DESC)", 1),
        ("SELECT item FROM sale", "SELECT DISTINCT item FROM sale", 0),
        ("SELECT sum(price) / 3 FROM item", "SELECT avg(price) FROM item", 1),
        ("SELECT 2.0", "SELECT 2", 1),
        ("SELECT '2'", "SELECT 2", 0),
        ("SELECT printf('%.2f', price) FROM item WHERE id = 1", "SELECT '40.00'", 1),
        ("SELECT name FROM item WHERE 1 = 0", "SELECT name FROM item", 0),
        ("SELECT name FROM nowhere", "SELECT name FROM item", 0),
        ("SELECT name FROM item; SELECT 1", "SELECT name FROM item", 0),
        ("I do not know", "SELECT name FROM item", 0),
        ("", "SELECT name FROM item", 0),
        ("\0", "SELECT name FROM item", 0),
        ("SELECT id FROM item", "SELECT name FROM item; SELECT id FROM item;", 1),
        ("SELECT id FROM item", "SELECT {name, id} FROM item", 1),
        ("SELECT id, name FROM item", "SELECT {name, id} FROM item", 1),
        ("SELECT price FROM item", "SELECT {name, id} FROM item", 0),
        (
            "SELECT i.id, sum(amount) FROM item i JOIN sale ON item = i.id GROUP BY i.id",
            "SELECT {i.name,i.id}, sum(s.amount) FROM item i JOIN sale s ON s.item = i.id GROUP BY {}",
            1,
        ),
    ],
)
def test_sql_result_compares_what_is_found(answer: str, target: str, value: float) -> None:
    assert sql_result(answer, wanting(target)).value == value


@pytest.mark.parametrize(
    "answer",
    [
        "DELETE FROM item",
        "INSERT INTO item VALUES (9, 'x', 1)",
        "UPDATE item SET price = 0",
        "DROP TABLE item",
        "CREATE TABLE mine (a)",
        "CREATE TEMP TABLE mine AS SELECT * FROM item",
        "ATTACH 'stolen.db' AS stolen",
        "VACUUM INTO 'stolen.db'",
        "PRAGMA table_info(item)",
        "PRAGMA query_only = 0",
        "SELECT * FROM pragma_table_info('item')",
        "SELECT load_extension('evil')",
        "BEGIN",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "SELECT zeroblob(1000000000)",
        "SELECT printf('%.*c', 900000000, 'x')",
        "SELECT format('%-0900000000d', 1)",
        "SELECT name FROM item WHERE " + "(" * 5000 + "1" + ")" * 5000,
    ],
)
def test_query_that_does_more_than_read_a_little_is_wrong(answer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sql, "MAX_STEPS", 2_000_000)
    found = sql_result(answer, wanting("SELECT name FROM item"))
    assert found.value == 0
    assert "cannot be run" in found.explanation
    assert not list(tmp_path.iterdir())


def test_answer_cannot_change_what_the_target_finds() -> None:
    with build(SHOP) as database:
        for statement in ("DELETE FROM item", "UPDATE item SET name = 'x'"):
            with pytest.raises(sql.QueryError, match="not authorized"):
                sql.run(database, statement)
        assert len(sql.run(database, "SELECT * FROM item")) == 4
    database.close()


def test_query_stopped_by_the_clock_is_unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "MAX_SECONDS", 0.01)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    found = sql_result(endless, wanting("SELECT 1"))
    assert found.value is None
    assert "still running" in found.explanation


@pytest.mark.parametrize(
    ("target", "spec", "explanation"),
    [
        ("SELECT name FROM item WHERE price > 1000", SHOP, "finds no row"),
        ("SELECT colour FROM item", SHOP, "no such column"),
        (" ; -- none", SHOP, "holds no query"),
        ("SELECT 1", {"x": 1}, "needs spec"),
        ("SELECT 1", {"schema": "CREATE TABLE a (b)", "rows": [1]}, "schema is a list"),
        ("SELECT 1", {"schema": ["CREATE NONSENSE"]}, "cannot be made"),
        ("SELECT 1", {"schema": ["CREATE TABLE a (b)"], "rows": {"a": [[1, 2]]}}, "cannot be made"),
        ("SELECT 1", {"script": "ATTACH 'x.db' AS x"}, "cannot be made"),
        ("SELECT {a, b, c, d, e, f} FROM t", SHOP, "more than 500 queries"),
    ],
)
def test_sample_that_cannot_judge_is_unscored(target: str, spec: dict[str, Any], explanation: str) -> None:
    found = sql_result("SELECT name FROM item", wanting(target, **spec))
    assert found.value is None
    assert explanation in found.explanation


def test_database_can_be_a_script() -> None:
    assert sql_result("SELECT b FROM a", wanting("SELECT 5", script="CREATE TABLE a (b); INSERT INTO a VALUES (5);")).value == 1


def test_variants_spell_out_a_choice_of_columns() -> None:
    assert list(variants("SELECT {a, f(b, c)}, ';' FROM t GROUP BY {}; -- end\n")) == [
        "SELECT a, ';' FROM t GROUP BY a",
        "SELECT f(b, c), ';' FROM t GROUP BY f(b, c)",
        "SELECT a, f(b, c), ';' FROM t GROUP BY a, f(b, c)",
        "SELECT f(b, c), a, ';' FROM t GROUP BY f(b, c), a",
    ]


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER  BY a", True),
        ("SELECT a FROM (SELECT a FROM t order by a)", False),
        ("SELECT ' order by ' FROM t -- order by a", False),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False),
    ],
)
def test_only_the_query_itself_orders(query: str, ordered: bool) -> None:
    assert is_ordered(query) == ordered


def test_query_of_an_unclosed_fence_is_read() -> None:
    assert query_of("```sql\nSELECT 1") == "SELECT 1"


@settings(deadline=None, max_examples=60)
@given(st.text() | st.sampled_from(["SELECT ", "(", "'", "*", ";", "name", " FROM item", "--", "{}"]).map(lambda part: f"SELECT {part}"))
def test_sql_result_survives_any_answer(answer: str) -> None:
    assert sql_result(answer, wanting("SELECT name FROM item")).value in (0, 1)


def test_gold_queries_of_sql_eval_are_right_and_broken_ones_wrong(shared_data: Path) -> None:
    """On tables that we fill, so that what a query finds tells it from others; questions that find nothing there are unscored."""
    folder = shared_data / "sql_eval"
    specs = {path.stem: _filled(json.loads(path.read_text())["table_metadata"]) for path in (folder / "schemas").glob("*.json")}
    with (folder / "questions_gen_sqlite.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["db_name"] in specs]
    assert len(rows) == 190
    values: list[float | None] = []
    for row in rows[::4]:
        sample = wanting(row["query"], **specs[row["db_name"]])
        gold = next(variants(row["query"]))
        found = sql_result(f"```sql\n{gold};\n```", sample)
        values.append(found.value)
        assert found.value in (1, None), found.explanation
        if found.value == 1:
            assert sql_result(gold.replace("SELECT", "SELEC", 1), sample).value == 0
            assert sql_result(f"SELECT count(*) + 12345 FROM ({gold})", sample).value == 0
    assert values.count(1) >= 12


def _filled(tables: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
    """Twelve rows a table: keys count up, so that joins find something."""
    kinds = {"bigint": "INTEGER", "integer": "INTEGER", "double precision": "REAL", "real": "REAL"}
    schema, rows = [], {}
    for table, columns in tables.items():
        fields = ", ".join(f'"{column["column_name"]}" {kinds.get(column["data_type"], "TEXT")}' for column in columns)
        schema.append(f'CREATE TABLE "{table}" ({fields})')
        rows[table] = [[_value(column, number) for column in columns] for number in range(1, 13)]
    return {"schema": schema, "rows": rows}


def _value(column: dict[str, str], number: int) -> Any:
    if column["data_type"] in ("bigint", "integer"):
        return 2009 + number if "year" in column["column_name"] else number
    if column["data_type"] in ("double precision", "real"):
        return number * 1.5
    return f"{column['column_name']} {number}"
