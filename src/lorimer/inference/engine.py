"""The engine: sequences in, tokens out, step by step; sequences of different adapters share every batch. Knows nothing of text or HTTP."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from lorimer.errors import EngineError
from lorimer.inference.adapter_pool import AdapterPool
from lorimer.inference.kv_cache import BLOCK_LEN, CachedSegments, KVCache, Work, num_tokens_that_fit
from lorimer.inference.sampling import sample
from lorimer.inference.scheduler import Scheduler
from lorimer.inference.sequence import Sequence
from lorimer.model.base import Base
from lorimer.model.lora import AdapterRows


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How much the engine takes on at once."""

    max_sequences: int = 32
    max_tokens_per_step: int = 2048
    cache_bytes: int = 1_000_000_000


class Engine:
    """One base, many adapters, continuous batching (Yu et al. 2022, Orca, OSDI)."""

    def __init__(self, base: Base, config: EngineConfig | None = None) -> None:
        config = config or EngineConfig()
        self.base = base
        self.adapters = AdapterPool(base)
        self.cache = KVCache(num_tokens_that_fit(base, config.cache_bytes))
        self.scheduler = Scheduler(self.cache, max_sequences=config.max_sequences, max_tokens_per_step=config.max_tokens_per_step)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work

    @property
    def max_len(self) -> int:
        """Tokens the longest sequence may have, prompt and answer together."""
        return min(self.base.max_len, self.cache.num_blocks * BLOCK_LEN)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            EngineError: if it can never be served: empty, too long for base or cache, adapter not loaded.
        """
        if not sequence.prompt_ids:
            raise EngineError("the prompt has no tokens")
        if sequence.params.max_tokens < 1:
            raise EngineError(f"max_tokens is {sequence.params.max_tokens}: ask for at least one token")
        if sequence.max_len > self.max_len:
            raise EngineError(
                f"prompt of {len(sequence.prompt_ids)} tokens plus {sequence.params.max_tokens} asked for is {sequence.max_len}, "
                f"but this engine's limit is {self.max_len}: shorten the prompt or ask for fewer tokens"
            )
        if sequence.adapter is not None:
            self.adapters.get(sequence.adapter)
        if sequence.params.temperature > 0:
            sequence.generator = torch.Generator(device=self.base.device)
            sequence.generator.manual_seed(sequence.params.seed) if sequence.params.seed is not None else sequence.generator.seed()
        self.scheduler.add(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Stop a sequence between steps; harmless if it has finished."""
        if sequence.finish_reason is None:
            sequence.finish_reason = "aborted"
            self.scheduler.remove(sequence)

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Compute one batch; returns the sequences that got a token or finished."""
        # 1) schedule
        works = self.scheduler.schedule()
        if not works:
            return []
        # 2) run
        device = self.base.device
        ids = torch.tensor([i for work in works for i in work.sequence.ids_between(work.start, work.stop)], device=device)
        positions = torch.cat([torch.arange(work.start, work.stop, device=device) for work in works])
        segments = CachedSegments(self.cache, works, device)
        hidden = self.base.hidden_states(ids, positions, segments, self._adapter_rows(works))  # (T, h)
        # 3) sample where the sequence's last token was computed
        last_rows, row, sampled = [], 0, []
        for work in works:
            row += work.stop - work.start
            work.sequence.num_computed = work.stop
            if work.stop == work.sequence.num_tokens:
                last_rows.append(row - 1)
                sampled.append(work.sequence)
        if not sampled:
            return []
        logits = self.base.head.logits(hidden[last_rows])  # (n, V)
        tokens = sample(logits, [s.params for s in sampled], [s.generator for s in sampled])
        # 4) finish
        for sequence, token in zip(sampled, tokens, strict=True):
            self._take(sequence, token)
        return sampled

    def _take(self, sequence: Sequence, token: int) -> None:
        """Add a token to a sequence, or end it. The stop token itself is not part of the answer."""
        if token in self.base.renderer.stop_ids and not sequence.params.ignore_eos:
            sequence.finish_reason = "stop"
        else:
            sequence.output_ids.append(token)
            if len(sequence.output_ids) >= sequence.params.max_tokens:
                sequence.finish_reason = "length"
        if sequence.finish_reason is not None:
            self.scheduler.remove(sequence)

    def _adapter_rows(self, works: list[Work]) -> list[AdapterRows]:
        """Neighbouring works of one adapter as one range of rows."""
        rows: list[AdapterRows] = []
        start, digests = 0, [work.sequence.adapter for work in works]
        for index, work in enumerate(works):
            stop = start + work.stop - work.start
            if index and digests[index] == digests[index - 1]:
                rows[-1] = AdapterRows(start=rows[-1].start, stop=stop, adapter=rows[-1].adapter)
            else:
                digest = digests[index]
                rows.append(AdapterRows(start=start, stop=stop, adapter=None if digest is None else self.adapters.get(digest)))
            start = stop
        return rows


def generate(engine: Engine, sequences: Iterable[Sequence]) -> Iterator[Sequence]:
    """Run sequences to their end; yields each as it finishes."""
    for sequence in sequences:
        engine.add(sequence)
    while engine.has_work:
        yield from (sequence for sequence in engine.step() if sequence.finish_reason is not None)
