"""All that a home and its database hold, as one file, and back: whole, checked, and from one kind of database into the other.

The rows are read as of one moment, the files after them: a file that a row names is there before the row is. Files are never changed, only
added, so the two fit however much others write meanwhile. Left out is what is made again or belongs to the machine: bases, checkpoints,
caches of answers, compiled kernels.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, select, text

from lorimer import __version__
from lorimer.blobs import fetch, publish, publish_file, published_names, refresh_file
from lorimer.config import home
from lorimer.database import begin_write, open_database, open_database_at, upgrade
from lorimer.errors import IntegrityError, UsageError
from lorimer.registry.archive import ArchiveWriter, unpack
from lorimer.registry.audit import memory_path, now, record
from lorimer.registry.replay import replay_tombstones
from lorimer.registry.rows import begin_snapshot, copy_rows, dump_rows, empty_tables, has_rows, load_rows, read_revision, reflect
from lorimer.storage import explain_disk_errors, read_json, write_chunks

KEPT = ("adapters", "datasets", "reports", "runs", "recipes", "requests", "suites", "judges", "canaries")
KEYS = "keys"
PASSED_OVER = {"checkpoints"}
DATABASE = "database"
OUTLIVING = ("tombstones", "erasures", "legal_holds")
"""Tables whose rows outlive a restore: what was erased since the backup, and by which request."""
TELLING = ("adapter_versions", "audit", "tenants")
"""Tables that hold something as soon as anything was done."""

AFTER_RESTORE: list[Callable[[Engine], object]] = [replay_tombstones]
"""Called with the database after every restore: what was erased since the backup was made is erased again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """What an archive holds."""

    path: Path
    digest: str
    """Of its manifest, which names every file by digest."""
    num_files: int
    num_rows: int
    num_bytes: int
    missing: tuple[str, ...] = ()
    """What is registered and was found nowhere."""


def backup(engine: Engine, path: Path, *, with_keys: bool = True, allow_missing: bool = False) -> Backup:
    """Write everything to one file, which appears whole or not at all; others may go on writing.

    Raises:
        UsageError: if the file is there already.
        IntegrityError: if files of registered adapters are gone, unless that is allowed.
        StorageError: if the disk is full or the store away.
    """
    if path.exists():
        raise UsageError(f"{str(path)!r} is there already: give the backup another name, or remove it")
    with ArchiveWriter(path=path) as archive, tempfile.TemporaryDirectory(dir=_made(home()), prefix=".backup.") as temporary:
        num_rows = _dump_database(engine, Path(temporary), archive)
        missing = _bring_here(engine)
        if missing and not allow_missing:
            raise IntegrityError(
                f"the files of {', '.join(missing)} are gone, here and in the store: restore them, or go on without (--allow-missing)"
            )
        for file in _files((*KEPT, *((KEYS,) if with_keys else ()))):
            archive.add_file(file.relative_to(home()).as_posix(), file)
        described = {"created_at": now(), "lorimer": __version__, "with_keys": with_keys, "num_rows": num_rows, "missing": missing}
        archive.described.update(described)
    num_bytes = sum(entry["num_bytes"] for entry in archive.files.values())
    return Backup(
        path=path, digest=archive.digest, num_files=len(archive.files), num_rows=num_rows, num_bytes=num_bytes, missing=tuple(missing)
    )


def restore(path: Path, *, replace: bool = False, actor: str | None = None) -> Backup:
    """Put a backup into this home and its database, which are empty or are to be replaced.

    The archive is checked to its last byte before anything is touched; the rows change in one transaction, after the files are there.

    Raises:
        NotFoundError: if there is no such file.
        IntegrityError: if a byte of it differs.
        UsageError: if there is something here, and it is not to be replaced; or a newer Lorimer wrote the backup.
    """
    if not path.is_file():
        raise UsageError(f"there is no backup {str(path)!r}: `lorimer backup FILE` makes one")
    with explain_disk_errors(home()), tempfile.TemporaryDirectory(dir=_made(home()), prefix=".restore.") as temporary:
        folder = Path(temporary)
        manifest = unpack(path, folder)
        stage = _stage_database(folder, manifest)
        try:
            engine = open_database()
            _require_empty(engine, replace)
            names = _move_files(folder, manifest, replace)
            _replace_rows(stage, engine, manifest, replace, actor)
            Path(memory_path(engine)).unlink(missing_ok=True)  # the chain begins anew where the backup ends, as its entry says
        finally:
            stage.dispose()
    if replace:
        _remove_others(names)
    for replay in AFTER_RESTORE:
        replay(engine)
    publish_all(engine)
    engine.dispose()
    sizes = [entry["num_bytes"] for entry in manifest["files"].values()]
    return Backup(
        path=path,
        digest=manifest["digest"],
        num_files=len(sizes),
        num_rows=manifest["num_rows"],
        num_bytes=sum(sizes),
        missing=tuple(manifest["missing"]),
    )


