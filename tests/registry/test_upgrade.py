"""From the schema before there was a chain: old entries are chained, aliases keep their history, old adapters can be signed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

from lorimer import database
from lorimer.database import begin_write, open_database
from lorimer.errors import IntegrityError
from lorimer.registry.audit import read_audit
from lorimer.registry.audit_check import check_audit
from lorimer.registry.promotion import held, history, rollback
from lorimer.registry.records import NewVersion
from lorimer.registry.registry import Registry, digest_of_folder, folder_of
from lorimer.registry.sealing import Seals

AUDIT = (
    "INSERT INTO audit (at, actor, action, subject, reason, details) "
    "VALUES ('2026-11-0{n}', 'ädä', '{action}', '{subject}', 'why', '{details}')"
)
VERSION = (
    "INSERT INTO adapter_versions (name, version, digest, base_name, base_digest, dataset_name, dataset_digest, run_id, rank, alpha, "
    "num_parameters, num_bytes, path, template_digest, created_at, created_by) "
    "VALUES ('helpdesk', {n}, '{digest}', 'b', 'b', 'd', 'd', 'r', 16, 32.0, 1, 1, '{path}', 't', '2026-11-01T00:00:00+00:00', 'ada')"
)


@pytest.fixture
def old(home: Path, make_new: Callable[..., NewVersion]) -> Path:
    """A database of revision 0003 with two versions, the second of which is champion after the first."""
    engine = database._create_engine(database._parse_url(f"sqlite:///{home / 'lorimer.db'}"))
    config = Config()
    config.set_main_option("script_location", "lorimer:migrations")
    with begin_write(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
    for number in (1, 2):
        _add_version(engine, make_new(weights=f"w{number}").source, number)
    engine.dispose()
    return home


def _add_version(engine: Engine, source: Path, number: int) -> None:
    digest = digest_of_folder(source)
    folder_of(digest).parent.mkdir(exist_ok=True)
    source.rename(folder_of(digest))
    details = f'{{"digest": "{digest}", "version": {number}, "version_before": {number - 1 or "null"}, "scale": 0.1}}'
    with begin_write(engine) as connection:
        connection.execute(text(VERSION.format(n=number, digest=digest, path=f"adapters/{digest[:16]}")))
        for action, subject in (("register", f"helpdesk@v{number}"), ("promote", "helpdesk@champion")):
            connection.exec_driver_sql(AUDIT.format(n=number, action=action, subject=subject, details=details))
        connection.execute(text("DELETE FROM aliases"))
        connection.execute(text(f"INSERT INTO aliases VALUES ('helpdesk', 'champion', {number}, '2026-11-0{number}', 'ada')"))


def test_old_entries_are_chained_and_stay_append_only(old: Path) -> None:
    engine = open_database()
    report = check_audit(engine)
    assert (report.num_entries, report.problems) == (4, ())
    assert "nobody has signed it" in report.notes[0]
    with pytest.raises(Exception, match="append-only"), begin_write(engine) as connection:
        connection.execute(text("UPDATE audit SET actor = 'eve'"))
    registry = Registry(engine)
    rollback(registry, "helpdesk", actor="bob")
    report = check_audit(engine)
    assert (report.problems, report.notes) == ((), ())
    assert [entry.action for entry in read_audit(engine)] == ["register", "promote"] * 2 + ["rollback"]


def test_aliases_keep_their_history(old: Path) -> None:
    registry = Registry(open_database())
    moves = history(registry, "helpdesk", "champion")
    assert [(move.action, move.version, move.version_before, move.actor) for move in moves] == [
        ("promote", 1, None, "ädä"),
        ("promote", 2, 1, "ädä"),
    ]
    assert held(moves) == [1, 2]
    assert rollback(registry, "helpdesk")[1].id == "helpdesk@v1"


def test_old_adapters_are_verified_by_their_digest_and_can_be_signed(old: Path) -> None:
    registry = Registry(open_database())
    version = registry.resolve("helpdesk")
    registry.verify_files(version)
    Seals(registry.engine).renew(version.digest, version.path)
    (version.path / "extra").write_text("")
    with pytest.raises(IntegrityError, match="extra was not there"):
        registry.verify_files(version)
