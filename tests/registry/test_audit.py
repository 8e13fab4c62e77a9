"""The audit table: every deed in it, none of it changed."""

import getpass
from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from lorimer.database import begin_write
from lorimer.registry.audit import current_actor, read_audit, record
from lorimer.registry.records import NewVersion
from lorimer.registry.registry import Registry

OWN_WAYS = {
    "sqlite": "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE id = 1",
    "postgresql": "TRUNCATE audit",
}
NO_ROOM = {
    "sqlite": ("CREATE TRIGGER full_disk BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no room'); END",),
    "postgresql": (
        "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no room'; END $$",
        "CREATE TRIGGER full_disk BEFORE INSERT ON audit EXECUTE FUNCTION no_room()",
    ),
}


def test_audit_has_who_what_when_and_digests(registry: Registry, make_new: Callable[..., NewVersion]) -> None:
    version = registry.register(make_new(), actor="ada")
    (entry,) = read_audit(registry.engine)
    assert (entry.actor, entry.action, entry.subject) == ("ada", "register", "helpdesk@v1")
    lineage = {"digest": version.digest, "base_digest": "b" * 64, "dataset_digest": "d" * 64, "run_id": "run-1"}
    assert {name: entry.details[name] for name in lineage} == lineage
    assert set(entry.details) == {*lineage, "manifest_digest", "key_id"}
    assert entry.at.endswith("+00:00")


def test_audit_reads_one_subject(registry: Registry, make_new: Callable[..., NewVersion]) -> None:
    for name in ("a", "b"):
        registry.register(make_new(name))
    assert [entry.subject for entry in read_audit(registry.engine, "b@v1")] == ["b@v1"]
    assert [entry.id for entry in read_audit(registry.engine)] == [1, 2]


def test_audit_names_the_user_where_nobody_is_named(registry: Registry, make_new: Callable[..., NewVersion]) -> None:
    registry.register(make_new())
    assert read_audit(registry.engine)[0].actor == getpass.getuser()


def test_actor_of_a_service_without_a_user_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert current_actor() == "unknown"


@pytest.mark.parametrize(
    "statement", ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit", "DELETE FROM audit WHERE id = 1", "the database's own"]
)
def test_audit_refuses_every_change(registry: Registry, make_new: Callable[..., NewVersion], statement: str) -> None:
    registry.register(make_new(), actor="ada")
    before = read_audit(registry.engine)
    statement = OWN_WAYS[registry.engine.dialect.name] if statement == "the database's own" else statement
    with pytest.raises(DatabaseError, match="append-only"), begin_write(registry.engine) as connection:
        connection.execute(text(statement))
    assert read_audit(registry.engine) == before


def test_deed_and_record_happen_together_or_not_at_all(registry: Registry, make_new: Callable[..., NewVersion]) -> None:
    with begin_write(registry.engine) as connection:
        for statement in NO_ROOM[registry.engine.dialect.name]:
            connection.execute(text(statement))
    with pytest.raises(DatabaseError, match="no room"):
        registry.register(make_new())
    assert registry.list_versions() == ()


def test_record_is_part_of_the_open_transaction(registry: Registry) -> None:
    with registry.engine.connect() as connection:
        record(connection, actor=None, action="promote", subject="a@champion", details={})  # and never committed
    assert read_audit(registry.engine) == ()
