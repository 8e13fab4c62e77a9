"""`adapters verify`: a line per check, and everything that differs. On a real tiny base, its tokenizer and a real dataset."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from fakes import random_lora, save_tiny_base, write_sealed
from lorimer.data.curate import curate
from lorimer.database import begin_write
from lorimer.errors import AdapterError, IntegrityError
from lorimer.evaluation.gates import GateResult
from lorimer.model.adapter import Lock, load_adapter, save_adapter
from lorimer.model.base import Base, load_base
from lorimer.registry.audit import read_audit
from lorimer.registry.compositions import compose
from lorimer.registry.imports import base_name_of, import_adapter, origin_of
from lorimer.registry.lock import whole_lock
from lorimer.registry.officers import add_key
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry, digest_of_folder
from lorimer.registry.seal import SEAL, hashes_of, make_seal, read_seal
from lorimer.registry.signing import open_signer
from lorimer.registry.verification import Verifier
from lorimer.storage import digest_of_file

MakeGate = Callable[..., GateResult]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A tiny base with files."""
    folder = tmp_path_factory.mktemp("base")
    save_tiny_base(folder)
    return load_base(str(folder))


@pytest.fixture
def dataset_digest(tmp_path: Path) -> str:
    """Of a real dataset in the home folder."""
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"prompt": f"What is {n}?", "completion": str(n)}) for n in range(30)))
    return curate([tmp_path / "rows.jsonl"], name="numbers").digest


def save(base: Base, folder: Path, dataset_digest: str = "", seed: int = 1) -> Path:
    lock = Lock(
        base_name=base.name, base_digest=base.digest, template_digest=base.renderer.template_digest, dataset_digest=dataset_digest,
        run_id="run-1", base_files=base.files, tokenizer_files=base.tokenizer_files, seeds={"training": 0}, libraries={"torch": "2"},
        recipe={"given": {"rank": 4}},
    )  # fmt: skip
    save_adapter(random_lora(base, seed=seed), folder, base, lock)
    return folder


@pytest.fixture
def version(registry: Registry, base: Base, dataset_digest: str, tmp_path: Path, make_gate: MakeGate) -> AdapterVersion:
    """One with everything that can be checked."""
    new = NewVersion(
        name="known", source=save(base, tmp_path / "run", dataset_digest), base_name=base.name, base_digest=base.digest,
        dataset_name="numbers", dataset_digest=dataset_digest, run_id="run-1", rank=4, alpha=8.0, num_parameters=1,
        template_digest=base.renderer.template_digest,
    )  # fmt: skip
    fingerprint = json.dumps({"adapter_digest": digest_of_folder(new.source)}).encode()
    version = registry.register(replace(new, companions={"fingerprint.json": fingerprint}))
    return registry.record_gate(make_gate(version), version)


def statuses(registry: Registry, version: AdapterVersion) -> dict[str, str]:
    return {one.check: one.status for one in Verifier(registry).verify(version).checks}


def difference(registry: Registry, version: AdapterVersion) -> str:
    """What differs, which is one thing."""
    (found,) = Verifier(registry).verify(version).differing
    return found


ALL = ("files", "seal", "lock", "base", "tokenizer", "template", "dataset", "gates", "fingerprint")


def test_what_is_as_it_was_is_ok(registry: Registry, version: AdapterVersion) -> None:
    assert statuses(registry, version) == dict.fromkeys(ALL, "ok")
    composed = compose(registry, "both", ["known*0.5"])
    assert statuses(registry, composed) == {f"known@v1 {name}": "ok" for name in ALL}


