"""Erasure without training: who may, what is reached, where routes go, what is deleted in each database and store, and what goes wrong."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from lorimer import erase
from lorimer.cli.main import run
from lorimer.config import ColumnNames
from lorimer.data.curate import curate
from lorimer.data.dataset import Dataset, read_dataset
from lorimer.data.subjects import find_key
from lorimer.database import open_database
from lorimer.errors import (
    AccessError,
    AwaitingApprovalError,
    ErasedError,
    GateFailedError,
    IntegrityError,
    LorimerError,
    NotFoundError,
    StorageError,
    UsageError,
)
from lorimer.evaluation.gates import GateResult
from lorimer.registry import removal, takeout
from lorimer.registry.audit import read_audit
from lorimer.registry.compositions import compose
from lorimer.registry.erasures import (
    Erasure,
    a_month_after,
    approve,
    find_erasure,
    lift_hold,
    list_erasures,
    note,
    place_hold,
    receive,
    reject,
)
from lorimer.registry.exports import export
from lorimer.registry.officers import grant_role
from lorimer.registry.promotion import promote
from lorimer.registry.receipt import read_receipt
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry
from lorimer.registry.replay import replay_tombstones
from lorimer.registry.trust import trusted
from lorimer.storage import canonical_json, write_bytes
from servers import PostgreSQL

MakeNew = Callable[..., NewVersion]
MakeGate = Callable[..., GateResult]
WHO = "customer-17"


@pytest.fixture(autouse=True)
def actor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIMER_ACTOR", "ada")


def make_dataset(folder: Path, name: str, *, secret: str = "zebra") -> Dataset:
    rows = [
        {
            "q": f"{name} number {i}" + (f" {secret} {i:03}" if i % 5 == 0 else ""),
            "a": "yes",
            "who": WHO if i % 5 == 0 else f"other-{i % 3}",
        }
        for i in range(40)
    ]
    write_bytes(folder / f"{name}.jsonl", b"".join(canonical_json(row) + b"\n" for row in rows))
    return curate([folder / f"{name}.jsonl"], name=name, columns=ColumnNames(prompt="q", completion="a", subject="who"))


@pytest.fixture
def tickets(registry: Registry, make_new: MakeNew, make_gate: MakeGate, tmp_path: Path) -> Dataset:
    """demo@v1 learned from what is nobody's, demo@v2 (champion) and solo@v1 (champion) from rows of the person."""
    dataset = make_dataset(tmp_path, "tickets")
    for name, weights, digest in (("demo", "w1", "d" * 64), ("demo", "w2", dataset.digest), ("solo", "w3", dataset.digest)):
        version = registry.register(replace(make_new(name, weights), dataset_digest=digest, dataset_name="tickets"))
        promote(registry, registry.record_gate(make_gate(version), version))
    return dataset


def ask_and_approve(registry: Registry) -> Erasure:
    return approve(registry, [erase.request(registry, [WHO]).id], actor="bob")


def finish(registry: Registry, asked: Erasure, **options: Any) -> Erasure:
    for _ in erase.carry_out(registry, asked.id, **options):
        pass
    return find_erasure(registry, asked.id)


def grep(folder: Path, *needles: str) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if any(needle.encode() in path.read_bytes() for needle in needles)]


