"""Other processes that judge chunks: each reads pickled work from its input and writes pickled answers, in order.

They are begun as `python -m lorimer.data.workers`: neither a fork of a process that may run threads, nor a second run of somebody's script.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO, Any, Self

from lorimer.errors import LorimerError

CHUNKS_BEFORE_WORKERS = 6
"""So many are done here first: a small source is through before other processes would have started."""
WAITING = 2  # chunks ahead for each worker: none waits for the next, and few are in memory

Work = Callable[[Any, Any], Any]


class Workers:
    """Processes that apply `work(chunk, setup)`; they begin with the first chunk that is worth it, and end with the block."""

    def __init__(self, num: int, work: Work) -> None:
        self._num = num
        self._work = work
        self._free: deque[_Worker] = deque()
        self._all: list[_Worker] = []
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        for worker in self._all:
            worker.close(at_once=exc is not None)
        if self._threads:
            self._threads.shutdown(cancel_futures=True)

    def apply(self, chunks: Iterable[Any], setup: Any) -> Iterator[Any]:
        """The answers in the order of the chunks.

        Raises:
            LorimerError: if a worker ended without an answer.
        """
        waiting: deque[Future[Any]] = deque()
        for number, chunk in enumerate(chunks):
            if self._num < 2 or (number < CHUNKS_BEFORE_WORKERS and not self._all):
                yield self._work(chunk, setup)
                continue
            waiting.append(self._start().submit(self._ask, chunk, setup))
            if len(waiting) > WAITING * self._num:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _start(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._num)  # each thread waits for one process
            self._all = [_Worker(self._work) for _ in range(self._num)]
            self._free.extend(self._all)
        return self._threads

    def _ask(self, chunk: Any, setup: Any) -> Any:
        worker = self._free.popleft()  # there are as many as threads
        try:
            return worker.ask(chunk, setup)
        finally:
            self._free.append(worker)


class _Worker:
    """One process, asked by one thread at a time."""

    def __init__(self, work: Work) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        single = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lorimer.data.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **single, "PYTHONPATH": paths},
        )
        self._setup: Any = None
        self._send(work)

    def ask(self, chunk: Any, setup: Any) -> Any:
        """Send a chunk, and what goes with it if that is new; wait for the answer.

        Raises:
            LorimerError: if the process has ended, or what the work raised.
        """
        try:
            if setup is not self._setup:
                self._send(("setup", setup))
                self._setup = setup
            self._send(("chunk", chunk))
            is_answer, answer = pickle.load(_open(self._process.stdout))
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as exc:
            code = self._process.wait()
            hint = "perhaps it was out of memory" if code == -9 else "what it said is above"
            raise LorimerError(f"a process that was reading rows ended with code {code} ({hint}): try again") from exc
        if not is_answer:
            raise answer
        return answer

    def close(self, *, at_once: bool) -> None:
        """End the process."""
        if at_once:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            _open(self._process.stdin).close()
        self._process.wait()
        _open(self._process.stdout).close()

    def _send(self, value: Any) -> None:
        stream = _open(self._process.stdin)
        pickle.dump(value, stream, pickle.HIGHEST_PROTOCOL)
        stream.flush()


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def main() -> None:
    """Work until the input ends; what rules print goes to the error stream, never between the answers."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    work, setup = pickle.load(sys.stdin.buffer), None
    while True:
        try:
            kind, value = pickle.load(sys.stdin.buffer)
        except (EOFError, KeyboardInterrupt):
            return
        if kind == "setup":
            setup = value
            continue
        try:
            answer = (True, work(value, setup))
        except KeyboardInterrupt:
            return
        except Exception as exc:  # the one that asked decides what becomes of it
            answer = (False, exc)
        try:
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
        except BrokenPipeError:  # nobody waits for it any more
            os._exit(1)


if __name__ == "__main__":
    main()
