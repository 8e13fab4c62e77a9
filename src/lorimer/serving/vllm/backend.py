"""vLLM as a backend: every sequence is a request to its HTTP server, adapters are named by their digest, and proved before they answer.

Prompts, text, stop strings, keys, tenants and limits are the gateway's, as before the embedded engine. What vLLM cannot do is refused.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lorimer.errors import AdapterError, EngineError, IntegrityError, LorimerError, QuarantineError, UnavailableError, UnsupportedError
from lorimer.inference.fingerprint import Fingerprint, read_fingerprint
from lorimer.inference.sampling import TokenScores
from lorimer.inference.sequence import Sequence
from lorimer.model.base_text import BaseText
from lorimer.registry.sealing import Seals
from lorimer.serving.backend import NO_FOLDERS, Gauge, Progress
from lorimer.serving.loading import State, state_of
from lorimer.serving.turns import Turns
from lorimer.serving.vllm.proof import VllmProber
from lorimer.serving.vllm.wire import Status, VllmWire, body_of

logger = logging.getLogger(__name__)

WATCH_SECONDS = 2.0
NOT_SERVED: Mapping[str, str] = {
    "use_dora": "is DoRA's",
    "modules_to_save": "brings trained copies of base layers",
    "lora_bias": "has biases",
    "alora_invocation_tokens": "is an activated LoRA",
    "layer_replication": "replicates layers",
}
"""What vLLM refuses in an `adapter_config.json` (vllm 0.32, lora/peft_helper.py), said before it is asked."""


class VllmBackend:
    """One vLLM server, started with our plugin. Everything here belongs to the event loop, but for `start`'s and `stop`'s callers.

    `publish` tells vLLM what is registered now; it is called when an adapter is asked for the first time.
    """

    name = "the vLLM backend"

    def __init__(self, wire: VllmWire, base: BaseText, status: Status, publish: Callable[[], None], seals: Seals | None = None) -> None:
        self.wire, self.base, self.publish, self.seals = wire, base, publish, seals or Seals()
        self.max_len, self.max_sequences = min(status.max_len, base.max_len), status.max_sequences
        self.turns = Turns(status.max_sequences)
        self.cache_usage = float("nan")
        self._status: Status | None = status  # None while it is not known to be there
        self._prober = VllmProber(wire, base, status.dtype)
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by sequence id
        self._checks: dict[str, asyncio.Task[None]] = {}  # by digest: those under way
        self._proved = set[str]()  # by the vLLM that is running now
        self._quarantined: dict[str, tuple[str, State]] = {}
        self._is_open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether requests are taken, and vLLM was there when it was last looked at."""
        return self._is_open and self._status is not None

    @property
    def num_running(self) -> int:
        """Sequences that vLLM has."""
        return self.turns.num_running

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for their turn or their adapter's proof."""
        return max(0, len(self._tasks) - self.turns.num_running)

    @property
    def num_resident(self) -> int:
        """Adapters that this vLLM has read and that were proved on it; it keeps as many in memory as it was told to."""
        return len(self._proved)

    @property
    def proofs(self) -> Mapping[str, bool]:
        """See `Backend`."""
        return dict.fromkeys(self._proved, True) | dict.fromkeys(self._quarantined, False)

    @property
    def gauges(self) -> Mapping[str, Gauge]:
        """None: vLLM has its own /metrics."""
        return {}

    def start(self) -> None:
        """Take requests from now on; called in the event loop that they come from."""
        self._is_open = True
        self._loop = asyncio.get_running_loop()
        self._watcher = self._loop.create_task(self._watch())

    def stop(self, *, grace_seconds: float = 0.0) -> None:
        """See `Backend`."""
        if self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._end(grace_seconds), self._loop).result()

    async def submit(self, *sequences: Sequence, folders: Mapping[str, Path] = NO_FOLDERS) -> AsyncIterator[Progress]:
        """See `Backend`."""
        if not self._is_open:
            raise EngineError("the server has stopped: no requests are taken")
        bodies = [self._body_of(sequence) for sequence in sequences]
        events: asyncio.Queue[Progress | LorimerError] = asyncio.Queue()
        for sequence, body in zip(sequences, bodies, strict=True):
            task = self._tasks[sequence.id] = asyncio.create_task(self._run(sequence, body, folders, events))
            task.add_done_callback(partial(self._ended, sequence, events))
        num_left = len(sequences)
        try:
            while num_left:
                event = await events.get()
                if isinstance(event, LorimerError):
                    raise event
                num_left -= event.finish_reason is not None
                yield event
        finally:
            self.cancel(*sequences)

    def cancel(self, *sequences: Sequence) -> None:
        """See `Backend`; the connection is closed, by which vLLM knows."""
        for sequence in sequences:
            if (task := self._tasks.get(sequence.id)) is not None:
                task.cancel()

    async def load(self, digest: str, folder: Path) -> None:
        """See `Backend`."""
        if not self._is_open:
            raise EngineError("the server has stopped: no requests are taken")
        await self._make_ready(digest, folder)

    async def unload(self, digest: str) -> bool:
        """Never done: vLLM frees the least recently used, and tells nobody."""
        raise UnsupportedError("vLLM frees adapters by itself, the least recently used first: leave it to it, or start it again")

    def _body_of(self, sequence: Sequence) -> dict[str, Any]:
        """What vLLM is asked for a sequence.

        Raises:
            UnsupportedError: if it does not do that.
        """
        parts = sequence.composition.parts
        if len(parts) > 1:
            raise UnsupportedError(f"vLLM answers with one adapter, {len(parts)} were asked for together: name one", field="composition")
        if parts and parts[0].scale != 1:
            message = f"vLLM applies adapters whole, scale {parts[0].scale:g} was asked for: leave it out"
            raise UnsupportedError(message, field="composition")
        if sequence.wants_state:
            raise UnsupportedError("vLLM does not give hidden states", field="model")
        if sequence.wants_prompt_scores:
            message = "log-probabilities of prompts are given by the embedded engine alone: leave out `echo` or `logprobs`"
            raise UnsupportedError(message, field="echo")
        model = parts[0].digest if parts else self.base.digest
        return body_of(sequence, model, self.base.renderer.stop_ids)

    async def _run(
        self, sequence: Sequence, body: Mapping[str, Any], folders: Mapping[str, Path], events: asyncio.Queue[Progress | LorimerError]
    ) -> None:
        """One sequence, from its adapter's proof to its end, or to the end of whoever wanted it."""
        try:
            for digest in sequence.composition.digests:
                await self._make_ready(digest, folders.get(digest))
            await self.turns.take(sequence)
            try:
                await self._follow(sequence, body, events)
            finally:
                self.turns.give_back()
        except LorimerError as exc:
            self._note(exc)
            events.put_nowait(exc)
        except Exception as exc:
            logger.exception("a request to vLLM failed")
            events.put_nowait(EngineError(f"the request to vLLM failed ({type(exc).__name__}): try again"))

    def _ended(self, sequence: Sequence, events: asyncio.Queue[Progress | LorimerError], task: asyncio.Task[None]) -> None:
        """Also where it was cancelled before it began."""
        self._tasks.pop(sequence.id, None)
        if not task.cancelled():
            return
        if self._is_open:
            sequence.finish_reason = "aborted"
            events.put_nowait(Progress(sequence, (), "aborted", time.perf_counter()))
        else:
            events.put_nowait(EngineError("the server stopped in the middle of the request: try again"))

    async def _follow(self, sequence: Sequence, body: Mapping[str, Any], events: asyncio.Queue[Progress | LorimerError]) -> None:
        async with contextlib.aclosing(self.wire.stream(body, self.base.renderer.stop_ids)) as parts:
            async for part in parts:
                sequence.output_ids += part.ids
                wanted = sequence.params.num_logprobs
                if wanted is not None:
                    sequence.scores += [_cut(scores, wanted) for scores in part.scores]
                sequence.finish_reason = part.finish_reason
                events.put_nowait(Progress(sequence, part.ids, part.finish_reason, time.perf_counter()))

    async def _make_ready(self, digest: str, folder: Path | None) -> None:
        """See that vLLM has an adapter, and that it is the one that was registered; once for all who want it."""
        status = await self._current()
        if digest in self._proved:
            return
        if folder is None:
            raise EngineError(f"adapter {digest[:12]!r} is not resident and no folder was given: give one")
        task = self._checks.get(digest)
        if task is None:
            task = self._checks[digest] = asyncio.create_task(self._check(digest, folder, status))
            task.add_done_callback(partial(self._checked, digest))
        await asyncio.shield(task)

    def _checked(self, digest: str, task: asyncio.Task[None]) -> None:
        self._checks.pop(digest, None)
        if not task.cancelled():
            task.exception()  # seen, though all who waited may have left

    async def _check(self, digest: str, folder: Path, status: Status) -> None:
        """Read what can be read here, then ask vLLM the probes."""
        state = await asyncio.to_thread(state_of, folder)
        reason, bad_state = self._quarantined.get(digest, ("", None))
        if state == bad_state:
            raise QuarantineError(reason)
        try:
            fingerprint = await asyncio.to_thread(self._read, digest, folder, status)
            proof = await self._prober.prove(digest, fingerprint)
            if proof.reason is not None:
                raise refusal(digest, proof.reason)
        except QuarantineError as exc:
            if reason != str(exc):
                logger.error("%s", exc)
            self._quarantined[digest] = str(exc), state
            raise
        if self._quarantined.pop(digest, None):
            logger.warning("adapter %s is out of quarantine: it answers as registered", digest[:12])
        if self._status is not None and self._status.instance == status.instance:  # else it was another vLLM that was asked
            self._proved.add(digest)
        logger.info("adapter %s is proved on vLLM: %.3g nats off, %.3g allowed", digest[:12], proof.difference, proof.allowed)

    def _read(self, digest: str, folder: Path, status: Status) -> Fingerprint:
        """Check an adapter's files, tell vLLM of it, and read its fingerprint; in a thread of its own.

        Raises:
            IntegrityError: if they are not the registered ones.
            UnsupportedError: if vLLM does not serve such an adapter.
            QuarantineError: if nobody could tell whether vLLM applies it.
        """
        try:
            self.seals.verify(digest, folder)
        except IntegrityError as exc:
            raise IntegrityError(f"the files in {str(folder)!r} are not those of adapter {digest[:12]}: {exc}; restore them") from exc
        refuse_unserved(digest, folder, status.max_rank)
        try:
            fingerprint = read_fingerprint(folder)
        except IntegrityError as exc:
            raise refusal(digest, "its fingerprint cannot be read") from exc
        if fingerprint is None:
            reason = "it has no fingerprint, so that nobody can tell whether vLLM applies it; serve it once with the embedded engine"
            raise refusal(digest, reason)
        self.publish()
        return fingerprint

    async def _current(self) -> Status:
        """The vLLM that is there now; one that was away is looked at anew.

        Raises:
            UnavailableError: if there is none.
            EngineError: if it is not the one that was here.
        """
        return self._status or await self._greet()

    async def _greet(self) -> Status:
        status = await self.wire.status()
        if status.base_digest != self.base.digest:
            raise UnavailableError(f"vLLM serves another base now ({status.base_digest[:12]}): start it with {self.base.name!r} again")
        if self._status is None or self._status.instance != status.instance:
            self._proved.clear()  # what another process has read is not read by this one
            self._status, self._prober = status, VllmProber(self.wire, self.base, status.dtype)
        return status

    async def _watch(self) -> None:
        """Look at vLLM now and then, so that health and proofs are those of the one that is there."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                before = self._status
                if (await self._greet()) is not before and before is None:
                    logger.warning("vLLM answers again")
                self.cache_usage = await self.wire.metric("vllm:kv_cache_usage_perc")
            except LorimerError as exc:
                if self._status is not None:
                    logger.error("%s", exc)
                self._note(exc)

    def _note(self, exc: LorimerError) -> None:
        """After a failure of the connection nothing is taken for granted."""
        if isinstance(exc, UnavailableError):
            self._status = None
            self.cache_usage = float("nan")

    async def _end(self, grace_seconds: float) -> None:
        if not self._is_open and not self._tasks:
            return
        self._is_open = False
        if self._watcher is not None:
            self._watcher.cancel()
        if self._tasks and grace_seconds:
            await asyncio.wait(list(self._tasks.values()), timeout=grace_seconds)
        for task in list(self._tasks.values()):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))
        await self.wire.close()


def refusal(digest: str, reason: str) -> QuarantineError:
    """Why an adapter is not served."""
    return QuarantineError(f"adapter {digest[:12]!r} is quarantined: {reason}; restore what was registered, or register it again")


def refuse_unserved(digest: str, folder: Path, max_rank: int) -> None:
    """Adapters that vLLM would refuse, or that are larger than it was started for.

    Raises:
        AdapterError: if the configuration cannot be read.
        UnsupportedError: if vLLM does not serve such an adapter.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        ranks = [int(config["r"]), *(int(rank) for rank in (config.get("rank_pattern") or {}).values())]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as exc:
        raise AdapterError(f"adapter in {str(folder)!r}: adapter_config.json cannot be read ({exc})") from exc
    name = f"adapter {digest[:12]!r}"
    if unlike := [what for key, what in NOT_SERVED.items() if config.get(key)]:
        message = f"{name} {' and '.join(unlike)}, which vLLM does not serve: ask a server with the embedded engine"
        raise UnsupportedError(message, field="model")
    if max(ranks) > max_rank:
        message = f"{name} has rank {max(ranks)}, this vLLM was started for {max_rank}: start it again, now that it is registered"
        raise UnsupportedError(message, field="model")


def _cut(scores: TokenScores, num_logprobs: int) -> TokenScores:
    """The likeliest that were asked for; vLLM names the token itself too where it is not one of them."""
    return TokenScores(token_id=scores.token_id, logprob=scores.logprob, top=scores.top[:num_logprobs])
