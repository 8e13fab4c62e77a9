"""What models answered, kept by the digest of all that decides it: asked once, and gone on with after a crash.

A file is JSON lines of `[index, value]`, each written as it comes. A line that is not whole, and whatever follows it, is asked again.
"""

import json
from pathlib import Path
from typing import Any

from lorimer import __version__
from lorimer.config import home
from lorimer.inference.engine import Engine
from lorimer.storage import canonical_json, digest_of


class Kept:
    """The answers of one model to one task."""

    def __init__(self, engine: Engine, task_digest: str, model: str | None, **how: Any) -> None:
        """`model` is the digest of an adapter or composition, None for the base; `how` is what else decides an answer."""
        base = engine.base
        decides = {
            "version": __version__, "base": base.digest, "dtype": str(base.dtype), "template": base.renderer.template_digest,
            "adapter": model, "task": task_digest, **how,
        }  # fmt: skip
        self.path: Path = home() / "answers" / f"{digest_of(decides)}.jsonl"

    def read(self, num_samples: int) -> dict[int, Any]:
        """What is there, by the sample's index."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        found, num_whole = dict[int, Any](), 0
        for line in data.splitlines(keepends=True):
            try:
                index, value = json.loads(line)
                is_whole = line.endswith(b"\n") and isinstance(index, int) and 0 <= index < num_samples
            except (ValueError, TypeError, RecursionError):
                is_whole = False
            if not is_whole:
                break
            found[index] = value
            num_whole += len(line)
        if num_whole < len(data):  # what is added comes after what is whole
            with self.path.open("r+b") as file:
                file.truncate(num_whole)
        return found

    def add(self, values: dict[int, Any]) -> None:
        """Keep more of them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(b"".join(canonical_json([index, value]) + b"\n" for index, value in values.items()))
