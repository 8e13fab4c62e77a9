"""Who runs in the next step: every running sequence gets its next token, prompts are computed piece by piece with what is left.

Waiting sequences are let in by deficit round robin (Shreedhar and Varghese 1995, SIGCOMM): first between tenants, within a tenant between
compositions, each turn paid in tokens, so that many or long requests of one cannot starve another. Who has waited too long goes first.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from lorimer.inference.blocks import BLOCK_LEN, first_key
from lorimer.inference.kv_cache import KVCache, Work, num_blocks_for
from lorimer.inference.sequence import Sequence

QUANTUM = 512  # tokens a turn adds to what a tenant may spend
MAX_WAIT_SECONDS = 10.0


class Flow:
    """What one tenant has waiting: a queue for each composition, in turns."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[Sequence]] = {}
        self.deficit = 0

    def add(self, sequence: Sequence) -> None:
        self.queues.setdefault(sequence.composition.digest, deque()).append(sequence)

    @property
    def first(self) -> Sequence:
        """Whose turn it is."""
        return next(iter(self.queues.values()))[0]

    def pop(self) -> Sequence:
        """Take the first out; its composition's next turn comes after the others'."""
        digest, queue = next(iter(self.queues.items()))
        sequence = queue.popleft()
        del self.queues[digest]
        if queue:
            self.queues[digest] = queue
        return sequence

    def remove(self, sequence: Sequence) -> bool:
        queue = self.queues.get(sequence.composition.digest, deque())
        if sequence not in queue:
            return False
        queue.remove(sequence)
        if not queue:
            del self.queues[sequence.composition.digest]
        return True


class WaitingLine:
    """All that waits."""

    def __init__(self, *, max_wait_seconds: float, clock: Callable[[], float]) -> None:
        self.flows: dict[str, Flow] = {}
        self.max_wait_seconds, self.clock = max_wait_seconds, clock
        self.returned: deque[Sequence] = deque()  # thrown out of the cache: they have paid already and come back first

    def __len__(self) -> int:
        return len(self.returned) + sum(len(queue) for flow in self.flows.values() for queue in flow.queues.values())

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.returned
        yield from (sequence for flow in self.flows.values() for queue in flow.queues.values() for sequence in queue)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        sequence.arrived_at = self.clock()
        self.flows.setdefault(sequence.tenant, Flow()).add(sequence)

    def next(self) -> Sequence | None:
        """Whose turn it is; asking again without taking it gives the same one."""
        if self.returned:
            return self.returned[0]
        if not self.flows:
            return None
        oldest = min((flow.first for flow in self.flows.values()), key=lambda sequence: sequence.arrived_at)
        if self.clock() - oldest.arrived_at > self.max_wait_seconds:
            return oldest
        while True:
            tenant, flow = next(iter(self.flows.items()))
            if cost_of(flow.first) <= flow.deficit:
                return flow.first
            flow.deficit += QUANTUM
            if len(self.flows) > 1:
                self.flows[tenant] = self.flows.pop(tenant)  # the next tenant's turn

    def take(self, sequence: Sequence) -> None:
        """Take out the one that `next` named."""
        if self.returned and self.returned[0] is sequence:
            self.returned.popleft()
            return
        flow = self.flows[sequence.tenant]
        flow.deficit -= cost_of(sequence)
        flow.pop()
        if not flow.queues:
            del self.flows[sequence.tenant]  # what it had left is gone: idling saves nothing up

    def remove(self, sequence: Sequence) -> bool:
        """Take out a sequence that is not wanted any more; False if it was not here."""
        if sequence in self.returned:
            self.returned.remove(sequence)
            return True
        flow = self.flows.get(sequence.tenant)
        if flow is None or not flow.remove(sequence):
            return False
        if not flow.queues:
            del self.flows[sequence.tenant]
        return True


def cost_of(sequence: Sequence) -> int:
    """Tokens a sequence may take up."""
    return sequence.max_len


