"""What was erased and must not come back: keys of subjects, digests of datasets and adapters; nothing that leads to a person.

They are written when erasure begins, so that nothing new is made of what is going; they outlive restores (backup.py).
"""

from collections.abc import Iterable
from typing import Literal

from sqlalchemy import Connection, Engine, insert, select

from lorimer.errors import ErasedError
from lorimer.registry.audit import now
from lorimer.registry.schema import tombstones

Kind = Literal["subject", "dataset", "adapter"]


def bury(connection: Connection, kind: Kind, values: Iterable[str], *, erasure: str) -> None:
    """From here on these must not come back; those that are known stay as they are."""
    known = read_buried(connection, kind)
    rows = [{"kind": kind, "value": value, "erasure": erasure, "buried_at": now()} for value in sorted(set(values) - known.keys())]
    if rows:
        connection.execute(insert(tombstones), rows)


def read_buried(connection: Connection, kind: Kind) -> dict[str, str]:
    """All of a kind, with the erasure that took them."""
    query = select(tombstones.c.value, tombstones.c.erasure).where(tombstones.c.kind == kind)
    return {value: erasure for value, erasure in connection.execute(query)}


def list_buried(engine: Engine, kind: Kind) -> dict[str, str]:
    """`read_buried` in a transaction of its own."""
    with engine.connect() as connection:
        return read_buried(connection, kind)


def refuse_buried(connection: Connection, what: str, *, datasets: Iterable[str] = (), adapters: Iterable[str] = ()) -> None:
    """See that nothing is made of what was erased, by somebody who began before.

    Raises:
        ErasedError: if it would be.
    """
    wanted: dict[Kind, set[str]] = {"dataset": set(datasets) - {""}, "adapter": set(adapters)}
    for kind, values in wanted.items():
        if not values:
            continue
        query = select(tombstones.c.value, tombstones.c.erasure).where(tombstones.c.kind == kind, tombstones.c.value.in_(values))
        if found := connection.execute(query).first():
            raise ErasedError(
                f"{what} is refused: {kind} {found.value[:12]} held somebody's rows, which erasure {found.erasure} takes out; "
                "make it again from what is there now"
            )
