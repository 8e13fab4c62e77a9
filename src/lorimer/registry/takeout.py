"""Everything that holds a person's rows or learned from them, deleted, and seen to be gone: of a request, and again after a restore.

Datasets are replaced one by one: first the new one is there, then names stand for it, then the old one is deleted. The rows that are looked
for at the end are kept beside the work until they are found nowhere else; that file is the last to go.
"""

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from lorimer.config import home
from lorimer.data.example import Example, example_from_json
from lorimer.data.subjects import destroy_keys
from lorimer.database import begin_write
from lorimer.registry.absence import Absence, scrub_database, texts_of, verify_absence
from lorimer.registry.registry import Registry
from lorimer.registry.removal import (
    erased_rows,
    make_replacement,
    remove_adapter,
    remove_export,
    remove_folder,
    remove_paraphrases,
    remove_reports,
    remove_requests,
    remove_runs,
    repoint,
)
from lorimer.registry.scope import Scope, subjects_of
from lorimer.storage import read_jsonl, write_jsonl

Replaced = Callable[[str, str | None], None]
"""Told of each dataset and its replacement before the old one is deleted."""


@dataclass(slots=True, kw_only=True)
class Taken:
    """What was deleted, counted."""

    counts: dict[str, int] = field(default_factory=dict)
    not_removed: list[str] = field(default_factory=list)
    """Copies that could not be told for sure to be what was written there."""
    absence: Absence

    def to_json(self) -> dict[str, Any]:
        """For a receipt."""
        return {"removed": self.counts, "not_removed": self.not_removed, "search": self.absence.to_json()}


def work_folder(erasure: str) -> Path:
    """Where an erasure keeps what it needs until it is done; no backup has it."""
    return home() / "erasures" / erasure


def take_out(
    registry: Registry,
    scope: Scope,
    keys: Collection[str],
    *,
    erasure: str,
    on_replaced: Replaced,
    known: Mapping[str, str | None],
) -> Taken:
    """Delete all that a scope reaches, and search for what is left; `known` are datasets that were replaced before an interruption.

    Raises:
        IntegrityError: if words of the rows are still somewhere; it can be called again.
        StorageError: if something cannot be deleted.
    """
    folder, ids = work_folder(erasure), subjects_of(registry.engine, keys)
    datasets, adapters = {*scope.radius.datasets, *known}, scope.adapters
    _keep_rows(scope, folder)
    for held in scope.datasets:
        replacement = make_replacement(held, scope.records)
        on_replaced(held.digest, replacement)
        repoint(held, replacement)
    counts = {"request_lines": remove_requests(ids), "paraphrases": remove_paraphrases(scope.records)}
    counts["datasets"] = sum(remove_folder(held.folder) for held in scope.datasets)
    counts["adapters"] = sum(remove_adapter(digest) for digest in adapters)
    counts["reports"] = remove_reports(datasets, adapters)
    counts["runs"] = remove_runs(datasets, {version.run_id for version in scope.radius.versions if version.run_id})
    inside = [one for one in scope.radius.exports if not one.left_platform]
    gone = [remove_export(one) for one in inside]
    counts["exports"] = sum(gone)
    shutil.rmtree(home() / "merges", ignore_errors=True)
    with begin_write(registry.engine) as connection:
        counts["subject_keys"] = _destroy_keys(connection, keys)
    scrub_database(registry.engine)
    absence = verify_absence(registry.engine, texts_of(_kept_rows(folder)))
    shutil.rmtree(folder / "rows", ignore_errors=True)
    not_removed = [one.place for one, is_gone in zip(inside, gone, strict=True) if not is_gone]
    return Taken(counts=counts, not_removed=not_removed, absence=absence)


def _keep_rows(scope: Scope, folder: Path) -> None:
    for held in scope.datasets:
        write_jsonl(folder / "rows" / f"{held.folder.name}.jsonl", (row.to_json() for row in erased_rows(held, scope.records)))


def _kept_rows(folder: Path) -> Iterator[Example]:
    for path in sorted((folder / "rows").glob("*.jsonl")):
        yield from map(example_from_json, read_jsonl(path))


def _destroy_keys(connection: Connection, keys: Collection[str]) -> int:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA secure_delete = ON")
    return destroy_keys(connection, keys)
