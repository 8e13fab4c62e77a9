"""Whether the audit chain is whole: any edit, deletion, insertion, reordering, and rows cut off its end.

What it cannot find: whoever holds the signing key can write another chain; and a database that was put back to an earlier state whole, head
and all, looks right, unless this home has seen a later head (it notes them outside the database), or one that was kept elsewhere is given.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Engine, select

from lorimer.errors import IntegrityError
from lorimer.registry.audit import FIRST, Head, digest_of_entry, memory_path, read_head, remember, remembered
from lorimer.registry.schema import audit
from lorimer.registry.signing import PublicKey
from lorimer.registry.trust import trusted

MAX_PROBLEMS = 20  # told of one chain; one edit makes one, a rewritten table thousands
ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What was found."""

    num_entries: int
    head: Head | None
    """To be kept elsewhere: given back to a later check, nothing before it can be taken away."""
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON value that `--json` prints."""
        return {**asdict(self), "is_whole": not self.problems}

    def require_whole(self) -> None:
        """Go on only with a whole chain.

        Raises:
            IntegrityError: if there are problems, with all of them.
        """
        if self.problems:
            raise IntegrityError(f"the audit chain is broken: {'; '.join(self.problems)}")


def check_audit(engine: Engine, *, known: Head | None = None) -> AuditReport:
    """Read the whole chain against itself, its signed head, what this home has seen of it, and a head kept elsewhere (`known`)."""
    witnesses = {"this home has seen it": remembered(engine), "it was kept elsewhere": known}
    heads = {why: head for why, head in witnesses.items() if head is not None}
    with _one_moment(engine) as connection:
        head, walk = read_head(connection), _Walk(seen={one.sequence for one in heads.values()})
        problems = [*walk.run(connection), *_head_problems(head, walk, trusted(engine))]
        for why, one in heads.items():
            if walk.digests.get(one.sequence) != one.digest:
                file = f"; noted in {memory_path(engine)!r}, to be removed if the database was replaced on purpose" if why[0] == "t" else ""
                found = "there is no such entry" if one.sequence not in walk.digests else "another is there"
                problems.append(f"entry {one.sequence} was {one.digest[:12] or 'unreadable'} when {why}, {found}{file}")
        is_unsigned = head is not None and not head.key_id
        notes = ("the chain was computed when the database was upgraded: nobody has signed it until something new is recorded",)
        if head is not None and not problems:
            remember(connection, head)
    shown = problems[:MAX_PROBLEMS] + ([f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else [])
    return AuditReport(num_entries=walk.num_entries, head=head, problems=tuple(shown), notes=notes if is_unsigned else ())


@contextmanager
def _one_moment(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state of the database: nothing is added between the head and the rows."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


class _Walk:
    """Once through the entries, in order."""

    def __init__(self, seen: set[int]) -> None:
        self.seen = seen
        self.num_entries, self.last = 0, Head(sequence=0, digest=FIRST)
        self.digests: dict[int, str] = {}
        """Of the entries that somebody has seen."""

    def run(self, connection: Connection) -> Iterator[str]:
        """What is wrong, entry by entry."""
        rows = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(select(audit).order_by(audit.c.id)).mappings()
        for row in rows:
            self.num_entries += 1
            yield from self._problems(dict(row))
            self.last = Head(sequence=row["id"], digest=row["digest"])
            if row["id"] in self.seen:
                self.digests[row["id"]] = row["digest"]

    def _problems(self, row: Mapping[str, Any]) -> Iterator[str]:
        number, before = row["id"], self.last.sequence
        try:
            digest = digest_of_entry(row)
        except (ValueError, TypeError):
            digest = ""
        if digest != row["digest"]:
            yield f"entry {number} was changed: its content has digest {digest[:12] or 'none'}, recorded was {row['digest'][:12]}"
        if row["previous"] != self.last.digest:
            after = f"entry {before}" if before else "the beginning"
            yield f"entry {number} does not follow {after}: what stood between them was deleted, or one of them was inserted or moved"


def _head_problems(head: Head | None, walk: _Walk, keys: Mapping[str, PublicKey]) -> Iterator[str]:
    last = walk.last
    if head is None:
        if walk.num_entries:
            yield "the signed head is gone"
        return
    if head.key_id or head.signature:
        key = keys.get(head.key_id)
        if key is None:
            yield f"the head is signed with key {head.key_id[:16]!r}, which is not trusted here (`lorimer trust list`)"
        elif not head.is_signed_by(key):
            yield "the head's signature is wrong: it was changed"
    if head.sequence > last.sequence:
        yield f"entries {last.sequence + 1} to {head.sequence} are gone from the end"
    elif head.sequence < last.sequence:
        yield f"entries {head.sequence + 1} to {last.sequence} were added past the signed head"
    elif head.digest != last.digest:
        yield f"the signed head is {head.digest[:12]}, the last entry {last.digest[:12]}"
