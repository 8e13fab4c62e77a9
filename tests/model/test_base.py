"""Finding, checking and loading a base."""

import json
from pathlib import Path

import pytest
import torch

from fakes import save_tiny_base
from lorimer.errors import EngineError, IntegrityError, NotFoundError
from lorimer.model import shipped
from lorimer.model.base import digest_of_base, find_base, load_base
from lorimer.storage import digest_of_file, write_json


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma3-270n", "did you mean 'gemma3-270m'"),
        ("nothing", "neither a shipped base nor a folder"),
        ("someone/some-base", r"hf download someone/some-base"),
        ("./nowhere/at-all", "neither a shipped base nor a folder"),
    ],
)
def test_missing_base_says_what_to_do(name: str, reason: str) -> None:
    with pytest.raises(NotFoundError, match=reason):
        find_base(name)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotFoundError, match=r"has no \*\.safetensors"):
        find_base(str(tmp_path))


def test_loaded_base_carries_the_digest_of_its_files(tmp_path: Path) -> None:
    digest = save_tiny_base(tmp_path / "base", "qwen3")
    base = load_base(str(tmp_path / "base"), dtype=torch.float32)
    assert base.digest == digest
    assert base.max_len == 512
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert digest_of_base(tmp_path / "base") != digest


def test_prepared_base_that_changed_is_refused(home: Path) -> None:
    folder = home / "bases" / "gemma3-270m"
    save_tiny_base(folder)
    write_json(folder / shipped.MANIFEST, {"files": {p.name: digest_of_file(p) for p in folder.iterdir()}})
    load_base("gemma3-270m", dtype=torch.float32)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(IntegrityError, match=r"config\.json changed since it was prepared"):
        load_base("gemma3-270m")


def test_shipped_package_with_other_bytes_is_refused_and_leaves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages" / "fake_base_package"
    package.mkdir(parents=True)
    (package / "part").write_bytes(b"not the file we know")
    (package / "__init__.py").write_text("from pathlib import Path\ndef chunk_paths():\n    return [Path(__file__).parent / 'part']\n")
    monkeypatch.syspath_prepend(str(package.parent))
    base = shipped.ShippedBase(package="fake_base_package", extra="x", sha256="0" * 64, num_bytes_needed=1, terms="")
    monkeypatch.setitem(shipped.SHIPPED, "fake", base)
    with pytest.raises(IntegrityError, match="damaged or were changed"):
        find_base("fake")
    assert list((home / "bases").iterdir()) == []


def test_shipped_base_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    base = shipped.ShippedBase(package="no_such_package_here", extra="quickstart", sha256="", num_bytes_needed=1, terms="")
    monkeypatch.setitem(shipped.SHIPPED, "absent", base)
    with pytest.raises(NotFoundError, match=r"pip install 'lorimer\[quickstart\]'"):
        find_base("absent")


@pytest.mark.parametrize(
    ("memory", "quantisation", "reason"),
    [(0.5, None, "hold it in fewer bits with `quantise: nf4`"), (0.1, None, "take a smaller base"), (0.3, "nf4", "take a smaller base")],
)
def test_base_too_large_for_memory_is_refused_before_it_is_read(
    memory: float, quantisation: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from lorimer.model import base as base_module

    save_tiny_base(tmp_path / "base")
    size = (tmp_path / "base" / "model.safetensors").stat().st_size
    small = replace(base_module.probe(), memory_bytes=int(memory * size))
    monkeypatch.setattr(base_module, "probe", lambda: small)
    monkeypatch.setattr(base_module, "digest_of_base", lambda _: pytest.fail("it was read"))
    with pytest.raises(EngineError, match=reason):
        load_base(str(tmp_path / "base"), quantisation=quantisation)
