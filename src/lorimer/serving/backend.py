"""What the gateway asks of whatever computes answers: sequences in, their tokens out. Prompts, text, names, keys and limits stay outside.

There are two: the embedded engine's thread (worker.py) and vLLM behind HTTP (vllm/backend.py).
"""

from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from lorimer.inference.sequence import FinishReason, Sequence
from lorimer.model.base_text import BaseText


class Progress(NamedTuple):
    """What is new of one sequence."""

    sequence: Sequence
    new_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    at: float
    """`time.perf_counter()` when the tokens were there."""


Gauge = tuple[str, Callable[[], float]]
"""What a number means, and what reads it."""
NO_FOLDERS: Mapping[str, Path] = {}


class Backend(Protocol):
    """Computes answers on one base and any registered adapter of it."""

    @property
    def name(self) -> str:
        """As messages name it."""

    @property
    def base(self) -> BaseText:
        """What it answers on."""

    @property
    def max_len(self) -> int:
        """Tokens the longest sequence may have, prompt and answer together."""

    @property
    def max_sequences(self) -> int:
        """Sequences it computes at once."""

    @property
    def is_running(self) -> bool:
        """Whether requests are taken."""

    @property
    def num_running(self) -> int:
        """Sequences that are computed."""

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for room or for their adapter."""

    @property
    def cache_usage(self) -> float:
        """Share of the cache's blocks in use; not a number where nobody knows."""

    @property
    def num_resident(self) -> int:
        """Adapters in memory."""

    @property
    def proofs(self) -> Mapping[str, bool]:
        """By digest, whether an adapter in memory or in quarantine answers as it did when it was registered."""

    @property
    def gauges(self) -> Mapping[str, Gauge]:
        """Numbers of its own for /metrics."""

    def start(self) -> None:
        """Take requests from now on."""

    def stop(self, *, grace_seconds: float = 0.0) -> None:
        """Let what runs go on for `grace_seconds`, and end the rest with an error.

        Any thread but the event loop's may ask, and more than once.
        """

    def submit(self, *sequences: Sequence, folders: Mapping[str, Path] = NO_FOLDERS) -> AsyncIterator[Progress]:
        """Run sequences; yields their progress until all have ended. `folders` holds the files of their adapters, by digest.

        Raises:
            UnsupportedError: if it does not do what they ask for.
            UnavailableError: if it cannot be reached, or not in time.
            EngineError: if it cannot serve them, failed in the middle, or has stopped.
            AdapterError: if an adapter's files do not fit the base.
            IntegrityError: if they are not the registered ones.
            QuarantineError: if an adapter does not answer as it did when it was registered.
        """

    def cancel(self, *sequences: Sequence) -> None:
        """End sequences soon, with finish reason `aborted`; those that have ended stay as they are."""

    async def load(self, digest: str, folder: Path) -> None:
        """Make an adapter resident, unless it is. It may leave again when memory is short.

        Raises:
            As `submit`.
        """

    async def unload(self, digest: str) -> bool:
        """Free an adapter's memory once the requests that use it have ended; returns whether it is free already.

        Raises:
            UnsupportedError: if it frees adapters by itself alone.
            EngineError: if it has stopped.
        """
