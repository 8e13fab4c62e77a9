"""Adapters on their way into the engine: read by a thread of their own, made resident between two steps, and proved before anything runs.

An adapter that does not answer as it did when it was registered is quarantined: it is not resident, requests for it are told why, and it is
tried again when its files have changed. Nothing here knows of requests.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lorimer.errors import EngineError, IntegrityError, LorimerError, QuarantineError
from lorimer.inference.composition import alone
from lorimer.inference.engine import Engine
from lorimer.inference.fingerprint import FINGERPRINT_FILE, Fingerprint, Prober, norms_of, read_fingerprint
from lorimer.model.adapter import load_adapter, read_lock
from lorimer.model.lora import LoRA
from lorimer.model.machine import give_back_threads
from lorimer.registry.seal import require_files
from lorimer.registry.sealing import Seals

logger = logging.getLogger(__name__)

T = TypeVar("T")

Command = Callable[[], None]
Done = Callable[[LorimerError | None], None]
State = tuple[tuple[str, int, int], ...]
"""Of a folder's files: name, time of change in nanoseconds, size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """An adapter as its files have it."""

    lora: LoRA
    norms: Mapping[str, float]
    fingerprint: Fingerprint | None


class AdapterLoader:
    """Brings adapters into an engine's pool. All but reading happens in the engine's thread."""

    def __init__(self, engine: Engine, between_steps: Callable[[Command], None], seals: Seals) -> None:
        self.base, self.pool, self.between_steps, self.seals = engine.base, engine.adapters, between_steps, seals
        self.prober = Prober(engine.base, engine.decoder, engine.logits)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-loader")
        self._waiting: dict[str, list[Done]] = {}  # by the digest that is being read
        self._quarantined: dict[str, tuple[str, State]] = {}  # why, and the files it was so with
        self._proved = set[str]()

    @property
    def proofs(self) -> dict[str, bool]:
        """The adapters in memory that have been proved, and those in quarantine."""
        proved, quarantined = set(self._proved), list(self._quarantined)
        return {digest: True for digest in self.pool.digests if digest in proved} | dict.fromkeys(quarantined, False)

    def want(self, digests: Sequence[str], folders: Mapping[str, Path], done: Done) -> None:
        """Make adapters resident, then call `done`, with what went wrong if something did; none of them leaves before it returns."""
        held: list[str] = []

        def go_on(error: LorimerError | None = None) -> None:
            for digest in digests[len(held) :] if error is None else ():
                if digest not in self.pool:
                    self._load(digest, folders.get(digest), go_on)
                    return
                self.pool.hold(alone(digest))
                held.append(digest)
            if error is None:
                done(None)
            for digest in held:
                self.pool.release(alone(digest))
            if error is not None:  # told last, so that whoever hears it finds nothing held
                done(error)

        go_on()

    def unload(self, digest: str) -> bool:
        """Free an adapter once those who use it have ended, and forget that it was quarantined; returns whether it is free already."""
        self._quarantined.pop(digest, None)
        return self.pool.unload(digest)

    def stop(self) -> None:
        """Read nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def read(self, digest: str, folder: Path) -> Reading:
        """Read an adapter and check it, in the loader's thread; the engine goes on meanwhile.

        Raises:
            QuarantineError: if the files are not those that were sealed, or what was recorded of them is not right.
            AdapterError: if the files are missing or do not fit the base.
        """
        state = state_of(folder)
        require_files(folder)
        try:
            self.seals.verify(digest, folder)
        except IntegrityError as exc:
            raise self._refusal(digest, f"{exc}; it was changed") from exc
        lora, fingerprint = load_adapter(folder, self.base), self._read_fingerprint(digest, folder)
        if not {own for own in state if not own[0].startswith(".")} <= set(state_of(folder)):
            raise IntegrityError(f"the files in {str(folder)!r} changed while they were read: try again")
        return Reading(lora=self.pool.prepare(lora), norms=norms_of(lora, self.pool.dense_weight), fingerprint=fingerprint)

    def _read_and_rest(self, digest: str, folder: Path) -> Reading:
        """Read, and leave no thread behind that would slow the engine's down."""
        try:
            return self.read(digest, folder)
        finally:
            give_back_threads()

    def _read_fingerprint(self, digest: str, folder: Path) -> Fingerprint | None:
        try:
            fingerprint = read_fingerprint(folder)
        except IntegrityError as exc:
            logger.error("%s", exc)
            raise self._refusal(digest, "its fingerprint cannot be read") from exc
        lock, template = read_lock(folder), self.base.renderer.template_digest
        if fingerprint is None and lock is not None and lock.template_digest not in ("", template):
            raise self._refusal(digest, f"it was trained behind chat template {lock.template_digest[:12]!r}, this is {template[:12]!r}")
        return fingerprint

    def _load(self, digest: str, folder: Path | None, done: Done) -> None:
        """Have an adapter read, once for all who want it; one in quarantine only if its files have changed since."""
        if folder is None:
            done(EngineError(f"adapter {digest[:12]!r} is not resident and no folder was given: give one"))
            return
        if digest in self._waiting:
            self._waiting[digest].append(done)
            return
        state = state_of(folder)
        reason, bad_state = self._quarantined.get(digest, ("", None))
        if state == bad_state:
            done(QuarantineError(reason))
            return
        self._waiting[digest] = [done]
        reading = self._thread.submit(self._read_and_rest, digest, folder)
        reading.add_done_callback(lambda reading: self.between_steps(lambda: self._take(digest, folder, state, reading)))

    def _take(self, digest: str, folder: Path, state: State, reading: Future[Reading]) -> None:
        """Prove what was read, make it resident, and tell who waits."""
        error: LorimerError | None = None
        try:
            self._prove(digest, folder, reading.result())
            self.pool.insert(digest, reading.result().lora)
            self._proved.add(digest)
            if self._quarantined.pop(digest, None):
                logger.warning("adapter %s is out of quarantine: it answers as registered", digest[:12])
        except QuarantineError as exc:
            error = exc
            self._quarantine(digest, folder, state, exc)
        except LorimerError as exc:
            error = exc
        except Exception as exc:
            logger.exception("adapter %s could not be loaded", digest[:12])
            error = EngineError(f"adapter {digest[:12]!r} cannot be loaded: {exc}")
        for done in self._waiting.pop(digest):
            done(error)

    def _prove(self, digest: str, folder: Path, reading: Reading) -> None:
        """Replay its fingerprint; an adapter from before there were any gets one."""
        if reading.fingerprint is None:
            fingerprint = self.prober.take(digest, reading.lora, reading.norms)
            logger.warning("adapter %s had no fingerprint: what it answers now is recorded as its own", digest[:12])
            self._thread.submit(self._keep, digest, folder, fingerprint)
            return
        proof = self.prober.prove(digest, reading.lora, reading.norms, reading.fingerprint)
        if proof.reason is not None:
            raise self._refusal(digest, proof.reason)
        logger.info("adapter %s is proved: %.3g nats off, %.3g allowed", digest[:12], proof.difference, proof.allowed)

    def _keep(self, digest: str, folder: Path, fingerprint: Fingerprint) -> None:
        try:
            self.seals.add(digest, folder, {FINGERPRINT_FILE: fingerprint.to_bytes()})
        except (LorimerError, OSError) as exc:
            logger.warning("the fingerprint of adapter %s was not kept: %s", digest[:12], exc)

    def _quarantine(self, digest: str, folder: Path, state: State, error: QuarantineError) -> None:
        """Remember why, for these files; the log is told once."""
        known = self._quarantined.get(digest)
        self._quarantined[digest] = str(error), state
        self._proved.discard(digest)
        if known is None or known[0] != str(error):
            logger.error("%s (its files: %s)", error, folder)

    def _refusal(self, digest: str, reason: str) -> QuarantineError:
        return QuarantineError(f"adapter {digest[:12]!r} is quarantined: {reason}; restore what was registered, or register it again")


def settle(future: Future[T], result: T | LorimerError) -> None:
    """Give a future what it waits for; one that nobody waits for any more is left alone."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(result, LorimerError):
            future.set_exception(result)
        else:
            future.set_result(result)


def state_of(folder: Path) -> State:
    """What tells whether a folder's files were changed."""
    try:
        files = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    except OSError:
        return ()
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in files)
