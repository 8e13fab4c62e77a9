"""Crashes between any two steps, a full disk, a lost connection, two operators at once: the registry is as before or as after."""

import contextlib
import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import DatabaseError

from lorimer import storage
from lorimer.database import open_database
from lorimer.errors import AccessError, AwaitingApprovalError, LorimerError, NotFoundError, StorageError, UsageError
from lorimer.evaluation.gates import GateResult
from lorimer.registry.approvals import list_requests, protect
from lorimer.registry.audit import read_audit
from lorimer.registry.audit_check import check_audit
from lorimer.registry.promotion import approve, history, promote, rollback
from lorimer.registry.records import NewVersion
from lorimer.registry.registry import Registry

MakeNew = Callable[..., NewVersion]
MakeGate = Callable[..., GateResult]
Deed = Callable[[Registry], object]
CRASHED = 9
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def ready(home: Path, make_new: MakeNew, make_gate: MakeGate) -> MakeNew:
    """A home with two versions past their gates: the first was champion, the second is; `guarded` is protected, and asked for."""
    registry = Registry(open_database())
    for weights in ("w1", "w2"):
        version = registry.register(make_new(weights=weights))
        registry.record_gate(make_gate(version), version)
        promote(registry, version, actor="ada")
    protect(registry, "guarded", actor="root")
    with pytest.raises(AwaitingApprovalError):
        promote(registry, version, alias="guarded", actor="ada")
    registry.engine.dispose()
    return make_new


def deeds(make_new: MakeNew) -> dict[str, Deed]:
    new = make_new(weights="w3")
    return {
        "register": lambda registry: registry.register(new, actor="ada"),
        "promote": lambda registry: promote(registry, registry.resolve("helpdesk@v1"), alias="challenger", actor="ada"),
        "ask": lambda registry: _ask(registry),
        "approve": lambda registry: [approve(registry, one.id, actor="bob") for one in list_requests(registry, waiting_only=True)],
        "rollback": lambda registry: (
            rollback(registry, "helpdesk", to="v1", actor="ada") if registry.resolve("helpdesk").version == 2 else None
        ),
    }


def _ask(registry: Registry) -> None:
    with contextlib.suppress(AwaitingApprovalError):
        promote(registry, registry.resolve("helpdesk@v1"), alias="guarded", actor="ada")