class Scheduler:
    """Blocks are given as sequences grow. When they run out, the latest comer gives its own back and is computed again later."""

    def __init__(
        self,
        cache: KVCache,
        *,
        base_digest: str,
        max_sequences: int,
        max_tokens_per_step: int,
        max_adapters: int = 64,
        reuses_prefixes: bool = True,
        max_wait_seconds: float = MAX_WAIT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cache, self.base_digest = cache, base_digest
        self.max_sequences, self.max_tokens_per_step, self.max_adapters = max_sequences, max_tokens_per_step, max_adapters
        self.reuses_prefixes = reuses_prefixes
        self.waiting = WaitingLine(max_wait_seconds=max_wait_seconds, clock=clock)
        self.running: list[Sequence] = []  # in the order they were let in
        self.num_preempted = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.running) or len(self.waiting) > 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> bool:
        """Take a sequence out, wherever it is, and free its blocks; False if it was not here."""
        if sequence not in self.running:
            return self.waiting.remove(sequence)
        self.running.remove(sequence)
        self._release(sequence)
        return True

    def schedule(self) -> list[Work]:
        """The works of the next step, the shorter first."""
        works, budget = list[Work](), self.max_tokens_per_step
        for sequence in sorted(self.running, key=lambda s: s.num_tokens - s.num_computed):
            if sequence in self.running and budget and (work := self._next_work(sequence, budget)) is not None:
                works.append(work)
                budget -= work.num_tokens
        while budget and (work := self._admit(budget)) is not None:
            works.append(work)
            budget -= work.num_tokens
        works = [work for work in works if work.sequence in self.running]  # one may have been thrown out for another
        return sorted(works, key=lambda work: work.num_tokens)

    def note_computed(self, works: Iterable[Work]) -> None:
        """Name the blocks that a step has filled."""
        for work in works:
            sequence = work.sequence
            sequence.num_computed = work.stop
            if self.reuses_prefixes and work.stop // BLOCK_LEN > work.start // BLOCK_LEN:
                keys = sequence.keys_of_full_blocks(self._first_key(sequence), work.stop)
                for at in range(work.start // BLOCK_LEN, len(keys)):
                    self.cache.blocks.name(sequence.blocks[at], keys[at])

    def _admit(self, budget: int) -> Work | None:
        """Let the next in line run, if there is room: its beginning may be in the cache already."""
        sequence = self.waiting.next()
        if sequence is None or len(self.running) >= self.max_sequences or not self._has_adapter_room(sequence):
            return None
        known = self._hold_known(sequence)
        start = len(known) * BLOCK_LEN
        stop = min(sequence.num_tokens, start + budget)
        spare = len(self.running)  # a block for each that runs already, lest this one be thrown out at once
        own = None
        if self.cache.blocks.num_idle >= num_blocks_for(stop) - len(known) + spare or not self.running:
            own = self.cache.blocks.take(num_blocks_for(stop) - len(known))
        if own is None:
            self.cache.blocks.release(known)
            return None
        self.waiting.take(sequence)
        sequence.blocks, sequence.num_computed = [*known, *own], start
        sequence.num_reused = sequence.num_reused or start
        self.running.append(sequence)
        return Work(sequence=sequence, start=start, stop=stop)

    def _hold_known(self, sequence: Sequence) -> list[int]:
        """Blocks of its beginning that are in the cache; at least one token is left to compute."""
        if not self.reuses_prefixes or sequence.needs_whole_prompt:
            return []
        return self.cache.blocks.hold_known(sequence.keys_of_full_blocks(self._first_key(sequence), sequence.num_tokens - 1))

    def _next_work(self, sequence: Sequence, budget: int) -> Work | None:
        """The next tokens of a running sequence, with blocks for them."""
        start = sequence.num_computed
        stop = min(sequence.num_tokens, start + budget)
        missing = num_blocks_for(stop) - len(sequence.blocks)
        while missing > self.cache.blocks.num_idle:
            latest = self.running[-1]
            self._preempt(latest)
            if latest is sequence:
                return None
        sequence.blocks += self.cache.blocks.take(missing) or []
        return Work(sequence=sequence, start=start, stop=stop)

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's blocks; what it has said stays said, its keys and values are computed again."""
        self.num_preempted += 1
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        self.waiting.returned.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.cache.blocks.release(sequence.blocks)
        sequence.blocks = []

    def _has_adapter_room(self, sequence: Sequence) -> bool:
        """Whether its adapters fit beside those of the batch."""
        active = {digest for other in self.running for digest in other.composition.digests}
        return not self.running or len(active | set(sequence.composition.digests)) <= self.max_adapters

    def _first_key(self, sequence: Sequence) -> bytes:
        return first_key(self.base_digest, sequence.composition.digest)
