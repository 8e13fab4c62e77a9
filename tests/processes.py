"""What tests have done in processes of their own: they begin with the engine imported and nothing run.

Forks of the test's own process would not do: autograd refuses one that has trained. `FRESH` forks from a server that only imports.
"""

import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

from lorimer import erase
from lorimer.data.curate import curate
from lorimer.data.dataset import Dataset, read_dataset
from lorimer.database import open_database
from lorimer.registry import fence, takeout
from lorimer.registry.erasures import list_erasures
from lorimer.registry.records import NewVersion
from lorimer.registry.registry import Registry
from lorimer.storage import canonical_json, write_bytes

FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["lorimer.erase"])

CRASHED = 77
CRASHES: dict[str, tuple[Any, str]] = {
    "after a state": (erase, "change"),
    "before the fence": (erase, "fence"),
    "while routes are held": (fence, "record"),
    "after the new dataset": (takeout, "make_replacement"),
    "after its name moved": (takeout, "repoint"),
    "after the request log": (takeout, "remove_requests"),
    "after the old dataset": (takeout, "remove_folder"),
    "after the adapter": (takeout, "remove_adapter"),
    "after the runs": (takeout, "remove_runs"),
    "after the key": (takeout, "_destroy_keys"),
    "after the vacuum": (takeout, "scrub_database"),
    "after the search": (takeout, "verify_absence"),
    "after training": (erase, "_judge"),
    "after the release": (erase, "promote"),
    "after the receipt": (erase, "make_receipt"),
}
POINTS = [("after a state", number) for number in range(6)] + [(name, 0) for name in CRASHES if name != "after a state"]
"""Where an erasure is cut off: after which call of a function, counted from 0."""


def crash_in_erasure(environment: dict[str, str], point: str, number: int) -> None:
    """Carry out the one erasure there is, and end as if the power went at a point."""
    os.environ.clear()  # the server that children fork from has the environment of whichever test started it
    os.environ.update(environment)
    torch.set_num_threads(1)
    module, name = CRASHES[point]
    own, count = getattr(module, name), iter(range(100))

    def crashes(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        if next(count) == number:
            os._exit(CRASHED)
        return result

    setattr(module, name, crashes)
    registry = Registry(open_database())
    for _ in erase.carry_out(registry, list_erasures(registry)[0].id):
        pass


def make_dataset(name: str, folder: Path, word: str) -> Dataset:
    """Twenty rows that begin with a word."""
    rows = ({"prompt": f"{word} {number}?", "completion": f"yes, {number}"} for number in range(20))
    write_bytes(folder / f"{name}.jsonl", b"".join(canonical_json(row) + b"\n" for row in rows))
    return curate([folder / f"{name}.jsonl"], name=name)


def work_in_home(environment: dict[str, str], home: Path, name: str, barrier: Barrier, source: Path) -> None:
    """A home's process: makes an adapter and a dataset, then wants those of all."""
    os.environ.clear()
    os.environ.update(environment, LORIMER_HOME=str(home))
    registry = Registry(open_database())
    digests = {"base_digest": "b" * 64, "dataset_digest": "d" * 64, "template_digest": "t" * 64}
    write_bytes(source / "adapter_model.safetensors", name.encode() * 1000)
    write_bytes(source / "adapter_config.json", b"{}")
    numbers = {"rank": 1, "alpha": 1.0, "num_parameters": 1}
    registry.register(NewVersion(name=name, source=source, base_name="b", dataset_name="t", run_id="r", **digests, **numbers))
    make_dataset(name, source, name)
    barrier.wait()
    for other in ("first", "second"):
        version = registry.resolve(other)
        registry.verify_files(version)
        assert (version.path / "adapter_model.safetensors").read_bytes() == other.encode() * 1000
        assert read_dataset(other).train[0].messages[0].content.startswith(other)