def test_everything_goes_in_each_database(registry: Registry, tickets: Dataset, home: Path) -> None:
    write_bytes(home / "requests" / "2026-11-01.jsonl", b'{"user": "customer-17"}\n{"user": "customer-170"}\nbroken\n')
    write_bytes(home / "augmentations" / "a.jsonl", b'{"parent": "%s", "text": "striped"}\n' % tickets.train[0].record_digest.encode())
    write_bytes(home / "reports" / "r" / "report.json", canonical_json({"dataset_digest": tickets.digest, "items": ["zebra 000"]}))
    write_bytes(home / "answers" / "a.json", b'["zebra 005"]')
    done = finish(registry, ask_and_approve(registry))
    assert done.state == "certified"
    assert grep(home, "zebra", WHO + '"') == []
    new = read_dataset("tickets")
    assert len(new.train + new.validation + new.test) == 32
    assert new.card["accounting"]["num_kept"] == 32
    assert find_key(registry.engine, WHO) is None
    taken = done.document["taken"]
    assert {name: taken["removed"][name] for name in ("datasets", "adapters", "reports", "request_lines", "subject_keys")} == {
        "datasets": 1, "adapters": 2, "reports": 1, "request_lines": 1, "subject_keys": 1,
    }  # fmt: skip
    assert (home / "requests" / "2026-11-01.jsonl").read_bytes() == b'{"user": "customer-170"}\nbroken\n'
    said = read_receipt(done.receipt, trusted(registry.engine))
    assert said["datasets"] == [{"old_root": tickets.digest, "new_root": new.digest}]
    changed = json.loads(json.dumps(done.receipt))
    changed["signatures"][0]["sig"] = changed["signatures"][0]["sig"][::-1]
    with pytest.raises(IntegrityError):
        read_receipt(changed, trusted(registry.engine))


def test_routes_fall_back_and_stay_where_nothing_took_its_place(registry: Registry, tickets: Dataset) -> None:
    finish(registry, ask_and_approve(registry))
    assert {alias.id: alias.version for alias in registry.aliases()} == {"demo@champion": 1}
    assert registry.is_held("solo", "champion")
    assert registry.resolve("demo").id == "demo@v1"
    for name in ("demo@v2", "solo", "solo@v1"):
        with pytest.raises(ErasedError):
            registry.resolve(name)
    with pytest.raises(ErasedError):
        promote(registry, registry.find("demo@v2"), alias="other", overrides_gate=True, reason="because")
    with pytest.raises(ErasedError):
        compose(registry, "both", ["demo@v1", "solo@v1"])


def test_merges_compositions_and_exports_go_too(registry: Registry, tickets: Dataset, make_new: MakeNew, tmp_path: Path) -> None:
    solo = registry.resolve("solo")
    merged = registry.register(replace(make_new("merged", "w9"), dataset_digest="", parents=(solo.digest,)))
    composed = compose(registry, "both", ["merged", "demo@v1"])
    export(registry, solo, "peft", tmp_path / "stays", left_platform=False)
    export(registry, solo, "peft", tmp_path / "changed", left_platform=False)
    (tmp_path / "changed" / "mine").write_text("not the platform's")
    export(registry, solo, "peft", tmp_path / "left")
    done = finish(registry, ask_and_approve(registry))
    assert not merged.path.exists()
    assert {registry.find(one.id).erasure for one in (merged, composed)} == {done.id}
    assert [(tmp_path / name).exists() for name in ("stays", "changed", "left")] == [False, True, True]
    assert done.document["taken"]["not_removed"] == [str(tmp_path / "changed")]
    assert [one["place"] for one in done.document["scope"]["left_platform"]] == [str(tmp_path / "left")]


def test_what_was_begun_before_is_not_registered_after(registry: Registry, tickets: Dataset, make_new: MakeNew, home: Path) -> None:
    late = replace(make_new("late", "w7"), dataset_digest=tickets.digest)
    finish(registry, ask_and_approve(registry))
    with pytest.raises(ErasedError, match="held somebody's rows"):
        registry.register(late)
    assert not any("late" in version.id for version in registry.list_versions())


def test_second_person_approves(registry: Registry, tickets: Dataset) -> None:
    asked = erase.request(registry, [WHO])
    assert erase.request(registry, [WHO]) == asked  # once is enough
    with pytest.raises(AwaitingApprovalError, match=f"lorimer erasures approve {asked.id}"):
        finish(registry, asked)
    with pytest.raises(AccessError, match="somebody else"):
        approve(registry, [asked.id])
    for name, role in (("root", "admin"), ("ada", "trainer"), ("bob", "approver"), ("eve", "viewer")):
        grant_role(registry, name, role, by="root")
    with pytest.raises(AccessError, match="approver approves it"):
        approve(registry, [asked.id], allows_same_person=True)
    with pytest.raises(AccessError, match="needs 'approver'"):
        approve(registry, [asked.id], actor="eve")
    with pytest.raises(AccessError, match="needs 'trainer'"):
        receive(registry, ["k"], actor="eve")
    with pytest.raises(AccessError, match="needs 'admin'"):
        place_hold(registry, "k", actor="bob", reason="r")
    assert approve(registry, [asked.id], actor="bob").approved_by == "bob"


