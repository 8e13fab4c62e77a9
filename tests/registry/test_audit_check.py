"""The chain: whatever is done to it behind the program's back is found, and what is not, is said."""

import multiprocessing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, insert, text

from lorimer.database import begin_write, open_database
from lorimer.errors import IntegrityError
from lorimer.registry.audit import Head, digest_of_entry, memory_path, read_audit, read_head, record, remembered
from lorimer.registry.audit_check import _head_problems, _Walk, check_audit
from lorimer.registry.schema import audit
from lorimer.registry.signing import open_signer

NUM = 8


@pytest.fixture
def engine() -> Engine:
    """A database with some entries."""
    engine = open_database()
    add(engine, NUM)
    return engine


def add(engine: Engine, num: int, actor: str = "ada") -> None:
    for number in range(num):
        with begin_write(engine) as connection:
            record(
                connection, actor=actor, action="promote", subject=f"a@v{number}", reason="ü", details={"digest": "d" * 64, "scale": 0.1}
            )


def behind(engine: Engine, *statements: str) -> None:
    """What somebody does who may write the file."""
    with begin_write(engine) as connection:
        for name in ("update", "delete", "replace"):
            connection.execute(text(f"DROP TRIGGER IF EXISTS audit_no_{name}"))
        for statement in statements:
            connection.execute(text(statement))


def test_entries_are_chained_and_the_newest_is_signed(engine: Engine) -> None:
    entries = read_audit(engine)
    assert [entry.id for entry in entries] == list(range(1, NUM + 1))
    assert entries[0].previous == "0" * 64
    assert [entry.previous for entry in entries[1:]] == [entry.digest for entry in entries[:-1]]
    report = check_audit(engine)
    assert (report.num_entries, report.problems, report.notes) == (NUM, (), ())
    assert report.head is not None
    assert (report.head.sequence, report.head.digest) == (NUM, entries[-1].digest)


def test_an_empty_chain_is_whole() -> None:
    assert check_audit(open_database()).problems == ()


FIELDS = {"at": "'x'", "actor": "'eve'", "action": "'approve'", "subject": "'b@v1'", "reason": "'y'", "details": "'{}'", "digest": "'0'"}


@pytest.mark.parametrize("field", [*FIELDS, "previous"])
@pytest.mark.parametrize("number", [1, 4, NUM])
def test_every_edit_is_found(engine: Engine, field: str, number: int) -> None:
    behind(engine, f"UPDATE audit SET {field} = {FIELDS.get(field, '0')} WHERE id = {number}")
    with pytest.raises(IntegrityError, match=f"entry {number}") as caught:
        check_audit(engine).require_whole()
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("number", [1, 4])
def test_an_edit_with_its_digest_computed_anew_is_found(engine: Engine, number: int) -> None:
    entry = next(entry for entry in read_audit(engine) if entry.id == number).to_json()
    digest = digest_of_entry({**entry, "actor": "eve"})
    behind(engine, f"UPDATE audit SET actor = 'eve', digest = '{digest}' WHERE id = {number}")
    assert check_audit(engine).problems == (
        f"entry {number + 1} does not follow entry {number}: what stood between them was deleted, or one of them was inserted or moved",
    )


def test_an_edit_of_the_last_with_its_digest_is_found_by_the_signed_head(engine: Engine) -> None:
    entry = read_audit(engine)[-1].to_json()
    digest = digest_of_entry({**entry, "actor": "eve"})
    behind(engine, f"UPDATE audit SET actor = 'eve', digest = '{digest}' WHERE id = {NUM}")
    assert "the signed head is" in check_audit(engine).problems[0]
    behind(engine, f"UPDATE audit_heads SET digest = '{digest}'")
    assert check_audit(engine).problems == ("the head's signature is wrong: it was changed",)


@pytest.mark.parametrize("number", [1, 2, NUM - 1])
def test_deletion_is_found(engine: Engine, number: int) -> None:
    behind(engine, f"DELETE FROM audit WHERE id = {number}")
    assert any(f"entry {number + 1} does not follow" in problem for problem in check_audit(engine).problems)


