"""An immutable dataset: three splits and their card in a folder named by digest, found again by name; in memory, or row by row."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from lorimer.blobs import fetch, publish, publish_file, published_names, refresh_file
from lorimer.config import home
from lorimer.data import merkle
from lorimer.data.card import CARD_VERSION, render_card
from lorimer.data.example import Example, example_from_json
from lorimer.data.split import SPLITS, SplitName, Splits
from lorimer.errors import ConfigError, IntegrityError, NotFoundError
from lorimer.storage import canonical_json, digest_of, new_file, new_folder, read_jsonl, write_json, write_text

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
DIGEST_PATTERN = re.compile(r"[0-9a-f]{16,64}")
FOLDER_LEN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Examples that no longer change."""

    name: str
    digest: str
    """The root of the Merkle tree (RFC 6962) over the digests of the card and of every row of every split, in order."""
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    card: dict[str, Any]
    """Where the rows came from, which shape they had, what was found and taken out."""
    path: Path
    """The folder with `train.jsonl`, `validation.jsonl`, `test.jsonl`, `card.json` and `card.html`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """One line of the list of datasets."""

    name: str
    digest: str
    num_examples: Mapping[str, int]
    """By split."""
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFolder:
    """A dataset on disk, its files checked against its digest; its rows are read when asked for, one by one."""

    name: str
    digest: str
    card: dict[str, Any]
    path: Path

    def rows(self, split: SplitName) -> Iterator[Example]:
        """The rows of one split, in order."""
        return map(example_from_json, read_jsonl(self.path / f"{split}.jsonl"))

    def record_digests(self, split: SplitName) -> Iterator[bytes]:
        """The SHA-256 of each row, in order: the leaves of the dataset's Merkle tree after the card's."""
        with (self.path / f"{split}.jsonl").open("rb") as file:
            for line in file:
                yield hashlib.sha256(line.removesuffix(b"\n")).digest()


def write_dataset(name: str, splits: Splits, card: dict[str, Any]) -> Dataset:
    """Keep a dataset under its digest and let `name` point to it; the name's earlier dataset stays, under its digest.

    Raises:
        ConfigError: if the name is not one.
        IntegrityError: if a folder of this digest is there already and was changed.
    """
    lines = {split: [canonical_json(example.to_json()) + b"\n" for example in examples] for split, examples in splits.items()}
    digests = [hashlib.sha256(line[:-1]).digest() for split in SPLITS for line in lines[split]]
    return read_folder(write_lines(name, card, digests, lambda split: lines[split]))


def write_lines(
    name: str,
    card: dict[str, Any],
    record_digests: Iterable[bytes],
    lines: Callable[[SplitName], Iterable[bytes]],
    beside: Mapping[str, Path] | None = None,
) -> DatasetFolder:
    """As `write_dataset`, for rows that are lines of canonical JSON already and need not be in memory; `beside` are files kept with them.

    Raises:
        ConfigError: if the name is not one.
        IntegrityError: if a folder of this digest is there already and was changed.
    """
    written = keep_lines(name, card, record_digests, lines, beside)
    point(name, written.digest)
    return written


def keep_lines(
    name: str,
    card: dict[str, Any],
    record_digests: Iterable[bytes],
    lines: Callable[[SplitName], Iterable[bytes]],
    beside: Mapping[str, Path] | None = None,
) -> DatasetFolder:
    """`write_lines`, to be found by its digest alone.

    Raises:
        As `write_lines`.
    """
    check_name(name)
    card = {**card, "card_version": CARD_VERSION}  # a new dataset has a new digest, whichever card it began with
    digest = merkle.root(chain([bytes.fromhex(digest_of(card))], record_digests)).hex()
    folder = _datasets() / digest[:FOLDER_LEN]
    if not folder.exists() and not fetch(folder):
        with new_folder(folder) as new:
            for split in SPLITS:
                with new_file(new / f"{split}.jsonl") as file:
                    file.writelines(lines(split))
            for file_name, source in (beside or {}).items():
                with new_file(new / file_name) as file, source.open("rb") as read:
                    shutil.copyfileobj(read, file)
            write_json(new / "card.json", card)
            write_text(new / "card.html", render_card(card, digest))
    written = _open_folder(folder, digest, name)
    publish(folder)
    return written


def point(name: str, digest: str) -> None:
    """Let a name stand for the dataset of a digest, here and in the store."""
    write_json(_pointer(name), {"digest": digest, "folder": digest[:FOLDER_LEN]})
    publish_file(_pointer(name))


def read_dataset(name_or_digest: str) -> Dataset:
    """The dataset of that name, or of that digest (at least its first 16 characters), its rows checked against the digest.

    Raises:
        NotFoundError: if there is none; the message lists those that are there.
        IntegrityError: if its files were changed or are gone.
    """
    return read_folder(open_dataset(name_or_digest))


def open_dataset(name_or_digest: str) -> DatasetFolder:
    """The same without its rows in memory.

    Raises:
        As `read_dataset`.
    """
    if NAME_PATTERN.fullmatch(name_or_digest) and find_pointer(name_or_digest).exists():
        digest = _read_pointer(name_or_digest)
        return _open_folder(find_folder(digest), digest, name_or_digest)
    if DIGEST_PATTERN.fullmatch(name_or_digest):
        folder = find_folder(name_or_digest)
        if folder.exists():
            return _open_folder(folder, name_or_digest)
    raise NotFoundError(
        f"no dataset {name_or_digest!r}; {describe_names(name_or_digest)}: `lorimer data curate FILE --name NAME` makes one"
    )


def read_folder(opened: DatasetFolder) -> Dataset:
    """All rows of an opened dataset.

    Raises:
        IntegrityError: if a row is none.
    """
    try:
        rows = {split: tuple(opened.rows(split)) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _damaged(opened.name, opened.path, f"its files cannot be read, {type(exc).__name__}") from exc
    return Dataset(name=opened.name, digest=opened.digest, card=opened.card, path=opened.path, **rows)


def list_datasets() -> list[DatasetSummary]:
    """All names, in order, with the dataset each points to.

    Raises:
        IntegrityError: if a name points to a folder that is gone or damaged.
    """
    return [_summary(name) for name in dataset_names()]


def dataset_names() -> list[str]:
    """The names of the datasets that are here."""
    names = {path.stem for path in _datasets().glob("*.json")} | published_names(_datasets(), ".json")
    return sorted(name for name in names if NAME_PATTERN.fullmatch(name))


def describe_names(wanted: str) -> str:
    """The names that are here and the nearest to `wanted`, for a message."""
    names = dataset_names()
    near = get_close_matches(wanted, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"there are {', '.join(names)}{hint}" if names else "there are none yet"


def check_name(name: str) -> None:
    """Refuse names that would not do as a file name and in a URL.

    Raises:
        ConfigError: if it is one.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(f"dataset name {name!r} must be lower-case letters, digits, `-` and `_`, at most 63, the first a letter or digit")


