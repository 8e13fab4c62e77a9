"""Whether a person's words are gone: every byte of home, store and database is searched for them, in every spelling they are kept in."""

import html
import json
import mmap
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from lorimer.blobs import explain_store_errors, open_store
from lorimer.config import home
from lorimer.data.example import Example
from lorimer.data.split import SPLITS
from lorimer.errors import IntegrityError, LorimerError
from lorimer.registry.rows import dump_rows, reflect
from lorimer.registry.scope import dataset_folders

MIN_CHARS = 8  # shorter words stand in anybody's rows
PASSED_OVER = ("bases", "kernels", "erasures")
"""Folders of the home that hold no rows, but for the last: what is being searched for, until it is found nowhere else."""
MAX_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """What was searched for, and where; nothing was found."""

    num_texts: int
    num_texts_of_others: int
    """Texts that stand in rows of others word for word, which stay: finding them says nothing."""
    num_files: int
    num_objects: int
    """In the store."""
    num_bytes: int

    def to_json(self) -> dict[str, Any]:
        """For a receipt."""
        return asdict(self)


def texts_of(rows: Iterable[Example]) -> set[str]:
    """Everything rows say that is long enough to be told apart."""
    found: set[str] = set()
    for row in rows:
        found.update(message.content for message in row.messages)
        found.update(text for text in (row.text, row.rejected, *row.tags.values()) if text)
    return {text.strip() for text in found if len(text.strip()) >= MIN_CHARS}


def verify_absence(engine: Engine, texts: Collection[str]) -> Absence:
    """Search for texts everywhere.

    Raises:
        IntegrityError: if one is found that no other's row has; with where, never with the text.
        StorageError: if the store cannot be reached.
    """
    own = {text: _spellings(text) for text in texts}
    shared = {text for folder in dataset_folders() for text in _found_in_rows(folder, own)}
    needles = sorted({spelling for text, spellings in own.items() if text not in shared for spelling in spellings})
    places: list[str] = []
    num_files = num_bytes = 0
    for path in _files(engine):
        num_files, num_bytes = num_files + 1, num_bytes + _size(path)
        if _has_any(path, needles):
            places.append(str(path))
    objects = list(_search_store(needles))
    places += [name for name, _, is_found in objects if is_found]
    places += _search_database(engine, needles)
    if places:
        more = f" and {len(places) - MAX_SHOWN} more places" if len(places) > MAX_SHOWN else ""
        raise IntegrityError(
            f"words of erased rows are still in {', '.join(map(repr, places[:MAX_SHOWN]))}{more}: remove that, or wait for whoever is "
            "writing it, then `lorimer erasures resume`"
        )
    return Absence(
        num_texts=len(texts),
        num_texts_of_others=len(shared),
        num_files=num_files,
        num_objects=len(objects),
        num_bytes=num_bytes + sum(size for _, size, _ in objects),
    )


def scrub_database(engine: Engine) -> None:
    """Have the database give up the space of deleted rows, so that their bytes are not in its file any more.

    Raises:
        LorimerError: if others are reading all the time.
    """
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM subjects")
            connection.exec_driver_sql("VACUUM erasures")
        return
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        cursor.execute("VACUUM")
        is_busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]  # waits as long as for any lock
    finally:
        raw.close()
    if is_busy:
        raise LorimerError("the database is being read all the time, so that its log cannot be emptied: `lorimer erasures resume` later")


def _spellings(text: str) -> set[bytes]:
    """As files have it: plain, inside JSON of either kind, inside a page."""
    spelled = {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], html.escape(text)}
    spelled.add(str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&#34;").replace("'", "&#39;"))
    return {one.encode(errors="replace") for one in spelled}


def _found_in_rows(folder: Path, own: dict[str, set[bytes]]) -> set[str]:
    found: set[str] = set()
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        found.update(text for text, spellings in own.items() if _has_any(path, spellings))
    return found


def _has_any(path: Path, needles: Collection[bytes]) -> bool:
    try:
        with path.open("rb") as file:
            if not needles or not os.fstat(file.fileno()).st_size:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return any(mapped.find(needle) >= 0 for needle in needles)
    except FileNotFoundError:  # somebody else's temporary file
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _files(engine: Engine) -> Iterator[Path]:
    """All of the home, hidden and temporary files too, and the database's, wherever they are."""
    for root, names, files in os.walk(home()):
        if Path(root) == home():
            names[:] = [name for name in names if name not in PASSED_OVER]
        yield from (Path(root) / name for name in sorted(files) if (Path(root) / name).is_file())
    if engine.dialect.name == "sqlite" and engine.url.database and not Path(engine.url.database).absolute().is_relative_to(home()):
        yield from sorted(Path(engine.url.database).absolute().parent.glob(f"{Path(engine.url.database).name}*"))


def _search_store(needles: Collection[bytes]) -> Iterator[tuple[str, int, bool]]:
    store = open_store()
    if store is None:
        return
    with explain_store_errors(store.url):
        for name in sorted(store.filesystem.find(store.root)):
            data = store.filesystem.cat_file(name)
            yield name, len(data), any(needle in data for needle in needles)


def _search_database(engine: Engine, needles: Collection[bytes]) -> list[str]:
    """Every row, as text: of a database that is a file, the bytes are searched too."""
    with engine.connect() as connection:
        found = []
        for table in reflect(connection):
            if any(needle in line for line in dump_rows(connection, table) for needle in needles):
                found.append(f"table {table.name}")
        return found
