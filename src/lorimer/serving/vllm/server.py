"""The gateway before a vLLM: what is registered is told to it, it is looked at, or started, and then asked."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorimer.blobs import fetch
from lorimer.config import home
from lorimer.errors import EngineError, LorimerError
from lorimer.model.base import digests_of_base, find_base
from lorimer.model.base_text import BaseText, read_base_text
from lorimer.model.machine import probe
from lorimer.registry.registry import Registry
from lorimer.registry.sealing import Seals
from lorimer.serving.vllm.backend import VllmBackend
from lorimer.serving.vllm.launch import Launch, Supervisor, manifest_path, plan_launch, supervised
from lorimer.serving.vllm.manifest import Listed, Manifest
from lorimer.serving.vllm.wire import connect, look
from lorimer.storage import digest_of

DEFAULT_SEQUENCES = 32  # as the embedded engine's


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A base whose weights vLLM holds, and where what is registered for it is told."""

    folder: Path
    base: BaseText
    files: dict[str, str]
    """SHA-256 by name."""
    registry: Registry

    def publish(self) -> None:
        """Tell vLLM what is registered now.

        Raises:
            StorageError: if the disk is full or not writable.
        """
        adapters: dict[str, Listed] = {}
        for version in self.registry.list_versions():
            if version.erasure is not None:
                continue
            if not version.path.is_dir():
                fetch(version.path)  # vLLM reads folders, and knows no store
            known = adapters.get(version.digest)
            bases = (*known.bases, version.base_digest) if known else (version.base_digest,)
            adapters[version.digest] = Listed(folder=version.path, bases=tuple(dict.fromkeys(bases)))
        Manifest(base_files=self.files, adapters=adapters).write(manifest_path(self.base.digest))


def open_base(name: str, registry: Registry) -> Served:
    """A base by shipped name, folder or hub id, without its weights; its adapters are published.

    Raises:
        NotFoundError: if there is none of that name.
        IntegrityError: if its files are not those that were prepared.
    """
    folder = find_base(name)
    files = digests_of_base(folder)
    served = Served(folder=folder.resolve(), base=read_base_text(name, folder, digest_of(files)), files=files, registry=registry)
    served.publish()
    return served


def plan_vllm(
    served: Served, python: str, *, max_sequences: int = DEFAULT_SEQUENCES, max_len: int | None = None, options: Sequence[str] = ()
) -> Launch:
    """How to start vLLM for a base, in the precision that the embedded engine would use here; see `plan_launch`."""
    return plan_launch(
        python=python,
        base=served.folder,
        base_digest=served.base.digest,
        versions=served.registry.list_versions(),
        dtype=str(probe().dtype).removeprefix("torch."),
        max_sequences=max_sequences,
        max_len=max_len,
        options=options,
    )


def open_backend(served: Served, url: str, key: str) -> VllmBackend:
    """A backend before a vLLM that runs.

    Raises:
        UnavailableError: if it does not answer, or not with this key.
        EngineError: if it has not our plugin, or serves another base.
    """
    status = look(url, key)
    if status.base_digest != served.base.digest:
        raise EngineError(
            f"vLLM at {url!r} serves base {status.base_digest[:12]}, not {served.base.name!r} ({served.base.digest[:12]}): "
            "start it with that one, or name the other with --base"
        )
    return VllmBackend(connect(url, key), served.base, status, served.publish, Seals(served.registry.engine))


@contextlib.contextmanager
def started_backend(served: Served, launch: Launch) -> Iterator[VllmBackend]:
    """A vLLM of our own, for as long as the block lasts, and a backend before it.

    Raises:
        ConfigError: if there is no such Python.
        LorimerError: if it does not start.
    """
    supervisor = Supervisor(launch, log=home() / "vllm" / "vllm.log", is_ready=is_answering(launch))
    with supervised(supervisor):
        yield open_backend(served, launch.url, launch.key)


def is_answering(launch: Launch) -> Callable[[], bool]:
    """Asks whether a vLLM that was started answers by now."""

    def answers() -> bool:
        try:
            look(launch.url, launch.key)
        except LorimerError:
            return False
        return True

    return answers