def test_the_whole_lock_has_what_came_later_beside_what_was_trained(registry: Registry, version: AdapterVersion, base: Base) -> None:
    lock = whole_lock(registry, version)
    trained = json.loads((version.path / "adapter.lock.json").read_text())
    assert {name: lock[name] for name in trained} == trained
    assert (lock["base_files"], lock["seeds"], lock["recipe"]) == (dict(base.files), {"training": 0}, {"given": {"rank": 4}})
    assert lock["fingerprint_digest"] == digest_of_file(version.path / "fingerprint.json") == lock["files"]["fingerprint.json"]
    assert lock["seal"]["key_ids"] == [open_signer().public.id]
    assert [(gate["digest"], gate["verdict"]) for gate in lock["gates"]] == [(version.gate_digest, "PASS")]
    composed = whole_lock(registry, compose(registry, "both", ["known*0.5"]))
    assert composed["parts"] == {"known@v1": lock}


def test_everything_that_differs_is_said(registry: Registry, version: AdapterVersion, base: Base, tmp_path: Path) -> None:
    verifier = Verifier(registry)
    folder, aside = Path(base.name), tmp_path / "aside"
    shutil.copytree(folder, aside)
    try:
        (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
        (folder / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text() + " ")
        (version.path / "adapter_config.json").write_text("{}")
        with begin_write(registry.engine) as connection:
            connection.execute(text("UPDATE gate_results SET verdict = 'FAIL'"))
        report = verifier.verify(version)
    finally:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
    differing = {text_.partition(":")[0] for text_ in report.differing}
    assert differing == {"files", "base", "tokenizer", "gates"}
    said = "; ".join(report.differing)
    for words in ("adapter_config.json has SHA-256", "config.json (locked", "tokenizer_config.json (locked", "was changed: it reads PASS"):
        assert words in said, words


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lock: {**lock, "base_digest": "e" * 64}, "lock: base_digest 'eeeeeeeeeeee'"),
        (lambda lock: {**lock, "dataset_digest": "e" * 64}, "lock: dataset_digest 'eeeeeeeeeeee'"),
        (lambda lock: [lock], "lock: adapter.lock.json holds no names"),
    ],
)
def test_a_lock_that_does_not_agree_with_the_database(
    registry: Registry, version: AdapterVersion, change: Callable[[dict[str, object]], object], said: str
) -> None:
    lock = json.loads((version.path / "adapter.lock.json").read_text())
    write_sealed(version.path, {"adapter.lock.json": json.dumps(change(lock)).encode()})
    assert difference(registry, version).startswith(said)


def test_a_fingerprint_sealed_later_is_not_the_registered_one(registry: Registry, version: AdapterVersion) -> None:
    write_sealed(version.path, {"fingerprint.json": b"{}"})
    assert "fingerprint.json has digest" in difference(registry, version)


def test_a_gate_result_put_in_behind_the_audit_chain(registry: Registry, version: AdapterVersion, make_gate: MakeGate) -> None:
    result = make_gate(version)
    with begin_write(registry.engine) as connection:
        values = {
            "d": result.digest,
            "a": version.digest,
            "b": version.base_digest,
            "r": result.report_digest,
            "j": json.dumps(result.to_json()),
        }
        connection.execute(text("INSERT INTO gate_results VALUES (99, :d, :a, :b, :r, 'PASS', :j, '')"), values)
    assert "is in no entry of the audit chain" in difference(registry, version)


def test_what_is_not_here_is_absent_and_no_fault(registry: Registry, version: AdapterVersion, base: Base, home: Path) -> None:
    shutil.rmtree(home / "datasets")
    folder = Path(base.name)
    folder.rename(folder.with_name("gone"))
    try:
        found = statuses(registry, version)
    finally:
        folder.with_name("gone").rename(folder)
    assert {name for name, status in found.items() if status == "absent"} == {"base", "tokenizer", "template", "dataset"}
    assert "differs" not in found.values()


def test_changed_rows_differ(registry: Registry, version: AdapterVersion, home: Path) -> None:
    (rows,) = (path for path in (home / "datasets").glob("*/train.jsonl"))
    rows.write_text(rows.read_text().replace("What", "Which", 1))
    assert difference(registry, version).startswith("dataset: ")


def test_another_base_is_refused_with_the_files_that_differ(version: AdapterVersion, tmp_path: Path) -> None:
    save_tiny_base(tmp_path / "other", seed=1)
    other = load_base(str(tmp_path / "other"))
    with pytest.raises(AdapterError, match=r"made for base .*, not for .*; model\.safetensors differs \(locked [0-9a-f]{12}, here"):
        load_adapter(version.path, other)


