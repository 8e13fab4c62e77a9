"""One thread owns the engine and steps it; requests come in and tokens go out through queues. Knows nothing of text or HTTP."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

from lorimer.errors import EngineError, IntegrityError, LorimerError
from lorimer.inference.engine import Engine
from lorimer.inference.sequence import FinishReason, Sequence
from lorimer.model.adapter import load_adapter
from lorimer.model.lora import LoRA
from lorimer.registry.registry import digest_of_folder

logger = logging.getLogger(__name__)

Command = Callable[[], None]


class Progress(NamedTuple):
    """What one step did for one sequence."""

    sequence: Sequence
    new_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    at: float
    """`time.perf_counter()` when the tokens were there."""


@dataclass(slots=True, kw_only=True, eq=False)
class Submission:
    """Sequences submitted together, and where their progress goes. The engine's thread alone changes it."""

    sequences: tuple[Sequence, ...]
    folder: Path | None
    """Where the adapter's files are, should it not be resident."""
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

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._submissions: dict[int, Submission] = {}  # by sequence id, from submission to end
        self._loading: dict[str, list[Submission]] = {}  # by adapter digest
        self._lock = threading.Lock()
        self._is_open = False
        self._deadline: float | None = None
        self._thread: threading.Thread | None = None
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-loader")

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
        cache = self.engine.cache
        return 1 - len(cache.free_blocks) / cache.num_blocks

    @property
    def num_resident(self) -> int:
        """Adapters in memory."""
        return len(self.engine.adapters.digests)

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
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def submit(self, *sequences: Sequence, folder: Path | None = None) -> AsyncIterator[Progress]:
        """Run sequences of one adapter; yields their progress until all have ended. `folder` holds the adapter's files.

        Raises:
            EngineError: if the engine cannot serve them, failed in the middle, or has stopped.
            AdapterError: if the adapter's files do not fit the base.
            IntegrityError: if they are not the registered ones.
        """
        submission = Submission(sequences=sequences, folder=folder, loop=asyncio.get_running_loop())
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
            self._report(sequence, at)

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
        """Queue a submission's sequences, once their adapter is resident."""
        (digest,) = {sequence.adapter for sequence in submission.sequences}
        if digest is None or digest in self.engine.adapters:
            self._add(submission)
        elif digest in self._loading:
            self._loading[digest].append(submission)
        elif submission.folder is None:
            self._fail(submission, EngineError(f"adapter {digest[:12]!r} is not resident and no folder was given: give one"))
        else:
            self._loading[digest] = [submission]
            future = self._loader.submit(self._load, digest, submission.folder)
            future.add_done_callback(lambda done: self._commands.put(lambda: self._take_loaded(digest, done)))

    def _add(self, submission: Submission) -> None:
        """Hand a submission's sequences to the engine, but for those that were cancelled meanwhile."""
        try:
            for sequence in submission.sequences:
                if sequence.id in self._submissions:
                    self.engine.add(sequence)
        except Exception as exc:
            self._fail(submission, exc if isinstance(exc, LorimerError) else EngineError(f"the engine refused the request: {exc}"))

    def _load(self, digest: str, folder: Path) -> LoRA:
        """Read an adapter, in the loader's thread; the engine goes on meanwhile."""
        found = digest_of_folder(folder)
        if found != digest:
            raise IntegrityError(f"the files in {str(folder)!r} have digest {found[:12]}, registered was {digest[:12]}: restore them")
        base = self.engine.base
        return load_adapter(folder, base).to(dtype=base.dtype, device=base.device)

    def _take_loaded(self, digest: str, done: Future[LoRA]) -> None:
        """Make an adapter resident between steps and let in who waited for it."""
        waiting = self._loading.pop(digest)
        exc = done.exception()
        if exc is None:
            keep = {sequence.adapter for sequence in (*self.engine.scheduler.running, *self.engine.scheduler.waiting)}
            self.engine.adapters.add(digest, done.result(), keep=keep)
        for submission in waiting:
            if exc is None:
                self._add(submission)
            else:
                self._fail(
                    submission, exc if isinstance(exc, LorimerError) else EngineError(f"adapter {digest[:12]!r} cannot be read: {exc}")
                )

    def _abort(self, sequences: tuple[Sequence, ...]) -> None:
        """Take sequences out of the engine or of the queue before it."""
        at = time.perf_counter()
        for sequence in sequences:
            if sequence.id in self._submissions:
                self.engine.abort(sequence)
                self._report(sequence, at)