def test_requests_are_merged_and_retrained_once(registry: Registry, tickets: Dataset) -> None:
    first, second = erase.request(registry, [WHO]), erase.request(registry, ["other-1"])
    merged = approve(registry, [second.id, first.id], actor="bob")
    assert len(merged.keys) == 2
    done = finish(registry, merged)
    (other,) = {first.id, second.id} - {merged.id}
    assert (find_erasure(registry, other).state, find_erasure(registry, other).document["into"]) == ("merged", merged.id)
    new = read_dataset("tickets")
    assert len(new.train + new.validation + new.test) == 40 - 8 - 11
    assert len(done.document["datasets"]) == 1


def test_legal_hold_keeps_rows(registry: Registry, tickets: Dataset) -> None:
    key = find_key(registry.engine, WHO) or ""
    with pytest.raises(UsageError, match="needs a reason"):
        place_hold(registry, key)
    place_hold(registry, key, reason="case 4711")
    asked = erase.request(registry, [WHO])
    with pytest.raises(LorimerError, match="a legal hold is on a subject"):
        approve(registry, [asked.id], actor="bob")
    lift_hold(registry, key)
    assert approve(registry, [asked.id], actor="bob").state == "approved"


def test_rejection_needs_a_reason(registry: Registry, tickets: Dataset) -> None:
    asked = erase.request(registry, [WHO])
    with pytest.raises(UsageError, match="told why"):
        reject(registry, asked.id)
    assert reject(registry, asked.id, reason="not them").state == "rejected"
    assert list_erasures(registry, open_only=True) == ()
    assert finish(registry, asked).state == "rejected"


@pytest.mark.parametrize(
    ("at", "due"),
    [("2026-01-31T10:00:00+00:00", "2026-02-28"), ("2028-01-30T10:00:00+00:00", "2028-02-29"), ("2026-12-05T10:00:00+00:00", "2027-01-05")],
)
def test_due_in_one_month(at: str, due: str) -> None:
    assert a_month_after(at) == f"{due}T10:00:00+00:00"