def test_reordering_is_found(engine: Engine) -> None:
    behind(
        engine, "UPDATE audit SET id = 100 WHERE id = 3", "UPDATE audit SET id = 3 WHERE id = 4", "UPDATE audit SET id = 4 WHERE id = 100"
    )
    assert len(check_audit(engine).problems) >= 2


def test_an_entry_put_in_is_found(engine: Engine) -> None:
    copy = "INSERT INTO audit SELECT {}, at, actor, action, subject, reason, details, {}, digest FROM audit WHERE id = 7"
    behind(engine, f"UPDATE audit SET id = {NUM + 1} WHERE id = {NUM}", copy.format(NUM, "previous"))
    assert check_audit(engine).problems
    behind(engine, copy.format(NUM + 5, "digest"))
    assert any("past the signed head" in problem for problem in check_audit(engine).problems)


@pytest.mark.parametrize("kept", [0, 1, NUM - 1])
def test_a_tail_cut_off_is_found_for_ever(engine: Engine, kept: int) -> None:
    behind(engine, f"DELETE FROM audit WHERE id > {kept}")
    assert f"entries {kept + 1} to {NUM} are gone from the end" in check_audit(engine).problems
    add(engine, 3)  # what is recorded later follows what was signed, not what is left
    assert any(f"entry {NUM + 1} does not follow" in problem for problem in check_audit(engine).problems)


def test_a_tail_cut_off_with_its_head_is_found_by_what_this_home_has_seen(engine: Engine) -> None:
    assert check_audit(engine).problems == ()  # this notes the head
    behind(engine, "DELETE FROM audit WHERE id > 4", "DELETE FROM audit_heads")
    assert any(f"entry {NUM} was" in problem and memory_path(engine) in problem for problem in check_audit(engine).problems)
    add(engine, 1)
    assert any("when this home has seen it" in problem for problem in check_audit(engine).problems)
    known = remembered(engine)
    assert known is not None
    assert known.sequence == NUM  # never overwritten by a chain that does not hold it


def test_a_whole_chain_put_back_is_found_by_a_head_kept_elsewhere(engine: Engine) -> None:
    head = check_audit(engine).head
    assert head is not None
    add(engine, 2)
    assert check_audit(engine, known=head).problems == ()
    later = Head(sequence=NUM + 3, digest="e" * 64)
    assert "when it was kept elsewhere, there is no such entry" in check_audit(engine, known=later).problems[0]
    other = Head(sequence=head.sequence, digest="e" * 64)
    assert "another is there" in check_audit(engine, known=other).problems[0]


def test_a_head_signed_by_a_stranger_is_found(engine: Engine) -> None:
    behind(engine, f"UPDATE audit_heads SET key_id = '{'e' * 64}'")
    assert "which is not trusted here" in check_audit(engine).problems[0]
    behind(engine, "DELETE FROM audit_heads")
    assert check_audit(engine).problems[0] == "the signed head is gone"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_other_order_or_choice_of_rows_is_found(engine: Engine, data: st.DataObject) -> None:
    entries = read_audit(engine)
    chosen = data.draw(st.lists(st.sampled_from(range(NUM)), max_size=NUM + 2))
    if chosen == list(range(NUM)):
        return
    with engine.connect() as connection:
        for name in ("update", "delete", "replace"):
            connection.execute(text(f"DROP TRIGGER audit_no_{name}"))
        connection.execute(text("DELETE FROM audit"))
        for number, at in enumerate(chosen, start=1):
            connection.execute(insert(audit).values({**entries[at].to_json(), "id": number}))
        problems = check_rows(connection)
        connection.rollback()
    assert problems


def check_rows(connection: Connection) -> list[str]:
    """As `check_audit`, in a transaction that is not kept."""
    key = open_signer().public
    walk = _Walk(seen=set())
    return [*walk.run(connection), *_head_problems(read_head(connection), walk, {key.id: key})]


def add_many(barrier: "multiprocessing.synchronize.Barrier", actor: str) -> None:
    engine = open_database()
    barrier.wait()
    add(engine, 15, actor)


def test_processes_that_record_at_once_keep_one_chain() -> None:
    open_database().dispose()
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(4)
    processes = [fork.Process(target=add_many, args=(barrier, f"actor{n}")) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    report = check_audit(open_database())
    assert (report.num_entries, report.problems) == (60, ())
