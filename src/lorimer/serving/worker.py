"""One thread owns the engine and steps it; requests come in and tokens go out through queues. Knows nothing of text or HTTP."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from lorimer.errors import EngineError, LorimerError
from lorimer.inference.engine import Engine
from lorimer.inference.sequence import Sequence
from lorimer.model.base_text import text_of
from lorimer.registry.sealing import Seals
from lorimer.serving.backend import NO_FOLDERS, Gauge, Progress
from lorimer.serving.loading import AdapterLoader, Command, settle

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, eq=False)
class Submission:
    """Sequences submitted together, and where their progress goes. The engine's thread alone changes it."""

    sequences: tuple[Sequence, ...]
    folders: Mapping[str, Path]
    """Where the adapters' files are, by digest, should they not be resident."""
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Progress | LorimerError] = field(default_factory=asyncio.Queue)
    num_sent: dict[int, int] = field(default_factory=dict)
    """Tokens given out, by sequence id."""

    def send(self, event: Progress | LorimerError) -> None:
        """Pass an event to the loop that waits for it; if the loop is gone, so is who waited."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.queue.put_nowait, event)


class EngineWorker:
    """The engine's thread. Nobody else touches the engine while it runs; adapters are read by another thread meanwhile."""

    name = "the embedded engine"

    def __init__(self, engine: Engine, seals: Seals | None = None) -> None:
        self.engine = engine
        self.base = text_of(engine.base)
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self.loader = AdapterLoader(engine, self._commands.put, seals or Seals())
        self._submissions: dict[int, Submission] = {}  # by sequence id, from submission to end
        self._asked = set[Future[Any]]()  # what else waits for the thread
        self._lock = threading.Lock()
        self._is_open = False
        self._deadline: float | None = None
        self._thread: threading.Thread | None = None

    @property
    def max_len(self) -> int:
        """Tokens the longest sequence may have, prompt and answer together."""
        return self.engine.max_len

    @property
    def max_sequences(self) -> int:
        """Sequences in one batch."""
        return self.engine.config.max_sequences

    @property
    def is_running(self) -> bool:
        """Whether requests are taken."""
        return self._is_open

    @property
    def num_running(self) -> int:
        """Sequences in the batch."""
        return len(self.engine.scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for room or for their adapter."""
        return max(0, len(self._submissions) - self.num_running)

    @property
    def cache_usage(self) -> float:
        """Share of the cache's blocks in use."""
        return self.engine.cache.blocks.usage

    @property
    def gauges(self) -> Mapping[str, Gauge]:
        """See `Backend`."""
        blocks, scheduler, adapters = self.engine.cache.blocks, self.engine.scheduler, self.engine.adapters
        return {
            "lorimer_preemptions": ("Sequences thrown out of the cache for others, since the start", lambda: scheduler.num_preempted),
            "lorimer_cache_blocks": ("Blocks of the cache", lambda: blocks.num_blocks),
            "lorimer_cache_blocks_free": (
                "Blocks that nobody holds; they may keep beginnings that are asked again",
                lambda: blocks.num_idle,
            ),
            "lorimer_adapter_holds": ("Adapters held by sequences, each as often as it is", lambda: adapters.num_holds),
        }

    @property
    def num_resident(self) -> int:
        """Adapters in memory."""
        return len(self.engine.adapters.digests)

    @property
    def proofs(self) -> dict[str, bool]:
        """By digest, whether an adapter in memory or in quarantine answers as it did when it was registered."""
        return self.loader.proofs

    def start(self) -> None:
        """Take requests from now on."""
        assert self._thread is None, "a worker is started once"
        self._is_open = True
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self, *, grace_seconds: float = 0.0) -> None:
        """Let what runs go on for `grace_seconds`, end the rest with an error, and wait for the thread."""
        if self._thread is None:
            return
        self._deadline = time.monotonic() + grace_seconds
        self._commands.put(lambda: None)  # wakes the thread if it has nothing to do
        self._thread.join()
        self.loader.stop()

    async def submit(self, *sequences: Sequence, folders: Mapping[str, Path] = NO_FOLDERS) -> AsyncIterator[Progress]:
        """Run sequences; yields their progress until all have ended. `folders` holds the files of their adapters, by digest.

        Raises:
            EngineError: if the engine cannot serve them, failed in the middle, or has stopped.
            AdapterError: if an adapter's files do not fit the base.
            QuarantineError: if they are not the registered ones, or an adapter does not answer as it did when it was registered.
        """
        submission = Submission(sequences=sequences, folders=folders, loop=asyncio.get_running_loop())
        with self._lock:
            if not self._is_open:
                raise EngineError("the engine has stopped: no requests are taken")
            self._submissions.update({sequence.id: submission for sequence in sequences})
        self._commands.put(lambda: self._admit(submission))
        num_left = len(sequences)
        try:
            while num_left:
                event = await submission.queue.get()
                if isinstance(event, LorimerError):
                    raise event
                num_left -= event.finish_reason is not None
                yield event
        finally:
            if num_left:
                self.cancel(*sequences)

    def cancel(self, *sequences: Sequence) -> None:
        """End sequences soon, with finish reason `aborted`; those that have ended stay as they are."""
        self._commands.put(lambda: self._abort(sequences))

    async def load(self, digest: str, folder: Path) -> None:
        """Make an adapter resident, unless it is. It may leave again when memory is short.

        Raises:
            EngineError, AdapterError, QuarantineError: as `submit`.
        """

        def act(future: Future[None]) -> None:
            self.loader.want((digest,), {digest: folder}, lambda error: settle(future, error))

        await self._between_steps(act)

    async def unload(self, digest: str) -> bool:
        """Free an adapter's memory once the requests that use it have ended; returns whether it is free already.

        Raises:
            EngineError: if the engine has stopped.
        """
        return await self._between_steps(lambda future: settle(future, self.loader.unload(digest)))

    async def _between_steps(self, act: Callable[[Future[T]], None]) -> T:
        """Have the engine's thread do something, and wait until it has settled the future."""
        future: Future[T] = Future()
        with self._lock:
            if not self._is_open:
                raise EngineError("the engine has stopped: no requests are taken")
            self._asked.add(future)
        self._commands.put(lambda: act(future))
        try:
            return await asyncio.wrap_future(future)
        finally:
            self._asked.discard(future)

    def _run(self) -> None:
        try:
            while not self._is_over():
                self._take_commands()
                if self.engine.has_work:
                    self._step()
        except BaseException:
            logger.exception("the engine's thread died")
        finally:
            with self._lock:
                self._is_open = False
            for submission in {id(submission): submission for submission in self._submissions.values()}.values():
                submission.send(EngineError("the engine stopped in the middle of the request: try again"))
            self._submissions.clear()
            for future in list(self._asked):
                settle(future, EngineError("the engine has stopped: no requests are taken"))

    def _is_over(self) -> bool:
        """Whether the thread was told to end, and has nothing left to do or no time left for it."""
        if self._deadline is None:
            return False
        self._is_open = False
        return not self._submissions or time.monotonic() >= self._deadline

    def _take_commands(self) -> None:
        """Everything that was asked for since the last step; waits if there is no step to do."""
        wait = not self.engine.has_work
        while True:
            try:
                command = self._commands.get(timeout=None if self._deadline is None else 0.05) if wait else self._commands.get_nowait()
            except Empty:
                return
            command()
            wait = False

    def _step(self) -> None:
        try:
            advanced = self.engine.step()
        except Exception as exc:
            logger.exception("a step failed; its requests end with an error")
            self._fail_running(exc)
            return
        at = time.perf_counter()
        for sequence in advanced:
            if sequence.failure is None:
                self._report(sequence, at)
            elif (submission := self._submissions.get(sequence.id)) is not None:
                self._fail(submission, EngineError(sequence.failure))

    def _report(self, sequence: Sequence, at: float) -> None:
        """Send what is new of a sequence."""
        submission = self._submissions.get(sequence.id)
        if submission is None:
            return
        num_sent = submission.num_sent.get(sequence.id, 0)
        submission.num_sent[sequence.id] = len(sequence.output_ids)
        if sequence.finish_reason is not None:
            del self._submissions[sequence.id]
        submission.send(Progress(sequence, tuple(sequence.output_ids[num_sent:]), sequence.finish_reason, at))

    def _fail_running(self, exc: Exception) -> None:
        """End all that may have been in the failed step; what waits was not, and goes on."""
        for sequence in list(self.engine.scheduler.running):
            submission = self._submissions.get(sequence.id)
            self.engine.abort(sequence)
            if submission is not None:
                error = EngineError(f"the engine failed in the middle of the request ({type(exc).__name__}): try again")
                error.__cause__ = exc
                self._fail(submission, error)

    def _fail(self, submission: Submission, error: LorimerError) -> None:
        """End a submission with an error."""
        for sequence in submission.sequences:
            self.engine.abort(sequence)
            self._submissions.pop(sequence.id, None)
        submission.send(error)

    def _admit(self, submission: Submission) -> None:
        """Queue a submission's sequences, once their adapters are resident."""
        digests = tuple(dict.fromkeys(digest for sequence in submission.sequences for digest in sequence.composition.digests))
        self.loader.want(
            digests, submission.folders, lambda error: self._add(submission) if error is None else self._fail(submission, error)
        )

    def _add(self, submission: Submission) -> None:
        """Hand a submission's sequences to the engine, but for those that were cancelled meanwhile."""
        try:
            for sequence in submission.sequences:
                if sequence.id in self._submissions:
                    self.engine.add(sequence)
        except Exception as exc:
            self._fail(submission, exc if isinstance(exc, LorimerError) else EngineError(f"the engine refused the request: {exc}"))

    def _abort(self, sequences: tuple[Sequence, ...]) -> None:
        """Take sequences out of the engine or of the queue before it."""
        at = time.perf_counter()
        for sequence in sequences:
            if sequence.id in self._submissions:
                self.engine.abort(sequence)
                self._report(sequence, at)
