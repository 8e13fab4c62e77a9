"""Whom a row is about, without saying so: each person's own id stands in one table, beside the random key that rows carry.

Once the key is destroyed, nothing ties the rows' key to the person any more.
"""

import secrets
from collections.abc import Collection, Iterable
from datetime import UTC, datetime

from sqlalchemy import CHAR, Column, Connection, Engine, MetaData, String, Table, Text, delete, insert, select

from lorimer.database import begin_write
from lorimer.errors import LorimerError

KEY_BYTES = 16
AT_A_TIME = 500  # ids asked for in one statement: databases limit its parameters

metadata = MetaData()
subjects = Table(
    "subjects",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("key", CHAR(2 * KEY_BYTES), nullable=False, unique=True),
    Column("created_at", String(32), nullable=False),
)


def subject_keys(engine: Engine, ids: Iterable[str]) -> dict[str, str]:
    """The key of each subject, made at random the first time it is asked for; all in one transaction."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    with engine.connect() as connection:
        found = _find(connection, wanted)
    if missing := [subject for subject in wanted if subject not in found]:
        with begin_write(engine) as connection:
            if connection.dialect.name == "postgresql":  # two writers would make two keys for one subject
                connection.exec_driver_sql("LOCK TABLE subjects IN SHARE ROW EXCLUSIVE MODE")
            found |= _find(connection, missing)
            at = datetime.now(UTC).isoformat(timespec="seconds")
            new = {subject: secrets.token_hex(KEY_BYTES) for subject in missing if subject not in found}
            if new:
                connection.execute(insert(subjects), [{"subject": subject, "key": key, "created_at": at} for subject, key in new.items()])
            found |= new
    return found


def find_key(engine: Engine, subject: str) -> str | None:
    """The key of one subject, if it ever had one that is still there."""
    with engine.connect() as connection:
        return _find(connection, [subject]).get(subject)


def destroy_keys(connection: Connection, keys: Collection[str]) -> int:
    """Forget whose these keys were, in the caller's transaction; returns how many there were.

    Raises:
        LorimerError: if the database does not say.
    """
    num = connection.execute(delete(subjects).where(subjects.c.key.in_(keys))).rowcount
    if num < 0:
        raise LorimerError("the database does not say how many subject keys it has destroyed: update its driver")
    return int(num)


def _find(connection: Connection, wanted: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for at in range(0, len(wanted), AT_A_TIME):
        asked = select(subjects.c.subject, subjects.c.key).where(subjects.c.subject.in_(wanted[at : at + AT_A_TIME]))
        found.update((row.subject, row.key) for row in connection.execute(asked))
    return found