def count_steps(step: Callable[[], None]) -> None:
    """Call `step` before everything that changes what is on disk."""

    def before(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().startswith(("INSERT", "UPDATE", "DELETE")):
            step()

    event.listen(Engine, "before_cursor_execute", before)
    event.listen(Engine, "commit", lambda _connection: step())
    for module, name in ((os, "replace"), (os, "rename"), (shutil, "copy")):
        real = getattr(module, name)

        def stepped(*given: Any, real: Callable[..., Any] = real) -> Any:
            step()
            return real(*given)

        setattr(module, name, stepped)


def crash_at(number: int, deed: Deed) -> None:
    """In a process of its own: do it, and end without a word before the step of that number."""
    left = iter(range(number))
    count_steps(lambda: os._exit(CRASHED) if next(left, None) is None else None)
    deed(Registry(open_database()))
    os._exit(0)


def check(registry: Registry) -> None:
    """What must be so whatever happened."""
    assert check_audit(registry.engine).problems == ()
    for version in registry.list_versions():
        registry.verify_files(version)
    entries = read_audit(registry.engine)
    assert [entry.subject for entry in entries if entry.action == "register"] == [version.id for version in registry.history("helpdesk")][
        ::-1
    ]
    for alias in registry.aliases():
        moves = history(registry, alias.adapter_name, alias.alias)
        told = [entry for entry in entries if entry.subject == alias.id and entry.action in ("promote", "rollback")]
        assert moves[-1].version == alias.version == told[-1].details["version"]
        assert [(move.action, move.version) for move in moves] == [(entry.action, entry.details["version"]) for entry in told]
    approved = sum(request.state == "approved" for request in list_requests(registry))
    assert approved == sum(entry.action == "approve" for entry in entries)
    assert approved == sum(alias.alias == "guarded" for alias in registry.aliases())


@pytest.mark.parametrize("name", ["register", "promote", "ask", "approve", "rollback"])
def test_a_crash_between_any_two_steps(ready: MakeNew, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    deed, number, code = deeds(ready)[name], 0, CRASHED
    while code == CRASHED:
        copy = tmp_path / f"home{number}"
        shutil.copytree(home, copy)
        monkeypatch.setenv("LORIMER_HOME", str(copy))
        process = FORK.Process(target=crash_at, args=(number, deed))
        process.start()
        process.join(timeout=60)
        code, number = process.exitcode, number + 1
        registry = Registry(open_database())
        check(registry)
        deed(registry)  # once more, to its end
        check(registry)
        registry.engine.dispose()
        shutil.rmtree(copy)
    assert code == 0
    assert number > 5


@pytest.mark.parametrize("name", ["register", "promote", "approve", "rollback"])
def test_a_full_disk_under_the_database(ready: MakeNew, name: str) -> None:
    registry, deed = Registry(open_database()), deeds(ready)[name]
    before = read_audit(registry.engine)

    def fill(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO audit "):
            cursor.execute("PRAGMA max_page_count = 1")
            cursor.execute(f"INSERT INTO subjects VALUES ('{'x' * 20_000}', '{0:032}', '')")

    event.listen(registry.engine, "before_cursor_execute", fill)
    with pytest.raises(StorageError, match=r"the disk is full while writing .*lorimer\.db"):
        deed(registry)
    event.remove(registry.engine, "before_cursor_execute", fill)
    assert read_audit(registry.engine) == before
    registry.engine.dispose()
    again = Registry(open_database())
    check(again)
    deed(again)
    check(again)


def test_a_full_disk_under_the_files(ready: MakeNew, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    registry = Registry(open_database())
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", full)
        with pytest.raises(StorageError, match="the disk is full while writing"):
            registry.register(ready(weights="w3"))
    check(registry)
    assert len(list((home / "adapters").iterdir())) == 2
    assert registry.register(ready(weights="w3")).id == "helpdesk@v3"


@pytest.mark.parametrize("name", ["register", "promote", "approve", "rollback"])
def test_a_lost_connection(ready: MakeNew, name: str) -> None:
    registry, deed = Registry(open_database()), deeds(ready)[name]

    def lose(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO audit "):
            connection.connection.dbapi_connection.close()

    event.listen(registry.engine, "before_cursor_execute", lose)
    before = read_audit(registry.engine)
    with pytest.raises((DatabaseError, LorimerError)):
        deed(registry)
    event.remove(registry.engine, "before_cursor_execute", lose)
    assert read_audit(registry.engine) == before
    check(registry)
    deed(registry)
    check(registry)


def operate(actor: str, barrier: "multiprocessing.synchronize.Barrier") -> None:
    """Promote, roll back, approve, as fast as it goes; what another was faster at is refused, and that is all right."""
    registry = Registry(open_database())
    barrier.wait()
    for _ in range(6):
        for deed in (
            lambda: promote(registry, registry.resolve("helpdesk@v1"), actor=actor),
            lambda: promote(registry, registry.resolve("helpdesk@v2"), actor=actor),
            lambda: rollback(registry, "helpdesk", actor=actor),
            lambda: [approve(registry, one.id, actor=actor) for one in list_requests(registry, waiting_only=True)],
        ):
            with contextlib.suppress(AccessError, UsageError, NotFoundError):
                deed()


def test_two_operators_at_once(ready: MakeNew) -> None:
    barrier = FORK.Barrier(2)
    processes = [FORK.Process(target=operate, args=(actor, barrier)) for actor in ("bob", "carol")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    registry = Registry(open_database())
    check(registry)
    assert sum(entry.action == "approve" for entry in read_audit(registry.engine)) == 1