def _datasets() -> Path:
    return home() / "datasets"


def _pointer(name: str) -> Path:
    return _datasets() / f"{name}.json"


def find_pointer(name: str) -> Path:
    """Where the name's pointer is, as others last moved it."""
    refresh_file(_pointer(name))
    return _pointer(name)


def find_folder(digest: str) -> Path:
    """Where the dataset of a digest is, brought here if a shared store has it."""
    folder = _datasets() / digest[:FOLDER_LEN]
    if not folder.exists():
        fetch(folder)
    return folder


def _digest(card: dict[str, Any], digests: Mapping[SplitName, Iterable[bytes]]) -> str:
    """Of the card and all rows: the root of their Merkle tree, the card first; datasets of version 1 have a digest of one JSON value."""
    if card["card_version"] == 1:
        rows = {split: [digest.hex() for digest in digests[split]] for split in SPLITS}
        return digest_of({"card": card, "rows": rows})
    return merkle.root(chain([bytes.fromhex(digest_of(card))], *(digests[split] for split in SPLITS))).hex()


def _read_pointer(name: str) -> str:
    path = _pointer(name)
    try:
        digest = json.loads(path.read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise IntegrityError(f"dataset {name!r}: {str(path)!r} cannot be read ({exc}): remove it and curate the dataset again") from exc
    return str(digest)


def _summary(name: str) -> DatasetSummary:
    find_pointer(name)
    digest = _read_pointer(name)
    folder = find_folder(digest)
    try:
        splits = json.loads((folder / "card.json").read_text(encoding="utf-8"))["splits"]
        num_examples = {split_name: int(described["num_examples"]) for split_name, described in splits.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _damaged(name, folder, f"its card cannot be read, {type(exc).__name__}") from exc
    return DatasetSummary(name=name, digest=digest, num_examples=num_examples, path=folder)


def _open_folder(folder: Path, digest: str, name: str | None = None) -> DatasetFolder:
    """Compare a dataset's files with its digest, or with as much of it as is known, line by line.

    Raises:
        IntegrityError: if they differ, or a file is gone.
    """
    shown = name or digest
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        opened = DatasetFolder(name=name or card["name"], digest=digest, card=card, path=folder)
        found = _digest(card, {split: opened.record_digests(split) for split in SPLITS})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _damaged(shown, folder, f"its files cannot be read, {type(exc).__name__}") from exc
    if not found.startswith(digest):
        raise _damaged(shown, folder, f"its rows or its card were changed: their digest is {found[:FOLDER_LEN]}, not {digest[:FOLDER_LEN]}")
    return replace(opened, digest=found)


def _damaged(name: str, folder: Path, reason: str) -> IntegrityError:
    return IntegrityError(f"dataset {name!r} in {str(folder)!r} is damaged ({reason}): remove that folder and curate the dataset again")