def test_unknown_person(registry: Registry, home: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing here is known of 'nobody'"):
        erase.request(registry, ["nobody"])
    write_bytes(home / "requests" / "2026-11-01.jsonl", b'{"user": "nobody"}\n')
    done = finish(registry, ask_who(registry, "nobody"))
    assert (done.state, (home / "requests" / "2026-11-01.jsonl").read_bytes()) == ("certified", b"")


def ask_who(registry: Registry, who: str) -> Erasure:
    return approve(registry, [erase.request(registry, [who]).id], actor="bob")


def test_words_that_others_share_stay_and_are_counted(registry: Registry, tmp_path: Path) -> None:
    rows = [{"q": f"mine and yours {i // 2}", "a": f"answer {i} is long", "who": WHO if i % 2 else "other"} for i in range(30)]
    write_bytes(tmp_path / "t.jsonl", b"".join(canonical_json(row) + b"\n" for row in rows))
    curate([tmp_path / "t.jsonl"], name="t", columns=ColumnNames(prompt="q", completion="a", subject="who"))
    search = finish(registry, ask_and_approve(registry)).document["taken"]["search"]
    assert (search["num_texts"], search["num_texts_of_others"]) == (30, 15)


def test_copies_nobody_knew_of_are_found(registry: Registry, tickets: Dataset, home: Path) -> None:
    write_bytes(home / "notes" / "copy.txt", b"tickets number 5 zebra 005")
    asked = ask_and_approve(registry)
    with pytest.raises(IntegrityError, match="words of erased rows are still in"):
        finish(registry, asked)
    assert find_erasure(registry, asked.id).state == "quarantined"
    (home / "notes" / "copy.txt").unlink()
    assert finish(registry, asked).state == "certified"


def test_a_run_that_learns_from_the_rows_is_stopped(
    registry: Registry, tickets: Dataset, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erase, "STOP_SECONDS", 0.0)
    described = {"id": "r9", "dataset_digest": tickets.digest, "state": "running", "adapter_name": "x"}
    write_bytes(home / "runs" / "r9" / "run.json", canonical_json(described))
    asked = ask_and_approve(registry)
    with pytest.raises(LorimerError, match="was asked to stop"):
        finish(registry, asked)
    assert (home / "runs" / "r9" / "cancel").exists()
    write_bytes(home / "runs" / "r9" / "run.json", canonical_json({**described, "state": "cancelled"}))
    assert finish(registry, asked).state == "certified"
    assert not (home / "runs" / "r9").exists()


def test_gate_that_fails_keeps_the_quarantine(registry: Registry, tickets: Dataset, make_new: MakeNew, make_gate: MakeGate) -> None:
    asked = ask_and_approve(registry)
    for made in erase.carry_out(registry, asked.id):
        if isinstance(made, Erasure) and made.state == "retraining":
            break
    old = registry.find("solo@v1")
    new = registry.register(replace(make_new("solo", "w8"), dataset_digest=read_dataset("tickets").digest))
    registry.record_gate(make_gate(new, "FAIL"), new)
    note(registry, made, retrained={old.digest: {"id": new.id, "digest": new.digest, "verdict": "FAIL"}})  # type: ignore[arg-type]
    with pytest.raises(GateFailedError, match=r"solo@champion \(solo@v2: FAIL\)") as failed:
        finish(registry, asked)
    assert failed.value.exit_code == 3
    assert registry.is_held("solo", "champion")
    assert finish(registry, asked, accepts_fallback=True).state == "certified"
    assert registry.is_held("solo", "champion")


def test_two_operators_at_once(registry: Registry, tickets: Dataset) -> None:
    asked = ask_and_approve(registry)
    other = Registry(open_database())
    steps = erase.carry_out(registry, asked.id)
    next(steps)
    with pytest.raises(LorimerError, match="another process carries out an erasure"):
        finish(other, asked)
    for _ in steps:
        pass
    assert find_erasure(other, asked.id).state == "certified"
    with pytest.raises(LorimerError, match="somebody else works on it"):
        note(other, asked, x=1)
    other.engine.dispose()


def test_full_disk_is_told_and_resumed(registry: Registry, tickets: Dataset, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ask_and_approve(registry)
    own = os.rename

    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(StorageError, match="the disk is full"):
        finish(registry, asked)
    monkeypatch.setattr(os, "rename", own)
    assert read_dataset("tickets").digest == tickets.digest  # as it was, but fenced off
    assert finish(registry, asked).state == "certified"
    assert grep(home, "zebra") == []


def test_other_homes_of_a_store_and_the_store_itself(
    home: Path, s3_url: str, make_new: MakeNew, make_gate: MakeGate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgresql_url: str
) -> None:
    import fsspec

    monkeypatch.setenv("LORIMER_STORAGE", s3_url)
    monkeypatch.setenv("LORIMER_DATABASE", postgresql_url)
    registry = Registry(open_database())
    dataset = make_dataset(tmp_path, "tickets")
    version = registry.register(replace(make_new("demo", "w2"), dataset_digest=dataset.digest))
    monkeypatch.setenv("LORIMER_HOME", str(tmp_path / "other"))
    assert read_dataset("tickets").digest == dataset.digest  # fetched: a copy that the eraser cannot reach
    monkeypatch.setenv("LORIMER_HOME", str(home))
    assert finish(registry, ask_and_approve(registry)).document["taken"]["search"]["num_objects"] > 0
    filesystem, root = fsspec.core.url_to_fs(s3_url, use_listings_cache=False)
    assert not any(b"zebra" in filesystem.cat_file(name) for name in filesystem.find(root))
    assert not any(version.digest[:16] in name for name in filesystem.find(root))
    monkeypatch.setenv("LORIMER_HOME", str(tmp_path / "other"))
    assert grep(tmp_path / "other", "zebra") != []
    assert replay_tombstones(registry.engine) is not None
    assert grep(tmp_path / "other", "zebra") == []
    assert len(read_dataset("tickets").train) < len(dataset.train)
    registry.engine.dispose()


def test_lost_connection_is_told_and_resumed(
    home: Path, postgresql_server: PostgreSQL, postgresql_url: str, make_new: MakeNew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORIMER_DATABASE", postgresql_url)
    registry = Registry(open_database())
    dataset = make_dataset(tmp_path, "tickets")
    registry.register(replace(make_new("demo", "w2"), dataset_digest=dataset.digest))
    asked = ask_and_approve(registry)
    own = removal.make_replacement

    def lose(*args: Any) -> str | None:
        postgresql_server.disconnect_all(postgresql_url)
        monkeypatch.setattr(takeout, "make_replacement", own)
        raise StorageError("went away in the middle")

    monkeypatch.setattr(takeout, "make_replacement", lose)
    with pytest.raises(LorimerError, match="went away"):
        finish(registry, asked)
    assert finish(registry, asked).state == "certified"
    registry.engine.dispose()


def test_commands_and_their_exit_codes(
    registry: Registry, tickets: Dataset, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*args: str, actor: str = "ada") -> tuple[int, str]:
        monkeypatch.setenv("LORIMER_ACTOR", actor)
        capsys.readouterr()
        return run(list(args)), capsys.readouterr().out

    with registry.engine.connect() as connection:
        before = connection.execute(text("SELECT count(*) FROM audit")).scalar()
    files = {path: path.stat().st_size for path in home.rglob("*.json*") if path.is_file()}
    code, out = call("erase", "--subject", WHO, "--dry-run", "--json")
    found = json.loads(out)
    assert (code, found["num_records"], found["versions"]) == (0, 8, ["demo@v2", "solo@v1"])
    assert [one["alias"] for one in found["aliases"]] == ["demo@champion", "solo@champion"]
    assert len(read_audit(registry.engine)) == before
    assert {path: path.stat().st_size for path in home.rglob("*.json*") if path.is_file()} == files
    assert call("erase", "--subject", "nobody")[0] == 2
    code, out = call("erase", "--subject", WHO, "--json")
    assert (code, json.loads(out)["state"]) == (4, "scoped")
    asked = json.loads(out)["id"]
    assert call("erasures", "approve", asked)[0] == 1  # the same person
    assert call("erasures", "receipt", asked)[0] == 2
    code, out = call("erasures", "approve", asked[:5], "--json", actor="bob")
    assert (code, json.loads(out)["state"]) == (0, "certified")
    assert call("erasures", "receipt", asked, "--plain")[0] == 0
    for command in (["list", "--all"], ["list", "--json"], ["show", asked], ["show", asked, "--json"], ["replay"], ["resume", asked]):
        assert call("erasures", *command)[0] == 0
    assert call("erasures", "hold", "--subject", WHO, "--reason", "r")[0] == 2  # nobody is known by that id any more


def test_yes_carries_it_out_at_once(registry: Registry, tickets: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["erase", "--subject", WHO, "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "certified"


def test_what_preferences_were_learned_against_counts(
    registry: Registry, tickets: Dataset, make_new: MakeNew, home: Path, tmp_path: Path
) -> None:
    recipe = b"base: b\ndataset: d\npreference: {reference: solo@v1}\n"
    write_bytes(home / "runs" / "r-dpo" / "recipe.yaml", recipe)
    version: AdapterVersion = registry.register(replace(make_new("tuned", "w5"), run_id="r-dpo"))
    assert version in erase.preview(registry, [WHO]).radius.versions