def publish_all(engine: Engine) -> int:
    """Put every adapter and dataset of this home into the store, if there is one; returns how many folders there were."""
    folders = [home() / path for path in _adapter_paths(engine).values() if (home() / path).is_dir()]
    pointers = [file for file in sorted((home() / "datasets").glob("*.json")) if file.name[0] != "."]
    folders += sorted(folder for folder in (home() / "datasets").glob("*") if folder.is_dir() and folder.name[0] != ".")
    for folder in folders:
        publish(folder)
    for pointer in pointers:
        publish_file(pointer)
    return len(folders)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _dump_database(engine: Engine, folder: Path, archive: ArchiveWriter) -> int:
    """Every table as of one moment; returns the number of rows."""
    archive.described["revision"] = read_revision(engine)
    num_rows = 0

    def counted(lines: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal num_rows
        for line in lines:
            num_rows += 1
            yield line

    with engine.connect() as connection:
        connection = begin_snapshot(connection)
        for table in reflect(connection):
            file = folder / f"{table.name}.jsonl"
            write_chunks(file, counted(dump_rows(connection, table)))
            archive.add_file(f"{DATABASE}/{file.name}", file)
    return num_rows


def _adapter_paths(engine: Engine) -> dict[str, str]:
    """Where the files of registered adapters lie below the home, by what they are called; compositions have none, nor what was erased."""
    buried = "SELECT value FROM tombstones WHERE kind = 'adapter'"
    query = text(f"SELECT name, version, path, parts FROM adapter_versions WHERE digest NOT IN ({buried}) ORDER BY name, version")
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return {f"{row.name}@v{row.version}": row.path for row in rows if row.parts in (None, "null")}


def _bring_here(engine: Engine) -> list[str]:
    """Have the store's part of this home here; returns which registered adapters have no files anywhere."""
    for name in published_names(home() / "datasets", ".json"):
        pointer = home() / "datasets" / f"{name}.json"
        refresh_file(pointer)
        folder = home() / "datasets" / str(read_json(pointer)["folder"])
        if not folder.is_dir():
            fetch(folder)
    return [name for name, path in _adapter_paths(engine).items() if not (home() / path).is_dir() and not fetch(home() / path)]


def _files(folders: tuple[str, ...]) -> Iterator[Path]:
    """What is kept of the home, in order; not what is being written, and no links."""
    for folder in folders:
        for root, names, files in os.walk(home() / folder):
            names[:] = sorted(name for name in names if name[0] != "." and name not in PASSED_OVER)
            yield from (Path(root) / name for name in sorted(files) if name[0] != "." and not (Path(root) / name).is_symlink())


def _stage_database(folder: Path, manifest: Mapping[str, Any]) -> Engine:
    """The backup's rows in a database of their own, brought from the schema they were written in to the newest."""
    url = f"sqlite:///{folder / 'stage.db'}"
    stage = open_database_at(url, str(manifest["revision"]))
    with begin_write(stage) as connection:
        tables = reflect(connection)
        empty_tables(connection, tables)
        load_rows(connection, tables, folder / DATABASE)
    upgrade(stage)
    return stage


def _require_empty(engine: Engine, replace: bool) -> None:
    if replace:
        return
    with engine.connect() as connection:
        full = has_rows(connection, [table for table in reflect(connection) if table.name in TELLING])
    if full or (there := [name for name in KEPT if any((home() / name).glob("[!.]*"))]):
        found = f"the database has rows in {', '.join(full)}" if full else f"{str(home())!r} has {', '.join(there)}"
        raise UsageError(f"there is something here already ({found}): restore into an empty home, or give --replace to lose what is here")


def _move_files(folder: Path, manifest: Mapping[str, Any], replace: bool) -> set[str]:
    """Put the files where they belong; what is there under the same digest stays."""
    names = {name for name in manifest["files"] if name.split("/")[0] in (*KEPT, KEYS)}
    for name in sorted(names):
        target = home() / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.split("/")[0] == KEYS:
            target.parent.chmod(0o700)
            (folder / name).chmod(0o600)
        if replace or not target.exists():
            os.replace(folder / name, target)
    return names


def _replace_rows(stage: Engine, engine: Engine, manifest: Mapping[str, Any], replace: bool, actor: str | None) -> None:
    """The backup's rows in the place of those that are here, in one transaction; what was erased since stays on its list."""
    with stage.connect() as source, begin_write(engine) as target:
        tables = {table.name: table for table in reflect(target)}
        outliving = {name: _read_rows(target, tables[name]) for name in OUTLIVING if name in tables}
        empty_tables(target, list(tables.values()))
        for table in reflect(source):
            copy_rows(target, tables[table.name], iter(dict(row) for row in source.execute(select(table)).mappings()))
        for name, rows in outliving.items():
            _put_back(target, tables[name], rows)
        details = {"backup_digest": manifest["digest"], "made_at": manifest["created_at"], "replaced": replace}
        record(target, actor=actor, action="restore", subject="database", details=details)


def _read_rows(connection: Connection, table: Table) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(select(table)).mappings()]


def _put_back(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """In the place of what the backup has under the same keys."""
    keys = list(table.primary_key.columns)
    for row in rows:
        connection.execute(delete(table).where(*(key == row[key.name] for key in keys)))
    copy_rows(connection, table, iter(rows))


def _remove_others(names: set[str]) -> None:
    """What the backup had not, of what is kept."""
    kept = {home() / name for name in names}
    for file in list(_files(KEPT)):
        if file not in kept:
            file.unlink()
    for folder in sorted((folder for name in KEPT for folder in (home() / name).rglob("*") if folder.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            shutil.rmtree(folder)
