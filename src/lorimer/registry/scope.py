"""How far a person's rows have gone: which datasets hold them, what was made of those, where copies are. It changes nothing."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from lorimer.blobs import MANIFEST, explain_store_errors, fetch, open_store
from lorimer.config import home, read_recipe
from lorimer.data.dataset import FOLDER_LEN, dataset_names, find_pointer, open_dataset
from lorimer.data.split import SPLITS
from lorimer.errors import ConfigError
from lorimer.registry.lineage import BlastRadius, radius_of_datasets
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.registry.schema import subjects
from lorimer.storage import read_json

VERSION_PATTERN = re.compile(r"v[1-9][0-9]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldDataset:
    """A dataset that holds rows of the person."""

    digest: str
    name: str
    folder: Path
    names: tuple[str, ...]
    """That stand for it now."""
    num_rows: dict[str, int]
    """Of the person, by split."""
    num_synthetic: int
    """Of these, made from others."""
    num_twins: int
    """Rows that were left out when it was curated because they repeat one of these. They are not brought back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """All that an erasure reaches."""

    records: frozenset[str]
    """Digests of the rows; never kept."""
    datasets: tuple[HeldDataset, ...]
    radius: BlastRadius
    num_request_lines: int
    """Of the request log that name the person."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """Digests of everything that would have to go."""
        return tuple(sorted({version.digest for version in self.radius.affected}))

    def to_json(self) -> dict[str, Any]:
        """Digests, names and counts: the JSON value that `--json` prints, and an erasure keeps."""
        held = [{**asdict(one), "folder": str(one.folder), "names": list(one.names)} for one in self.datasets]
        found = self.radius.to_json()
        return {
            "num_records": len(self.records),
            "num_synthetic": sum(one.num_synthetic for one in self.datasets),
            "num_twins_left_out": sum(one.num_twins for one in self.datasets),
            "num_request_lines": self.num_request_lines,
            "datasets": [{key: value for key, value in one.items() if key != "folder"} for one in held],
            **{key: found[key] for key in ("versions", "merges", "compositions", "aliases", "exports")},
            "left_platform": [asdict(one) for one in self.radius.left_platform],
        }


def find_scope(registry: Registry, keys: Collection[str], *, buried: Collection[str] = (), also: Sequence[AdapterVersion] = ()) -> Scope:
    """Where rows of the subjects of these keys are, their synthetic children too.

    `buried` are datasets known to have held them, `also` versions known to be affected.

    Raises:
        IntegrityError: if a dataset that has to be searched is damaged.
        StorageError: if the store cannot be reached.
    """
    _bring_datasets_here()
    folders = list(dataset_folders())
    records = find_records(folders, keys)
    pointed = _pointers()
    datasets = tuple(_describe(folder, records, pointed) for folder in folders if _holds(folder, records))
    digests = sorted({one.digest for one in datasets} | set(buried))
    radius = radius_of_datasets(registry, "record", "", digests, also=also)
    if learned := _learned_from(registry, radius):
        radius = radius_of_datasets(registry, "record", "", digests, also=[*also, *learned])
    return Scope(
        records=frozenset(records), datasets=datasets, radius=radius, num_request_lines=count_requests(subjects_of(registry.engine, keys))
    )


def dataset_folders() -> Iterator[Path]:
    """Every dataset of this home, whether a name stands for it or not."""
    yield from sorted(path for path in (home() / "datasets").glob("*") if path.is_dir() and path.name[0] != ".")


def find_records(folders: Iterable[Path], keys: Collection[str]) -> set[str]:
    """Digests of the rows that carry one of the keys, and of those made from them, through however many hands."""
    wanted, folders = set(keys), list(folders)
    found = {digest for folder in folders for digest, value in read_lines(folder) if value.get("subject") in wanted}
    while more := {d for folder in folders for d, value in read_lines(folder) if d not in found and value.get("parent") in found}:
        found |= more
    return found


def read_lines(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a dataset that says whom it is about or what it was made from, behind its digest."""
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        with path.open("rb") as file:
            for line in file:
                if b'"subject":"' in line or b'"parent":"' in line:  # all others are passed over unread
                    yield sha256(line.rstrip(b"\n")).hexdigest(), json.loads(line)


