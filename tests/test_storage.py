"""Writes appear whole or not at all; a full disk is one sentence."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from lorimer import storage
from lorimer.errors import IntegrityError, StorageError
from lorimer.storage import (
    append_jsonl,
    copy_checked,
    digest_of,
    new_folder,
    read_jsonl,
    require_free_bytes,
    scratch_folder,
    write_bytes,
    write_jsonl,
)


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_digest_ignores_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": "é"}) == digest_of({"b": "é", "a": 1})


def test_write_replaces_whole_files_and_leaves_no_others(tmp_path: Path) -> None:
    write_bytes(tmp_path / "f", b"one")
    write_bytes(tmp_path / "f", b"two")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"two")]


def test_full_disk_keeps_the_old_file_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "f", b"old")
    monkeypatch.setattr(storage.os, "fsync", no_space)
    with pytest.raises(StorageError, match="disk is full while writing"):
        write_bytes(tmp_path / "f", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"old")]


def test_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "d") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "d").exists()
    assert (tmp_path / "d" / "x").read_text() == "1"


def test_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "d") as folder:
            (folder / "x").write_text("1")
            no_space()

    with pytest.raises(StorageError, match="disk is full"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_folder_that_another_made_first_stays(tmp_path: Path) -> None:
    with new_folder(tmp_path / "d") as folder:
        (folder / "x").write_text("late")
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "x").write_text("first")
    assert (tmp_path / "d" / "x").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_jsonl_round_trip(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "f", [{"a": 1}])
    append_jsonl(tmp_path / "f", {"b": "é\n"})
    assert list(read_jsonl(tmp_path / "f")) == [{"a": 1}, {"b": "é\n"}]


def test_joined_parts_with_another_checksum_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p1").write_bytes(b"a")
    with pytest.raises(IntegrityError, match="damaged or were changed"):
        copy_checked([tmp_path / "p1"], tmp_path / "whole", "0" * 64)
    assert not (tmp_path / "whole").exists()


def test_too_little_space_is_said_before_writing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="needs 1000000000000 MB"):
        require_free_bytes(tmp_path / "not" / "there", 10**18, "it")


def test_scratch_folder_is_gone_however_it_ends_and_old_ones_are_cleared(tmp_path: Path) -> None:
    old, new = tmp_path / ".scratch.old", tmp_path / ".scratch.new"
    old.mkdir()
    new.mkdir()
    os.utime(old, (0, 0))

    def fail() -> None:
        with scratch_folder(tmp_path) as folder:
            (folder / "rows").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".scratch")] == [".scratch.new"]
