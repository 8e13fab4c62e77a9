"""A store between two homes: folders appear whole, by digest, or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import FRESH, make_dataset, work_in_home

from lorimer import blobs
from lorimer.blobs import fetch, open_store, publish, publish_file, published_names, refresh_file, remove
from lorimer.config import home as home_folder
from lorimer.data.dataset import dataset_names, list_datasets, read_dataset
from lorimer.database import open_database
from lorimer.errors import ConfigError, IntegrityError, StorageError
from lorimer.registry.registry import Registry
from lorimer.storage import write_bytes

Switch = Callable[[str], Path]


@pytest.fixture(params=["file", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/shared" if request.param == "file" else str(request.getfixturevalue("s3_url"))


@pytest.fixture
def switch(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Switch:
    """Go to another home with the same store."""
    monkeypatch.setenv("LORIMER_STORAGE", store_url)

    def go(name: str) -> Path:
        monkeypatch.setenv("LORIMER_HOME", str(tmp_path / name))
        return tmp_path / name

    return go


def fill(folder: Path, **files: bytes) -> Path:
    for name, data in files.items():
        write_bytes(folder / name, data)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folder_goes_from_home_to_home(switch: Switch) -> None:
    published = fill(switch("a") / "adapters" / "x", weights=b"1" * 100_000, config=b"{}", **{".temporary": b"no"})
    (published / "deep").mkdir()
    write_bytes(published / "deep" / "file", b"")
    publish(published)
    fetched = switch("b") / "adapters" / "x"
    assert fetch(fetched)
    assert contents(fetched) == {"weights": b"1" * 100_000, "config": b"{}", "deep/file": b""}
    assert not fetch(switch("b") / "adapters" / "y")


def test_files_added_later_join_those_that_are_there(switch: Switch) -> None:
    for name, files in {"a": {"weights": b"1", "first": b"2"}, "b": {"weights": b"1", "second": b"3"}}.items():
        publish(fill(switch(name) / "adapters" / "x", **files))
    kept = fill(switch("c") / "adapters" / "x", weights=b"mine")
    assert fetch(kept)
    assert contents(kept) == {"weights": b"mine", "first": b"2", "second": b"3"}


def test_half_an_upload_is_never_seen(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(switch("a") / "adapters" / "x", a=b"1", b=b"2")

    def fail(self: blobs.Store, key: str, data: bytes) -> None:
        raise StorageError("the line was cut")

    with monkeypatch.context() as patched:
        patched.setattr(blobs.Store, "write", fail)
        with pytest.raises(StorageError, match="cut"):
            publish(folder)
    assert not fetch(switch("b") / "adapters" / "x")
    switch("a")
    publish(folder)  # what had arrived is sent again, and does no harm
    assert fetch(switch("b") / "adapters" / "x")


def test_changed_bytes_in_the_store_are_noticed(switch: Switch) -> None:
    publish(fill(switch("a") / "adapters" / "x", weights=b"1", config=b"2"))
    store = open_store()
    assert store is not None
    entry = (store.manifest(home_folder() / "adapters" / "x") or {})["weights"]
    store.write(store.key(home_folder() / "adapters" / "x", entry.sha256), b"3")
    folder = switch("b") / "adapters" / "x"
    with pytest.raises(IntegrityError, match="its manifest says"):
        fetch(folder)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ".hidden", "a//b", "a\\b", ""])
def test_names_that_lead_out_of_the_folder_are_refused(switch: Switch, name: str) -> None:
    folder = switch("a") / "adapters" / "x"
    store = open_store()
    assert store is not None
    store.write(store.key(folder, "manifest.json"), json.dumps({"files": {name: {"sha256": "0" * 64, "num_bytes": 1}}}).encode())
    with pytest.raises(IntegrityError, match="no file of a folder"):
        fetch(folder)


def test_removed_is_gone(switch: Switch) -> None:
    folder = fill(switch("a") / "adapters" / "x", weights=b"1")
    publish(folder)
    assert remove(folder)
    assert not remove(folder)
    assert not fetch(switch("b") / "adapters" / "x")


def test_single_files_follow_the_store(switch: Switch) -> None:
    pointer = fill(switch("a") / "datasets", **{"one.json": b"1"}) / "one.json"
    publish_file(pointer)
    other = switch("b") / "datasets" / "one.json"
    refresh_file(other)
    assert other.read_bytes() == b"1"
    assert published_names(other.parent, ".json") == {"one"}
    assert published_names(other.parent / "empty", ".json") == set()
    refresh_file(other.parent / "two.json")
    assert not (other.parent / "two.json").exists()


def test_datasets_and_their_names_are_shared(switch: Switch, tmp_path: Path) -> None:
    switch("a")
    first = make_dataset("tickets", tmp_path, "one")
    switch("b")
    assert read_dataset("tickets").train == first.train
    second = make_dataset("tickets", tmp_path, "two")
    switch("a")
    assert read_dataset("tickets").digest == second.digest
    assert read_dataset(first.digest).train == first.train
    switch("c")
    assert dataset_names() == ["tickets"]
    assert [summary.digest for summary in list_datasets()] == [second.digest]


def test_two_homes_of_one_postgresql_and_one_s3_see_each_others_work(
    s3_url: str, postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORIMER_STORAGE", s3_url)
    monkeypatch.setenv("LORIMER_DATABASE", postgresql_url)
    barrier = FRESH.Barrier(2, timeout=300)
    processes = [
        FRESH.Process(target=work_in_home, args=(dict(os.environ), tmp_path / name, name, barrier, tmp_path / "runs" / name))
        for name in ("first", "second")
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 0]
    engine = open_database()
    assert [version.id for version in Registry(engine).list_versions()] == ["first@v1", "second@v1"]
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "said"),
    [("somewhere", "is no URL"), ("nosuch://bucket/x", "names no store that is known here")],
)
def test_url_that_is_none_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch, url: str, said: str) -> None:
    monkeypatch.setenv("LORIMER_STORAGE", url)
    with pytest.raises(ConfigError, match=said):
        open_store()


def test_store_that_refuses_or_is_away_is_one_sentence(s3_url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIMER_STORAGE", "s3://somebody-elses/x")
    with pytest.raises(StorageError, match="check its keys"):
        publish(fill(home / "adapters" / "x", weights=b"1"))
    monkeypatch.setenv("LORIMER_STORAGE", s3_url)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    import fsspec
    import s3fs

    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StorageError, match="check its keys"):
        publish(home / "adapters" / "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StorageError, match=r"store 's3://.*' does not do what it is asked"):
        publish(home / "adapters" / "x")
    fsspec.filesystem("s3").clear_instance_cache()


def test_without_a_store_nothing_happens(home: Path) -> None:
    folder = fill(home / "adapters" / "x", weights=b"1")
    publish(folder)
    assert not fetch(folder)
    assert not remove(folder)