def subjects_of(engine: Engine, keys: Collection[str]) -> list[str]:
    """The persons' own ids, as long as their keys are there."""
    with engine.connect() as connection:
        return list(connection.execute(select(subjects.c.subject).where(subjects.c.key.in_(keys))).scalars())


def request_files() -> list[Path]:
    """The request log's files."""
    return sorted((home() / "requests").glob("*.jsonl"))


def count_requests(ids: Collection[str]) -> int:
    """Lines of the request log that name one of the persons."""
    num = 0
    for path in request_files() if ids else ():
        with path.open("rb") as lines:
            num += sum(is_about(line, ids) for line in lines)
    return num


def is_about(line: bytes, ids: Collection[str]) -> bool:
    """Whether a line of the request log names one of the persons."""
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("user") in ids


def recipe_of(version: AdapterVersion) -> Path | None:
    """The recipe that a version was trained by, where its run is here."""
    path = home() / "runs" / version.run_id / "recipe.yaml"
    return path if version.run_id and path.is_file() else None


def _learned_from(registry: Registry, radius: BlastRadius) -> list[AdapterVersion]:
    """Adapters that learned preferences against an affected one: it decided their weights too.

    A reference that moves, as `tone@champion`, may have been any version of that name.
    """
    everything = [version for version in registry.list_versions() if version not in radius.affected]
    references = {version.id: _reference(version) for version in everything}
    touched = {name for version in radius.affected for name in (version.id, version.name)}
    found: list[AdapterVersion] = []
    while more := [version for version in everything if version not in found and references[version.id] in touched]:
        found += more
        touched |= {name for version in more for name in (version.id, version.name)}
    return found


def _reference(version: AdapterVersion) -> str | None:
    """`tone@v3`, or the name alone where the recipe does not say which version."""
    path = recipe_of(version)
    try:
        preference = read_recipe(path).preference if path else None
    except ConfigError:  # of an older version of this program
        return None
    if preference is None or preference.reference == "base":
        return None
    name, _, reference = preference.reference.partition("@")
    return preference.reference if VERSION_PATTERN.fullmatch(reference) else name


def _bring_datasets_here() -> None:
    """Folders that only the store has are searched too."""
    store = open_store()
    if store is None:
        return
    with explain_store_errors(store.url):
        found = store.filesystem.find(store.key(home() / "datasets"))
    for name in sorted(found):
        folder = home() / "datasets" / name.split("/")[-2]
        if name.endswith(f"/{MANIFEST}") and not folder.is_dir():
            fetch(folder)


def _pointers() -> dict[str, list[str]]:
    """Which names stand for which digest."""
    pointed: dict[str, list[str]] = {}
    for name in dataset_names():
        pointed.setdefault(str(read_json(find_pointer(name))["digest"]), []).append(name)
    return pointed


def _holds(folder: Path, records: Collection[str]) -> bool:
    return any(digest in records for digest, _ in read_lines(folder))


def _describe(folder: Path, records: Collection[str], pointed: dict[str, list[str]]) -> HeldDataset:
    opened = open_dataset(folder.name)
    assert folder.name == opened.digest[:FOLDER_LEN]
    num_rows: dict[str, int] = dict.fromkeys(SPLITS, 0)
    sources, num_synthetic = set(), 0
    for split in SPLITS:
        for row in opened.rows(split):
            if (row.subject or row.parent) and row.record_digest in records:
                num_rows[split] += 1
                num_synthetic += bool(row.parent)
                sources.add(row.source)
    return HeldDataset(
        digest=opened.digest,
        name=opened.name,
        folder=folder,
        names=tuple(pointed.get(opened.digest, ())),
        num_rows={str(split): count for split, count in num_rows.items()},
        num_synthetic=num_synthetic,
        num_twins=_count_twins(folder, sources),
    )


def _count_twins(folder: Path, sources: Collection[str]) -> int:
    """Rows whose reason for being left out is one of these."""
    path = folder / "left_out.jsonl"
    if not path.is_file():
        return 0
    with path.open(encoding="utf-8") as lines:
        reasons = [str(json.loads(line).get("reason", "")) for line in lines]
    return sum(reason.rpartition(" ")[2] in sources for reason in reasons)
