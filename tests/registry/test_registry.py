"""The registry: versions by digest, found by every kind of name, lost by none of several processes."""

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from lorimer.database import begin_write, open_database
from lorimer.errors import AdapterError, IntegrityError, LorimerError, NotFoundError, UsageError
from lorimer.evaluation.gates import GateResult
from lorimer.registry.audit import read_audit
from lorimer.registry.promotion import promote
from lorimer.registry.records import NewVersion
from lorimer.registry.registry import Registry, digest_of_folder
from lorimer.registry.schema import adapter_versions
from lorimer.storage import digest_of, digest_of_file

MakeNew = Callable[..., NewVersion]
MakeGate = Callable[..., GateResult]


def test_register_keeps_files_by_digest(registry: Registry, make_new: MakeNew, home: Path) -> None:
    new = make_new()
    version = registry.register(new, actor="ada")
    assert (version.id, version.created_by, version.rank, version.gate_verdict) == ("helpdesk@v1", "ada", 16, None)
    assert version.path == home / "adapters" / version.digest[:16]
    assert version.num_bytes == sum(file.stat().st_size for file in new.source.iterdir())
    assert version.digest == digest_of_folder(version.path) == digest_of_folder(new.source)
    registry.verify_files(version)


def test_register_keeps_what_belongs_to_the_adapter_and_nothing_else(registry: Registry, make_new: MakeNew) -> None:
    new = make_new()
    for name in ("adapter.lock.json", "chat_template.jinja", "optimizer.pt"):
        (new.source / name).write_text("{}")
    kept = {file.name for file in registry.register(new).path.iterdir()}
    assert kept == {"adapter_model.safetensors", "adapter_config.json", "adapter.lock.json", "chat_template.jinja", "adapter.seal.json"}


def test_register_keeps_companions_outside_the_digest(registry: Registry, make_new: MakeNew) -> None:
    bare = registry.register(make_new())
    companions = {"fingerprint.json": b"{}", "routing.safetensors": b"12"}
    version = registry.register(replace(make_new("twin"), companions=companions))  # the folder was there without them
    assert version.digest == bare.digest == digest_of_folder(version.path)
    assert {name: (version.path / name).read_bytes() for name in companions} == companions
    registry.register(replace(make_new("third"), companions={"fingerprint.json": b"other"}))
    assert (version.path / "fingerprint.json").read_bytes() == b"{}"
    entry = read_audit(registry.engine, "twin@v1")[0]
    assert entry.details["fingerprint_digest"] == digest_of_file(version.path / "fingerprint.json")


def test_names_by_digest(registry: Registry, make_new: MakeNew) -> None:
    first, _, twin = registry.register(make_new("a")), registry.register(make_new("a", "w2")), registry.register(make_new("b"))
    assert registry.names_by_digest()[first.digest] == twin.id
    assert sorted(registry.names_by_digest().values()) == ["a@v2", "b@v1"]


def test_digest_is_of_the_two_files_alone(make_new: MakeNew) -> None:
    source = make_new().source
    before = digest_of_folder(source)
    (source / "README.md").write_text("not weights")
    names = ("adapter_model.safetensors", "adapter_config.json")
    assert digest_of_folder(source) == before == digest_of({name: digest_of_file(source / name) for name in names})


def test_versions_count_up_by_name(registry: Registry, make_new: MakeNew) -> None:
    names = [registry.register(make_new(name, weights)).id for name, weights in (("a", "w1"), ("a", "w2"), ("b", "w3"), ("a", "w3"))]
    assert names == ["a@v1", "a@v2", "b@v1", "a@v3"]
    assert [version.id for version in registry.history("a")] == ["a@v3", "a@v2", "a@v1"]
    assert [version.id for version in registry.list_versions()] == ["a@v3", "a@v2", "a@v1", "b@v1"]


def test_same_bytes_under_the_same_name_are_one_version(registry: Registry, make_new: MakeNew) -> None:
    first = registry.register(make_new())
    assert registry.register(replace(make_new(), run_id="run-2")) == first
    assert [entry.action for entry in read_audit(registry.engine)] == ["register"]


