"""What depends on what: everything that a base, a dataset, a record or an adapter went into. It changes nothing."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lorimer.config import home
from lorimer.data.dataset import DIGEST_PATTERN, FOLDER_LEN, dataset_names, find_pointer
from lorimer.errors import IntegrityError, NotFoundError, UsageError
from lorimer.registry.exports import Export, list_exports
from lorimer.registry.records import AdapterVersion, Alias
from lorimer.registry.registry import MIN_DIGEST_LEN, Registry

Cause = Literal["base", "dataset", "record", "adapter"]
ROWS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlastRadius:
    """All that something went into."""

    cause: Cause
    digest: str
    """Of the cause, whole."""
    datasets: tuple[str, ...]
    """Digests of the datasets that are the cause, or hold it."""
    versions: tuple[AdapterVersion, ...]
    """Trained on it, or it itself."""
    merges: tuple[AdapterVersion, ...]
    """Versions with files of their own that hold some of those, through however many merges."""
    compositions: tuple[AdapterVersion, ...]
    """Versions that answer through some of all those."""
    aliases: tuple[Alias, ...]
    """Routes that are live: what they point at is among all those."""
    exports: tuple[Export, ...]
    """Copies of some of them that were written elsewhere."""

    @property
    def affected(self) -> tuple[AdapterVersion, ...]:
        """Every version that would have to go."""
        return (*self.versions, *self.merges, *self.compositions)

    @property
    def left_platform(self) -> tuple[Export, ...]:
        """The copies out of reach: whoever has them has to be told."""
        return tuple(one for one in self.exports if one.left_platform)

    def to_json(self) -> dict[str, Any]:
        """The JSON value that `--json` prints."""
        return {
            "cause": self.cause,
            "digest": self.digest,
            "datasets": list(self.datasets),
            "versions": [version.id for version in self.versions],
            "merges": [version.id for version in self.merges],
            "compositions": [version.id for version in self.compositions],
            "aliases": [{"alias": alias.id, "adapter": f"{alias.adapter_name}@v{alias.version}"} for alias in self.aliases],
            "exports": [asdict(one) for one in self.exports],
        }


def blast_radius(registry: Registry, cause: Cause, reference: str) -> BlastRadius:
    """What breaks if this goes: a base by name or digest, a dataset by name or digest, a record by digest, an adapter by any name.

    Raises:
        NotFoundError: if nothing of that name is here.
        UsageError: if a digest's beginning fits several.
        IntegrityError: if a dataset that has to be searched is damaged.
    """
    everything = registry.list_versions()
    digest, datasets, direct = _find(registry, cause, reference, everything)
    return _spread(registry, cause, digest, datasets, direct, everything)


def radius_of_datasets(
    registry: Registry, cause: Cause, digest: str, datasets: Sequence[str], *, also: Sequence[AdapterVersion] = ()
) -> BlastRadius:
    """What several datasets went into, whatever the cause: of a subject, those that hold any of its records; and what `also` went into."""
    everything = registry.list_versions()
    direct = [version for version in everything if (version.dataset_digest in datasets or version in also) and not version.parts]
    return _spread(registry, cause, digest, tuple(datasets), direct, everything)


def datasets_with(registry: Registry, records: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Which datasets of this home hold which of some records, by the datasets' digests. Every row is read."""
    wanted, found = set(records), {}
    whole = {digest[:FOLDER_LEN]: digest for digest in _known_datasets(registry.list_versions())}
    for folder in sorted((home() / "datasets").glob("*")):
        if folder.is_dir() and folder.name[0] != "." and (held := wanted & set(_records_of(folder))):
            found[whole.get(folder.name, folder.name)] = tuple(sorted(held))
    return found