def test_another_tokenizer_is_refused_with_the_files_that_differ(version: AdapterVersion, base: Base, tmp_path: Path) -> None:
    shutil.copytree(base.name, tmp_path / "same")
    file = tmp_path / "same" / "tokenizer_config.json"
    file.write_text(file.read_text() + "\n")
    other = load_base(str(tmp_path / "same"))
    assert other.digest == base.digest
    with pytest.raises(AdapterError, match=r"made with another tokenizer than .*; tokenizer_config\.json differs"):
        load_adapter(version.path, other)


def test_import_needs_a_trusted_signature_or_leave(registry: Registry, base: Base, tmp_path: Path) -> None:
    folder = save(base, tmp_path / "elsewhere")
    assert base_name_of(folder) == base.name
    with pytest.raises(IntegrityError, match="not signed: import it with `--allow-unsigned`"):
        import_adapter(registry, folder, "sql", base)
    version = import_adapter(registry, folder, "sql", base, allow_unsigned=True, actor="ada")
    seal = read_seal(version.path)
    assert seal is not None
    assert (version.id, version.rank, seal.origin) == ("sql@v1", 4, "imported-unsigned")
    assert {"fingerprint.json", "adapter.lock.json"} <= set(seal.files)
    (entry,) = read_audit(registry.engine, "sql@v1")
    assert (entry.action, entry.details["origin"]) == ("import", "imported-unsigned")
    report = Verifier(registry).verify(version)
    assert report.differing == ()
    assert "came in unsigned" in next(one.found for one in report.checks if one.check == "seal")


def test_import_of_what_somebody_trusted_has_sealed(
    registry: Registry, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(base, tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setenv("LORIMER_HOME", str(tmp_path / "their home"))
        theirs = open_signer()
    (folder / SEAL).write_bytes(make_seal(hashes_of(folder), "registered", theirs))
    with pytest.raises(IntegrityError, match="which is not trusted here"):
        origin_of(registry, folder, allow_unsigned=False)
    add_key(registry, theirs.public, name="them")
    assert origin_of(registry, folder, allow_unsigned=False) == "imported-signed"
    version = import_adapter(registry, folder, "sql", base)
    assert read_seal(version.path).origin == "imported-signed"  # type: ignore[union-attr]
    (folder / "chat_template.jinja").write_text("changed on the way")
    with pytest.raises(IntegrityError, match=r"chat_template\.jinja has SHA-256"):
        import_adapter(registry, folder, "sql", base, allow_unsigned=True)


def test_import_of_a_plain_folder_pins_it_to_its_base(registry: Registry, base: Base, tmp_path: Path) -> None:
    folder = save(base, tmp_path / "plain")
    for name in ("adapter.lock.json", "chat_template.jinja"):
        (folder / name).unlink()
    version = import_adapter(registry, folder, "sql", base, allow_unsigned=True)
    lock = json.loads((version.path / "adapter.lock.json").read_text())
    assert (lock["base_digest"], lock["base_files"]) == (base.digest, dict(base.files))
    assert Verifier(registry).verify(version).differing == ()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "optimizer.pt").write_bytes(b"\x80"), "holds optimizer.pt, which may run code"),
        (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"), "adapter_model.safetensors missing"),
        (
            lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}'),
            "rank 4, adapter_config.json says 2",
        ),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"junk"), "missing or damaged"),
    ],
)
def test_import_of_what_does_not_fit_changes_nothing(
    registry: Registry, base: Base, tmp_path: Path, home: Path, spoil: Callable[[Path], object], said: str
) -> None:
    folder = save(base, tmp_path / "bad")
    spoil(folder)
    with pytest.raises(AdapterError, match=said):
        import_adapter(registry, folder, "sql", base, allow_unsigned=True)
    assert registry.list_versions() == ()
    assert not (home / "adapters").exists()