@pytest.mark.parametrize("name", ["", "Help", "a b", "a@v1", "-a", "a" * 64, "ä", "a\n"])
def test_register_refuses_names_that_could_be_misread(registry: Registry, make_new: MakeNew, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name an adapter"):
        registry.register(make_new(name))


def test_register_names_missing_files(registry: Registry, make_new: MakeNew, home: Path) -> None:
    new = make_new()
    (new.source / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"adapter_config\.json missing"):
        registry.register(new)
    assert registry.list_versions() == ()
    assert not (home / "adapters").exists()


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "adapter.lock.json", "chat_template.jinja"])
def test_register_does_not_follow_links_out_of_the_folder(registry: Registry, make_new: MakeNew, home: Path, file: str) -> None:
    new, secret = make_new(), home.parent / "secret"
    secret.write_text("not an adapter's")
    (new.source / file).unlink(missing_ok=True)
    (new.source / file).symlink_to(secret)
    with pytest.raises(AdapterError, match=rf"{file} in .* symbolic links: put the files themselves there"):
        registry.register(new)
    assert not (home / "adapters").exists()


def test_register_writes_nothing_through_a_link_in_its_place(registry: Registry, make_new: MakeNew, home: Path) -> None:
    new, elsewhere = make_new(), home.parent / "elsewhere"
    elsewhere.mkdir()
    (home / "adapters").mkdir(parents=True, exist_ok=True)
    (home / "adapters" / digest_of_folder(new.source)[:16]).symlink_to(elsewhere)
    with pytest.raises(IntegrityError, match="is a symbolic link"):
        registry.register(replace(new, companions={"fingerprint.json": b"{}"}))
    assert list(elsewhere.iterdir()) == []


def test_register_notices_damaged_files_in_its_place(registry: Registry, make_new: MakeNew) -> None:
    version = registry.register(make_new())
    (version.path / "adapter_model.safetensors").write_text("changed")
    with pytest.raises(IntegrityError, match="remove the folder"):
        registry.register(make_new("other"))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("helpdesk", "helpdesk@v1"),  # its champion
        ("helpdesk@champion", "helpdesk@v1"),
        ("helpdesk@v2", "helpdesk@v2"),
        ("helpdesk@sha256:{2}", "helpdesk@v2"),
        ("helpdesk@sha256:{2:.6}", "helpdesk@v2"),
        ("other", "other@v2"),  # no champion: its newest
    ],
)
def test_resolve_knows_every_kind_of_name(registry: Registry, make_new: MakeNew, make_gate: MakeGate, name: str, found: str) -> None:
    first, second = (registry.register(make_new(weights=weights)) for weights in ("w1", "w2"))
    for weights in ("w1", "w2"):
        registry.register(make_new("other", weights))
    registry.record_gate(make_gate(first), first)
    promote(registry, first)
    assert registry.resolve(name.format(None, first.digest, second.digest)).id == found


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("nobody", NotFoundError, "no adapter 'nobody': there are billing, helpdesk"),
        ("helpdeks", NotFoundError, "did you mean 'helpdesk'"),
        ("helpdesk@v9", NotFoundError, "adapter 'helpdesk' has versions v1, v2 and no aliases$"),
        ("helpdesk@champoin", NotFoundError, "versions v1, v2 and no aliases"),
        ("helpdesk@", NotFoundError, "'helpdesk@' does not exist"),
        ("helpdesk@sha256:ab", UsageError, "6 to 64 hex digits"),
        ("helpdesk@sha256:xyzxyz", UsageError, "6 to 64 hex digits"),
        ("helpdesk@sha256:000000", NotFoundError, "begins with '000000': there are helpdesk@v2 = sha256:"),
    ],
)
def test_resolve_says_what_there_is(registry: Registry, make_new: MakeNew, name: str, error: type[LorimerError], says: str) -> None:
    for adapter, weights in (("helpdesk", "w1"), ("helpdesk", "w2"), ("billing", "w1")):
        registry.register(make_new(adapter, weights))
    with pytest.raises(error, match=says):
        registry.resolve(name)


def test_resolve_of_a_mistyped_alias_names_the_near_one(registry: Registry, make_new: MakeNew, make_gate: MakeGate) -> None:
    version = registry.register(make_new())
    registry.record_gate(make_gate(version), version)
    promote(registry, version)
    with pytest.raises(NotFoundError, match="versions v1 and aliases champion; did you mean 'helpdesk@champion'"):
        registry.resolve("helpdesk@champoin")