def _find(
    registry: Registry, cause: Cause, reference: str, everything: Sequence[AdapterVersion]
) -> tuple[str, tuple[str, ...], list[AdapterVersion]]:
    """The whole digest, the datasets, and the versions it went into at once."""
    own = [version for version in everything if not version.parts]
    if cause == "adapter":
        version = registry.find(reference)
        return version.digest, (), [one for one in everything if one.digest == version.digest]
    if cause == "base":
        by_name = {version.base_name: version.base_digest for version in everything}
        digest = _complete(cause, by_name.get(reference, reference), {version.base_digest for version in everything})
        return digest, (), [version for version in own if version.base_digest == digest]
    if cause == "dataset":
        digest = _complete(cause, _dataset_digest(reference), _known_datasets(everything))
        return digest, (digest,), [version for version in own if version.dataset_digest == digest]
    if not DIGEST_PATTERN.fullmatch(reference) or len(reference) != 64:
        raise UsageError(f"{reference!r} is no record's digest: give all 64 hex digits")
    datasets = tuple(datasets_with(registry, [reference]))
    if not datasets:
        known = len(_known_datasets(everything))
        raise NotFoundError(
            f"no dataset of this home holds record {reference[:12]!r}: {known} are known, those that are here were searched"
        )
    return reference, datasets, [version for version in own if version.dataset_digest in datasets]


def _spread(
    registry: Registry,
    cause: Cause,
    digest: str,
    datasets: tuple[str, ...],
    direct: Sequence[AdapterVersion],
    everything: Sequence[AdapterVersion],
) -> BlastRadius:
    touched = {version.digest for version in direct}
    ids = {version.id for version in direct}
    merges: list[AdapterVersion] = []
    while more := [v for v in everything if v.id not in ids and not v.parts and (v.digest in touched or touched & set(v.parents))]:
        merges += more  # of merges too, until nothing is added
        ids |= {version.id for version in more}
        touched |= {version.digest for version in more}
    compositions = [v for v in everything if v.id not in ids and v.parts and touched & {part.digest for part in v.parts}]
    ids |= {version.id for version in compositions}
    touched |= {version.digest for version in compositions}
    aliases = tuple(alias for alias in registry.aliases() if f"{alias.adapter_name}@v{alias.version}" in ids)
    return BlastRadius(
        cause=cause,
        digest=digest,
        datasets=datasets,
        versions=tuple(direct),
        merges=tuple(merges),
        compositions=tuple(compositions),
        aliases=aliases,
        exports=list_exports(registry.engine, tuple(sorted(touched))),
    )


def _dataset_digest(reference: str) -> str:
    """A name's digest, or what was given."""
    if reference not in dataset_names():
        return reference
    return str(json.loads(find_pointer(reference).read_text(encoding="utf-8"))["digest"])


def _known_datasets(everything: Sequence[AdapterVersion]) -> set[str]:
    """Those of this home, and those that versions were trained on."""
    named = {_dataset_digest(name) for name in dataset_names()}
    return named | {version.dataset_digest for version in everything if version.dataset_digest}


def _complete(cause: Cause, prefix: str, known: set[str]) -> str:
    """The one digest that begins so."""
    found = sorted(digest for digest in known if len(prefix) >= MIN_DIGEST_LEN and digest.startswith(prefix.removeprefix("sha256:")))
    if len(found) > 1:
        raise UsageError(f"{cause} {prefix!r} fits {', '.join(digest[:12] for digest in found)}: give more digits")
    if not found:
        there = ", ".join(digest[:12] for digest in sorted(known)[:12]) or "none"
        raise NotFoundError(f"no {cause} {prefix!r} is known here: there is {there}; give a name, or {MIN_DIGEST_LEN} digits of a digest")
    return found[0]


def _records_of(folder: Path) -> Iterable[str]:
    """A record's digest is that of its line: rows are kept in the one spelling digests are taken of."""
    try:
        for split in ROWS:
            if (file := folder / f"{split}.jsonl").is_file():
                with file.open("rb") as lines:
                    yield from (hashlib.sha256(line.rstrip(b"\n")).hexdigest() for line in lines)
    except OSError as exc:
        raise IntegrityError(f"dataset in {str(folder)!r} cannot be searched ({type(exc).__name__}): restore it from a backup") from exc
