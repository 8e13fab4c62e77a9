"""An immutable dataset: three splits and their card in a folder named by digest, found again by name."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lorimer.blobs import fetch, publish, publish_file, published_names, refresh_file
from lorimer.config import home
from lorimer.data.card import render_card
from lorimer.data.example import Example, example_from_json
from lorimer.data.split import Splits
from lorimer.errors import ConfigError, IntegrityError, NotFoundError
from lorimer.storage import digest_of, new_folder, read_jsonl, write_json, write_jsonl, write_text

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
DIGEST_PATTERN = re.compile(r"[0-9a-f]{16,64}")
FOLDER_LEN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Examples that no longer change."""

    name: str
    digest: str
    """SHA-256 over the card and every row of every split, in order."""
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


def write_dataset(name: str, splits: Splits, card: dict[str, Any]) -> Dataset:
    """Keep a dataset under its digest and let `name` point to it; the name's earlier dataset stays, under its digest.

    Raises:
        ConfigError: if the name is not one.
        IntegrityError: if a folder of this digest is there already and was changed.
    """
    check_name(name)
    digest = _digest(splits, card)
    folder = _datasets() / digest[:FOLDER_LEN]
    if not folder.exists() and not fetch(folder):
        with new_folder(folder) as new:
            for split_name, examples in splits.items():
                write_jsonl(new / f"{split_name}.jsonl", (example.to_json() for example in examples))
            write_json(new / "card.json", card)
            write_text(new / "card.html", render_card(card, digest))
    dataset = _read_folder(folder, digest, name)
    publish(folder)
    write_json(_pointer(name), {"digest": digest, "folder": folder.name})
    publish_file(_pointer(name))
    return dataset


def read_dataset(name_or_digest: str) -> Dataset:
    """The dataset of that name, or of that digest (at least its first 16 characters), its rows checked against the digest.

    Raises:
        NotFoundError: if there is none; the message lists those that are there.
        IntegrityError: if its files were changed or are gone.
    """
    if NAME_PATTERN.fullmatch(name_or_digest) and find_pointer(name_or_digest).exists():
        digest = _read_pointer(name_or_digest)
        return _read_folder(find_folder(digest), digest, name_or_digest)
    if DIGEST_PATTERN.fullmatch(name_or_digest):
        folder = find_folder(name_or_digest)
        if folder.exists():
            return _read_folder(folder, name_or_digest)
    raise NotFoundError(
        f"no dataset {name_or_digest!r}; {describe_names(name_or_digest)}: `lorimer data curate FILE --name NAME` makes one"
    )


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


def _digest(splits: Splits, card: dict[str, Any]) -> str:
    rows = {name: [digest_of(example.to_json()) for example in examples] for name, examples in splits.items()}
    return digest_of({"card": card, "rows": rows})


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


def _read_folder(folder: Path, digest: str, name: str | None = None) -> Dataset:
    """Read a dataset and compare it with its digest, or with as much of it as is known.

    Raises:
        IntegrityError: if they differ, or a file is gone.
    """
    shown = name or digest
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        splits = Splits(**{split: tuple(map(example_from_json, read_jsonl(folder / f"{split}.jsonl"))) for split in card["splits"]})
        found = _digest(splits, card)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _damaged(shown, folder, f"its files cannot be read, {type(exc).__name__}") from exc
    if not found.startswith(digest):
        raise _damaged(shown, folder, f"its rows or its card were changed: their digest is {found[:FOLDER_LEN]}, not {digest[:FOLDER_LEN]}")
    return Dataset(
        name=name or card["name"],
        digest=found,
        train=splits.train,
        validation=splits.validation,
        test=splits.test,
        card=card,
        path=folder,
    )


def _damaged(name: str, folder: Path, reason: str) -> IntegrityError:
    return IntegrityError(f"dataset {name!r} in {str(folder)!r} is damaged ({reason}): remove that folder and curate the dataset again")