def test_resolve_of_an_ambiguous_digest_asks_for_more(registry: Registry, make_new: MakeNew) -> None:
    registry.register(make_new())
    with begin_write(registry.engine) as connection:
        (row,) = connection.execute(select(adapter_versions)).mappings()
        twin = {**row, "version": 2, "digest": row["digest"][:32] + "0" * 32}
        connection.execute(insert(adapter_versions).values(twin))
    with pytest.raises(UsageError, match="fits helpdesk@v2, helpdesk@v1: give more digits"):
        registry.resolve(f"helpdesk@sha256:{row['digest'][:20]}")


def test_resolve_of_an_empty_registry_says_what_to_do(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="none is registered yet; train one"):
        registry.resolve("helpdesk")


def test_newest_gate_of_the_bytes_counts(registry: Registry, make_new: MakeNew, make_gate: MakeGate) -> None:
    version = registry.register(make_new())
    passed, failed = make_gate(version, "PASS"), make_gate(version, "FAIL")
    assert registry.record_gate(passed, version).gate_verdict == "PASS"
    judged = registry.record_gate(failed, version)
    assert (judged.gate_verdict, judged.gate_digest, judged.report_digest) == ("FAIL", failed.digest, failed.report_digest)
    assert registry.record_gate(passed, version).gate_verdict == "FAIL"  # the same old result again changes nothing
    assert registry.newest_gate(version) == failed
    assert [entry.action for entry in read_audit(registry.engine)] == ["register", "record_gate", "record_gate"]


def test_gate_holds_for_the_same_bytes_on_the_same_base_only(registry: Registry, make_new: MakeNew, make_gate: MakeGate) -> None:
    version = registry.register(make_new())
    registry.record_gate(make_gate(version), version)
    assert registry.register(make_new("twin")).gate_verdict == "PASS"
    assert registry.register(make_new("stranger", base_digest="c" * 64)).gate_verdict is None
    assert registry.newest_gate(registry.resolve("stranger")) is None


@pytest.mark.parametrize("change", [{"candidate_digest": "f" * 64}, {"base_digest": "f" * 64}])
def test_gate_of_other_bytes_is_refused(registry: Registry, make_new: MakeNew, make_gate: MakeGate, change: dict[str, Any]) -> None:
    version = registry.register(make_new())
    with pytest.raises(IntegrityError, match="the gate judged"):
        registry.record_gate(replace(make_gate(version), **change), version)
    assert registry.resolve("helpdesk").gate_verdict is None


@pytest.mark.parametrize("damage", [lambda file: file.write_text("other"), lambda file: file.unlink()])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_changed_files_are_noticed(registry: Registry, make_new: MakeNew, damage: Callable[[Path], object], name: str) -> None:
    version = registry.register(make_new())
    damage(version.path / name)
    with pytest.raises(IntegrityError, match="helpdesk@v1"):
        registry.verify_files(version)


def test_home_may_move(registry: Registry, make_new: MakeNew, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register(make_new())
    registry.engine.dispose()
    home.rename(tmp_path / "moved")
    monkeypatch.setenv("LORIMER_HOME", str(tmp_path / "moved"))
    moved = Registry(open_database())
    moved.verify_files(moved.resolve("helpdesk"))


def register_all(folders: list[NewVersion], barrier: "multiprocessing.synchronize.Barrier") -> None:
    registry = Registry(open_database())
    barrier.wait()
    for new in folders:
        registry.register(new)


def test_processes_that_register_at_once_lose_nothing(database: str, make_new: MakeNew) -> None:
    """Four processes, ten adapters of their own each and five that all of them register."""
    shared = [make_new(weights=f"shared{n}") for n in range(5)]
    own = [[make_new(weights=f"w{process}-{n}") for n in range(10)] for process in range(4)]
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(4)
    processes = [fork.Process(target=register_all, args=([*adapters[:5], *shared, *adapters[5:]], barrier)) for adapters in own]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 4
    registry = Registry(open_database())
    versions = registry.history("helpdesk")
    assert sorted(version.version for version in versions) == list(range(1, 46))
    assert len({version.digest for version in versions}) == 45
    assert len(read_audit(registry.engine)) == 45
    for version in versions:
        registry.verify_files(version)
