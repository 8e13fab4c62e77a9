"""A person's rows taken back on a tiny base: exactness, every place searched, restored backups, crashes between any two steps."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import CRASHED, FRESH, POINTS, crash_in_erasure
from sqlalchemy import text

from fakes import save_tiny_base
from lorimer import erase
from lorimer.config import ColumnNames, read_recipe
from lorimer.data.curate import curate
from lorimer.data.dataset import read_dataset
from lorimer.data.split import Splits
from lorimer.data.subjects import find_key
from lorimer.database import open_database
from lorimer.errors import ErasedError
from lorimer.evaluation.evaluate import Answer
from lorimer.judging import SuiteFinding, ask_suites
from lorimer.model.base import load_base
from lorimer.pipeline import build, train_on
from lorimer.registry import replay
from lorimer.registry.audit import read_audit
from lorimer.registry.audit_check import check_audit
from lorimer.registry.backup import backup, restore
from lorimer.registry.erasures import Erasure, approve, find_erasure, list_erasures
from lorimer.registry.receipt import read_receipt
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.registry.trust import trusted

NUM_ROWS = 400
WHO = "customer-17"
SECRET = 'zebra\'s "café" &'
"""In every row of theirs, spelled differently in each kind of file."""
KEYS = "metric: exact\nlearning_rate: 0.02\nrank: 4\nsteps: 40\ngate: {beats_base: true, min_items: 3}\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a dataset, two versions trained on it, the second on rows of nobody else's, a report, a request log, a backup."""
    folder = tmp_path_factory.mktemp("made")
    patch = pytest.MonkeyPatch()
    patch.setenv("LORIMER_HOME", str(folder / "home"))
    patch.setenv("LORIMER_ACTOR", "ada")
    save_tiny_base(folder / "base", "gemma3")
    write_rows(folder / "rows.jsonl")
    curate([folder / "rows.jsonl"], name="tickets", columns=ColumnNames(subject="customer"))
    (folder / "recipe.yaml").write_text(f"base: {folder / 'base'}\ndataset: tickets\nname: demo\n{KEYS}")
    made = list(build(read_recipe(folder / "recipe.yaml")))
    assert any(isinstance(one, Answer) for one in made)
    engine = open_database()
    version = Registry(engine).resolve("demo")
    asked = [one for one in ask_suites([version], load_base(version.base_name), ["domain"], against=None)]
    assert sum(isinstance(one, SuiteFinding) for one in asked) == 1
    engine.dispose()
    log = [{"id": str(number), "user": WHO if number % 2 else "customer-2"} for number in range(6)]
    (folder / "home" / "requests").mkdir()
    (folder / "home" / "requests" / "2026-11-01.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    engine = open_database()
    backup(engine, folder / "before.tar")
    engine.dispose()
    patch.undo()
    return folder


def write_rows(path: Path) -> None:
    rows = [
        {"prompt": f"ticket number {i}" + (f" of {SECRET} {i}" if i % 9 == 0 else ""), "completion": "ok", "customer": who(i)}
        for i in range(NUM_ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def who(i: int) -> str:
    return WHO if i % 9 == 0 else f"customer-{100 + i % 40}"


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that home for each test."""
    shutil.copytree(made / "home", tmp_path / "home")
    monkeypatch.setenv("LORIMER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LORIMER_ACTOR", "ada")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("LORIMER_DATABASE", raising=False)
    monkeypatch.delenv("LORIMER_STORAGE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    engine = open_database()
    yield Registry(engine)
    engine.dispose()


def erase_all(registry: Registry) -> Erasure:
    asked = erase.request(registry, [WHO])
    approve(registry, [asked.id], actor="bob")
    *_, last = erase.carry_out(registry, asked.id)
    assert isinstance(last, Erasure)
    return last


def grep(*folders: Path) -> list[str]:
    """Files that hold words of the rows, in any spelling; or the person's own id."""
    spelled = {SECRET, json.dumps(SECRET)[1:-1], json.dumps(SECRET, ensure_ascii=False)[1:-1], "zebra"}
    needles = [one.encode() for one in (*spelled, WHO)]
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return [str(path) for path in files if any(needle in path.read_bytes() for needle in needles)]


def rows_of(registry: Registry) -> dict[str, list[tuple[Any, ...]]]:
    with registry.engine.connect() as connection:
        names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")).scalars().all()
        return {name: [tuple(row) for row in connection.execute(text(f'SELECT * FROM "{name}"'))] for name in names}


def check_erased(registry: Registry, home: Path) -> None:
    """All that has to be so at the end, however it was reached."""
    assert grep(home) == []
    new = read_dataset("tickets")
    assert len(new.train + new.validation + new.test) == NUM_ROWS - len(range(0, NUM_ROWS, 9))
    first, second = registry.history("demo")[::-1]
    assert (first.erasure is not None, second.erasure) == (True, None)
    assert not first.path.exists()
    assert registry.resolve("demo@champion") == second
    assert second.dataset_digest == new.digest
    registry.verify_files(second)
    assert find_key(registry.engine, WHO) is None
    assert [path.name for path in (home / "runs").iterdir()] == [second.run_id]
    with pytest.raises(ErasedError, match="has fenced it off"):
        registry.resolve("demo@v1")
    report = check_audit(registry.engine)
    assert report.problems == ()


def test_nothing_is_left_and_what_is_retrained_is_exact(registry: Registry, home: Path, made: Path) -> None:
    old = read_dataset("tickets")
    key = find_key(registry.engine, WHO)
    assert len(grep(home)) > 4
    done = erase_all(registry)
    check_erased(registry, home)
    new = read_dataset("tickets")
    rows = {split: tuple(row for row in getattr(old, split) if row.subject != key) for split in ("train", "validation", "test")}
    assert (new.train, new.validation, new.test) == tuple(rows.values())  # splits are kept
    from lorimer.data.card import build_card
    from lorimer.data.dataset import write_dataset

    card = build_card("scratch", Splits(**rows), curation=old.card["curation"], sources=[], findings=[], problems=[])
    scratch = write_dataset("scratch", Splits(**rows), card)
    recipe = read_recipe(made / "recipe.yaml").model_copy(update={"name": "scratch", "dataset": "scratch"})
    trained = next(one for one in train_on(recipe, scratch, load_base(recipe.base)) if isinstance(one, AdapterVersion))
    again = registry.resolve("demo")
    files = [(version.path / "adapter_model.safetensors").read_bytes() for version in (trained, again)]
    assert files[0] == files[1]
    assert trained.digest == again.digest
    said = read_receipt(done.receipt, trusted(registry.engine))
    assert said["datasets"] == [{"old_root": old.digest, "new_root": new.digest}]
    assert said["adapters_retrained"][0]["digest"] == again.digest
    assert (said["num_records"], said["verification"]["removed"]["request_lines"]) == (NUM_ROWS // 9 + 1, 3)
    assert said["verification"]["search"]["num_texts"] == NUM_ROWS // 9 + 1
    assert key is not None
    assert WHO not in json.dumps(rows_of(registry), default=str)
    actions = [entry.action for entry in read_audit(registry.engine, done.id)]
    assert actions == [
        "request_erasure", "scope_erasure", "approve_erasure", "quarantine", "erase", "begin_retraining", "gate_erasure", "release",
        "certify_erasure",
    ]  # fmt: skip


@pytest.mark.parametrize("since", ["nothing", "half"])
def test_a_restored_backup_is_erased_again(registry: Registry, home: Path, made: Path, since: str) -> None:
    if since == "nothing":
        erase_all(registry)
    else:  # the request is on its way when the backup comes back
        asked = approve(registry, [erase.request(registry, [WHO]).id], actor="bob")
        for step in erase.carry_out(registry, asked.id):
            if isinstance(step, Erasure) and step.state == "quarantined":
                break
    registry.engine.dispose()
    restore(made / "before.tar", replace=True)
    assert grep(home) == []
    assert len(read_dataset("tickets").train) < NUM_ROWS
    (version,) = registry.history("demo")
    assert version.erasure is not None
    assert not version.path.exists()
    assert registry.aliases() == ()
    assert find_key(registry.engine, WHO) is None
    assert read_audit(registry.engine)[-1].action == "replay_tombstones"
    assert replay.replay_tombstones(registry.engine) is None
    (one,) = list_erasures(registry)
    assert one.state == ("certified" if since == "nothing" else "quarantined")
    if one.state == "quarantined":
        for _ in erase.carry_out(registry, one.id):
            pass
        check_erased(registry, home)


@pytest.mark.parametrize(("point", "number"), POINTS)
def test_a_crash_anywhere_is_resumed(home: Path, point: str, number: int) -> None:
    registry = Registry(open_database())
    asked = approve(registry, [erase.request(registry, [WHO]).id], actor="bob")
    registry.engine.dispose()
    process = FRESH.Process(target=crash_in_erasure, args=(dict(os.environ), point, number))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == CRASHED
    for _ in erase.carry_out(registry, asked.id):
        pass
    assert find_erasure(registry, asked.id).state == "certified"
    check_erased(registry, home)
    registry.engine.dispose()


def test_of_a_sharded_version_one_shard_is_trained_anew(home: Path, made: Path, registry: Registry) -> None:
    dataset = read_dataset("tickets")
    key = find_key(registry.engine, WHO)
    (home / "recipe.yaml").write_text(
        f"base: {made / 'base'}\ndataset: tickets\nname: parted\nprivacy: {{mode: sharded, shards: 3}}\n{KEYS}"
    )
    list(build(read_recipe(home / "recipe.yaml")))
    before = registry.resolve("parted@v1")
    held = {
        part.id: (registry.find(part.id).digest, (registry.find(part.id).path / "adapter_model.safetensors").read_bytes())
        for part in before.parts
    }
    theirs = [i for i in held if key in {row.subject for row in read_dataset(registry.find(i).dataset_digest).train}]
    assert len(theirs) == 1
    done = erase_all(registry)
    assert done.state == "certified"
    assert grep(home) == []
    after = registry.find("parted@v2")
    kept = {part.digest for part in after.parts} & {digest for digest, _ in held.values()}
    assert kept == {digest for name, (digest, _) in held.items() if name not in theirs}
    assert all(
        (registry.find_digest(digest).path / "adapter_model.safetensors").read_bytes() in {one for _, one in held.values()}
        for digest in kept
    )
    assert after.dataset_digest == read_dataset("tickets").digest != dataset.digest
    assert registry.history(theirs[0].partition("@")[0])[0].version == 2
    with pytest.raises(ErasedError):
        registry.resolve("parted@v1")
    aliases = {alias.id: alias.version for alias in registry.aliases("parted")}
    assert aliases == ({"parted@champion": 2} if (before.gate_verdict, after.gate_verdict) == ("PASS", "PASS") else {})
