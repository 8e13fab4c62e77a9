"""Who runs in the next step: every running sequence gets its next token, waiting ones are prefilled with what is left of the budget."""

from collections import deque

from lorimer.inference.kv_cache import KVCache, Work
from lorimer.inference.sequence import Sequence


class Scheduler:
    """First come, first served. A sequence is admitted when all it may grow to fits in the cache, so none ever has to be thrown out."""

    def __init__(self, cache: KVCache, *, max_sequences: int, max_tokens_per_step: int) -> None:
        self.cache = cache
        self.max_sequences, self.max_tokens_per_step = max_sequences, max_tokens_per_step
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.cache.release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Work]:
        """The works of the next step, rows of one adapter side by side."""
        while self.waiting and len(self.running) < self.max_sequences and self.cache.allocate(self.waiting[0]):
            self.running.append(self.waiting.popleft())
        budget, works = self.max_tokens_per_step, []
        for sequence in sorted(self.running, key=lambda s: s.num_tokens - s.num_computed):  # decoding first
            count = min(sequence.num_tokens - sequence.num_computed, budget)
            if count:
                works.append(Work(sequence=sequence, start=sequence.num_computed, stop=sequence.num_computed + count))
                budget -= count
        return sorted(works, key=lambda work: work.sequence.adapter or "")
