"""What only a server can do to us: go away in the middle, let several write at once, and be another database than the tests' usual one."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, text

from lorimer.database import begin_write, open_database
from lorimer.errors import ConfigError, LorimerError, StorageError
from lorimer.evaluation.gates import GateResult
from lorimer.registry.audit import read_audit
from lorimer.registry.promotion import promote
from lorimer.registry.records import NewVersion
from lorimer.registry.registry import Registry
from lorimer.registry.schema import audit, metadata
from lorimer.serving.grants import Grant
from lorimer.serving.keys import Keys
from servers import PostgreSQL

MakeNew = Callable[..., NewVersion]
MakeGate = Callable[..., GateResult]
ENTRY = {"at": "", "actor": "", "action": "register", "subject": "", "reason": "", "details": {}}


def test_migrations_make_the_tables_that_queries_name(postgresql_url: str) -> None:
    engine = open_database(postgresql_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert [difference for difference in compare_metadata(context, metadata) if difference[0] != "remove_table"] == []
    engine.dispose()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_driver_is_psycopg_however_the_url_is_spelled(postgresql_url: str, scheme: str) -> None:
    engine = open_database(postgresql_url.replace("postgresql", scheme, 1))
    assert engine.dialect.driver == "psycopg"
    engine.dispose()


def test_connection_lost_in_a_write_loses_all_of_it_and_nothing_else(postgresql_server: PostgreSQL, postgresql_url: str) -> None:
    engine = open_database(postgresql_url)

    def write(*, lose: bool) -> None:
        with begin_write(engine) as connection:
            connection.execute(insert(audit).values(ENTRY))
            if lose:
                postgresql_server.disconnect_all(postgresql_url)
            connection.execute(insert(audit).values(ENTRY))

    with pytest.raises(StorageError, match=r"went away in the middle.*whole or not at all.*try again"):
        write(lose=True)
    assert read_audit(engine) == ()
    write(lose=False)
    assert len(read_audit(engine)) == 2
    engine.dispose()


def test_connection_lost_between_two_questions_is_made_anew(postgresql_server: PostgreSQL, postgresql_url: str, make_new: MakeNew) -> None:
    registry = Registry(open_database(postgresql_url))
    registry.register(make_new())
    postgresql_server.disconnect_all(postgresql_url)
    assert registry.resolve("helpdesk").id == "helpdesk@v1"
    registry.engine.dispose()


def test_server_that_is_away_is_one_sentence_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot be reached") as caught:
        open_database(f"postgresql://ada:secret@/lorimer?host={tmp_path}")
    assert "secret" not in str(caught.value)


def test_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    plain = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.partition(".")[0] == "psycopg":
            raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")
        return plain(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'lorimer\[postgresql\]'"):
        open_database("postgresql://host/name")


def migrate(url: str, barrier: "multiprocessing.synchronize.Barrier") -> None:
    barrier.wait()
    open_database(url).dispose()


def test_tables_are_made_once_by_many_processes(postgresql_server: PostgreSQL) -> None:
    url, fork = postgresql_server.new_database(empty=True), multiprocessing.get_context("fork")
    barrier = fork.Barrier(3)
    processes = [fork.Process(target=migrate, args=(url, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 3


def do_everything(new: NewVersion, gates: list[GateResult], barrier: "multiprocessing.synchronize.Barrier") -> None:
    """Register, judge, promote and make keys, at the same moment as another."""
    registry = Registry(open_database())
    keys = Keys(registry.engine)
    barrier.wait()
    for number, gate in enumerate(gates):
        version = registry.register(new)
        registry.record_gate(gate, version)
        promote(registry, version, alias="canary" if number % 2 else "champion")
        keys.create(f"key{number}", tenant=f"tenant{number}", grant=Grant())


def test_two_processes_doing_the_same_at_once_lose_nothing(registry: Registry, make_new: MakeNew, make_gate: MakeGate) -> None:
    """In each database: one version, each gate once, both aliases, a tenant for two keys each time; every deed in the audit once."""
    template = registry.register(make_new("template"))
    gates = [make_gate(template) for _ in range(5)]
    registry.engine.dispose()
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(2)
    processes = [fork.Process(target=do_everything, args=(make_new(), gates, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [version.version for version in registry.history("helpdesk")] == [1]
    assert {alias.alias for alias in registry.aliases("helpdesk")} == {"champion", "canary"}
    assert len(Keys(registry.engine).list_keys()) == 10
    actions = [entry.action for entry in read_audit(registry.engine)]
    wanted = {"register": 2, "record_gate": 5, "promote": 2, "create_key": 10}
    assert {action: actions.count(action) for action in wanted} == wanted


def test_errors_that_are_no_lost_connection_stay_what_they_are(postgresql_url: str) -> None:
    engine = open_database(postgresql_url)
    with pytest.raises(Exception, match="no_such_table") as caught, engine.connect() as connection:
        connection.execute(text("SELECT * FROM no_such_table"))
    assert not isinstance(caught.value, LorimerError)
    engine.dispose()
