"""What breaks if: bases, datasets, records and adapters, and all that they went into."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorimer.cli.main import app
from lorimer.data.curate import curate
from lorimer.data.dataset import Dataset
from lorimer.errors import LorimerError, NotFoundError, UsageError
from lorimer.evaluation.gates import GateResult
from lorimer.registry.compositions import compose
from lorimer.registry.exports import export
from lorimer.registry.lineage import BlastRadius, blast_radius, datasets_with, radius_of_datasets
from lorimer.registry.promotion import promote
from lorimer.registry.records import NewVersion
from lorimer.registry.registry import Registry
from lorimer.storage import canonical_json, digest_of, write_bytes

MakeNew = Callable[..., NewVersion]


def make_dataset(folder: Path, name: str, first: int) -> Dataset:
    rows = ({"prompt": f"{number}?", "completion": f"{number}"} for number in range(first, first + 20))
    write_bytes(folder / f"{name}.jsonl", b"".join(canonical_json(row) + b"\n" for row in rows))
    return curate([folder / f"{name}.jsonl"], name=name)


@pytest.fixture
def tickets(registry: Registry, make_new: MakeNew, make_gate: Callable[..., GateResult], tmp_path: Path) -> Dataset:
    """a and b learned from tickets, c from others; merged of a and c, twice of merged and c; both composed of twice and b."""
    first, second = make_dataset(tmp_path, "tickets", 0), make_dataset(tmp_path, "others", 100)
    named = {}
    for name, weights, dataset in (("a", "w1", first), ("b", "w2", first), ("c", "w3", second)):
        new = replace(make_new(name, weights, "e" * 64 if name == "b" else "b" * 64), dataset_digest=dataset.digest)
        named[name] = registry.register(replace(new, base_name="other-base") if name == "b" else new)
    for name, weights, parents in (("merged", "w4", ("a", "c")), ("twice", "w5", ("merged", "c"))):
        digests = tuple(named[parent].digest for parent in parents)
        named[name] = registry.register(replace(make_new(name, weights), dataset_digest="", dataset_name="", parents=digests))
    compose(registry, "both", ["twice*0.5", "c"])
    registry.record_gate(make_gate(named["merged"]), named["merged"])
    promote(registry, named["merged"])
    export(registry, named["twice"], "peft", tmp_path / "out")
    export(registry, named["c"], "peft", tmp_path / "out-c", left_platform=False)
    return first


def shown(radius: BlastRadius) -> dict[str, list[str]]:
    return {
        "versions": [version.name for version in radius.versions],
        "merges": [version.name for version in radius.merges],
        "compositions": [version.name for version in radius.compositions],
        "aliases": [alias.id for alias in radius.aliases],
        "exports": [one.adapter for one in radius.exports],
    }


THROUGH_A = {"merges": ["merged", "twice"], "compositions": ["both"], "aliases": ["merged@champion"], "exports": ["twice@v1"]}


@pytest.mark.parametrize(
    ("cause", "reference", "versions", "more"),
    [
        ("dataset", "tickets", ["a", "b"], THROUGH_A),
        ("adapter", "a", ["a"], THROUGH_A),
        ("adapter", "b@v1", ["b"], {"merges": [], "compositions": [], "aliases": [], "exports": []}),
        ("adapter", "c", ["c"], {**THROUGH_A, "exports": ["twice@v1", "c@v1"]}),
        ("adapter", "both", ["both"], {"merges": [], "compositions": [], "aliases": [], "exports": []}),
        ("adapter", "twice", ["twice"], {**THROUGH_A, "merges": [], "aliases": []}),
        ("base", "other-base", ["b"], {"merges": [], "compositions": [], "aliases": [], "exports": []}),
        ("base", "e" * 6, ["b"], {"merges": [], "compositions": [], "aliases": [], "exports": []}),
    ],
)
def test_everything_it_went_into_is_found(
    registry: Registry, tickets: Dataset, cause: str, reference: str, versions: list[str], more: dict[str, list[str]]
) -> None:
    assert shown(blast_radius(registry, cause, reference)) == {"versions": versions, **more}  # type: ignore[arg-type]


def test_record_is_looked_for_in_every_dataset(registry: Registry, tickets: Dataset) -> None:
    record = digest_of(tickets.train[0].to_json())
    found = blast_radius(registry, "record", record)
    assert (found.digest, found.datasets) == (record, (tickets.digest,))
    assert shown(found)["versions"] == ["a", "b"]
    assert [one.adapter for one in found.left_platform] == ["twice@v1"]
    assert datasets_with(registry, [record, "0" * 64]) == {tickets.digest: (record,)}
    assert radius_of_datasets(registry, "record", record, [tickets.digest]) == found
    assert len(found.affected) == 5


@pytest.mark.parametrize(
    ("cause", "reference", "error", "said"),
    [
        ("base", "nobody", NotFoundError, "no base 'nobody' is known here"),
        ("dataset", "nobody", NotFoundError, "no dataset 'nobody' is known here"),
        ("adapter", "nobody", NotFoundError, "no adapter 'nobody'"),
        ("record", "0" * 64, NotFoundError, "no dataset of this home holds record"),
        ("record", "tickets", UsageError, "is no record's digest"),
    ],
)
def test_unknown_causes_are_refused(
    registry: Registry, tickets: Dataset, cause: str, reference: str, error: type[LorimerError], said: str
) -> None:
    with pytest.raises(error, match=said):
        blast_radius(registry, cause, reference)  # type: ignore[arg-type]


def test_command(registry: Registry, tickets: Dataset) -> None:
    result = CliRunner().invoke(app, ["adapters", "impact", "--dataset", "tickets", "--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert (found["versions"], found["aliases"]) == (["a@v1", "b@v1"], [{"alias": "merged@champion", "adapter": "merged@v1"}])
    assert "merged@champion" in CliRunner().invoke(app, ["adapters", "impact", "--adapter", "a"]).stdout
    refused = CliRunner().invoke(app, ["adapters", "impact"])
    assert isinstance(refused.exception, UsageError)
