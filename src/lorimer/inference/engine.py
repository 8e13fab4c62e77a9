"""The engine: sequences in, tokens out, step by step; sequences of different adapters share every batch. Knows nothing of text or HTTP."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lorimer.errors import EngineError
from lorimer.inference.adapter_pool import AdapterPool
from lorimer.inference.batched_lora import BatchedLoRA, RowRange, SharedRows
from lorimer.inference.blocks import BLOCK_LEN
from lorimer.inference.compiled_product import faster
from lorimer.inference.compiled_rows import compiled_rows
from lorimer.inference.decoder import FusedDecoder, make_decoder
from lorimer.inference.kv_cache import CachedSegments, KVCache, Work, num_tokens_that_fit
from lorimer.inference.sampling import Choice, Row, choose, scores_of
from lorimer.inference.scheduler import MAX_WAIT_SECONDS, Scheduler
from lorimer.inference.sequence import Sequence
from lorimer.inference.slab import Slab
from lorimer.model.base import Base
from lorimer.model.machine import give_back_freed_memory, give_back_pages
from lorimer.model.packed import PackedLinear

SCORED_ROWS = 32  # of a prompt at once: each has a logit for every token of the vocabulary
BROKEN = "the answer left the finite numbers: its adapter's weights are too large for this prompt; train it again, or ask another one"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How much the engine takes on at once."""

    max_sequences: int = 32
    max_tokens_per_step: int = 512
    """Of prompts and answers together: a long prompt is computed in pieces, so that answers in flight do not wait for it."""
    cache_bytes: int = 1_000_000_000
    adapter_bytes: int = 2_000_000_000
    max_adapters: int = 64
    """In one batch."""
    reuses_prefixes: bool = True
    uses_kernels: bool = True
    """What kernels.c does is done by it where it can be compiled, else by torch."""
    max_wait_seconds: float = MAX_WAIT_SECONDS
    """After which a waiting sequence goes before everybody else's turn."""


class Engine:
    """One base, many adapters, continuous batching (Yu et al. 2022, Orca, OSDI)."""

    def __init__(self, base: Base, config: EngineConfig | None = None) -> None:
        self.config = config = config or EngineConfig()
        self.base = base
        self.decoder = make_decoder(base, uses_kernels=config.uses_kernels)
        self.head = PackedLinear([base.head.weight], [base.head.bias])
        self.kernels = self.decoder.kernels if isinstance(self.decoder, FusedDecoder) else None
        self.multiply_head = faster(self.head, self.kernels)
        groups, dtype, device = self.decoder.groups, base.dtype, base.device
        compiled = compiled_rows(groups, dtype=dtype, device=device) if config.uses_kernels else None
        self.rows: SharedRows = compiled or Slab(groups, dtype=dtype, device=device)
        self.adapters = AdapterPool(base, dense_weight=self.decoder.dense_weight, max_bytes=config.adapter_bytes, on_leave=self.rows.drop)
        self.cache = KVCache(num_tokens_that_fit(base, config.cache_bytes))
        self.scheduler = Scheduler(
            self.cache,
            base_digest=base.digest,
            max_sequences=config.max_sequences,
            max_tokens_per_step=config.max_tokens_per_step,
            max_adapters=config.max_adapters,
            reuses_prefixes=config.reuses_prefixes,
            max_wait_seconds=config.max_wait_seconds,
        )

    def release_base(self) -> None:
        """Let go of the base's own copies of weights that are copied here: after it nothing but this engine can use the base."""
        if not isinstance(self.decoder, FusedDecoder):
            return
        for name, (packed, _) in self.decoder.places.items():
            _let_go(self.base.layers[name].weight, packed)
        head = self.base.head.weight
        if head.data_ptr() != self.base.model.get_input_embeddings().weight.data_ptr():  # where it is tied, prompts are read from it
            _let_go(head, self.head)
        give_back_freed_memory()

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work

    @property
    def max_len(self) -> int:
        """Tokens the longest sequence may have, prompt and answer together."""
        return min(self.base.max_len, self.cache.blocks.num_blocks * BLOCK_LEN)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its adapters stay resident until it ends.

        Raises:
            EngineError: if it can never be served: empty, too long for base or cache, adapter not loaded.
        """
        if not sequence.prompt_ids:
            raise EngineError("the prompt has no tokens")
        if sequence.params.max_tokens < (0 if sequence.wants_prompt_scores else 1):
            raise EngineError(f"max_tokens is {sequence.params.max_tokens}: ask for at least one token")
        if sequence.max_len > self.max_len:
            raise EngineError(
                f"prompt of {len(sequence.prompt_ids)} tokens plus {sequence.params.max_tokens} asked for is {sequence.max_len}, "
                f"but this engine's limit is {self.max_len}: shorten the prompt or ask for fewer tokens"
            )
        if sequence.params.temperature > 0:
            sequence.generator = torch.Generator(device=self.base.device)
            sequence.generator.manual_seed(sequence.params.seed) if sequence.params.seed is not None else sequence.generator.seed()
        self.adapters.hold(sequence.composition)
        self.scheduler.add(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Stop a sequence between steps; harmless if it has finished or was never added."""
        if sequence.finish_reason is None:
            sequence.finish_reason = "aborted"
            self._end(sequence)

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Compute one batch; returns the sequences that got a token or finished."""
        # 1) schedule
        works = self.scheduler.schedule()
        if not works:
            return []
        # 2) run
        hidden = self._run(works)  # (T, h)
        failed = self._fail_broken(works, hidden)
        self.scheduler.note_computed(work for work in works if work.sequence.failure is None)
        # 3) choose where the sequence's last token was computed
        last_rows, row, advanced, ended = list[int](), 0, list[Sequence](), failed
        for work in works:
            row += work.num_tokens
            if work.sequence.failure is not None:
                continue
            if work.sequence.wants_state:
                _note_state(work, hidden[row - work.num_tokens : row])
            if work.sequence.wants_prompt_scores:
                self._score_prompt(work, hidden[row - work.num_tokens : row])
            if work.stop == work.sequence.num_tokens and work.sequence.params.max_tokens == 0:
                work.sequence.finish_reason = "length"
                self._end(work.sequence)
                ended.append(work.sequence)
            elif work.stop == work.sequence.num_tokens:
                last_rows.append(row - 1)
                advanced.append(work.sequence)
        if not advanced:
            return ended
        rows = [
            Row(params=s.params, generator=s.generator, constraint=s.constraint, prompt_ids=s.prompt_ids, output_ids=s.output_ids)
            for s in advanced
        ]
        choices = choose(self.logits(hidden[last_rows]), rows, self.kernels)
        # 4) finish
        for sequence, choice in zip(advanced, choices, strict=True):
            self._take(sequence, choice)
        return advanced + ended

    def _score_prompt(self, work: Work, hidden: Tensor) -> None:
        """Take a work's hidden states (T, h) into its prompt's log-probabilities: each place tells of the token after it."""
        sequence = work.sequence
        start = max(work.start, len(sequence.prompt_scores))  # not twice, where it was thrown out of the cache meanwhile
        stop = min(work.stop, len(sequence.prompt_ids) - 1)
        for at in range(start, stop, SCORED_ROWS):
            until = min(at + SCORED_ROWS, stop)
            logits = self.logits(hidden[at - work.start : until - work.start])
            next_ids = sequence.prompt_ids[at + 1 : until + 1]
            sequence.prompt_scores += scores_of(logits, next_ids, sequence.params.num_logprobs or 0)

    def _fail_broken(self, works: list[Work], hidden: Tensor) -> list[Sequence]:
        """End the sequences whose hidden states (T, h) are no numbers any more; what they kept goes before their blocks are others'."""
        is_whole = hidden.sum(-1, dtype=torch.float32).isfinite()
        if bool(is_whole.all()):
            return []
        failed, row = list[Sequence](), 0
        for work in works:
            row += work.num_tokens
            if not bool(is_whole[row - work.num_tokens : row].all()):
                self.cache.wipe(work.sequence.blocks, work.start, work.stop)
                work.sequence.failure = BROKEN
                self.abort(work.sequence)
                failed.append(work.sequence)
        return failed

    def _run(self, works: list[Work]) -> Tensor:
        """Hidden states (T, h) of a step's tokens, each through its own adapters."""
        device = self.base.device
        ids = torch.tensor([i for work in works for i in work.sequence.ids_between(work.start, work.stop)], device=device)
        positions = torch.tensor([place for work in works for place in range(work.start, work.stop)], device=device)
        segments = CachedSegments(self.cache, works, device, self.kernels)
        return self.decoder.run(ids, positions, segments, self._lora(works))

    def _lora(self, works: list[Work]) -> BatchedLoRA:
        ranges, start = [], 0
        for work in works:
            ranges.append(RowRange(start=start, stop=start + work.num_tokens, composition=work.sequence.composition))
            start += work.num_tokens
        digests = {digest for work in works for digest in work.sequence.composition.digests}
        return BatchedLoRA(self.rows, {digest: self.adapters.get(digest) for digest in digests}, ranges)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (n, h) -> (n, V)."""
        return self.base.head.shape(self.multiply_head(hidden))

    def _take(self, sequence: Sequence, choice: Choice) -> None:
        """Add a token to a sequence, or end it. The stop token itself is not part of the answer, but has its score beside a prompt's."""
        token = choice.token_id
        if token in self.base.renderer.stop_ids and not sequence.params.ignore_eos:
            sequence.finish_reason = "stop"
            if sequence.wants_prompt_scores and choice.scores is not None:
                sequence.scores.append(choice.scores)
        else:
            sequence.output_ids.append(token)
            if choice.scores is not None:
                sequence.scores.append(choice.scores)
            if sequence.constraint is not None:
                sequence.constraint.accept(token)
            if sequence.constraint is not None and sequence.constraint.is_done:
                sequence.finish_reason = "stop"
            elif len(sequence.output_ids) >= sequence.params.max_tokens:
                sequence.finish_reason = "length"
        if sequence.finish_reason is not None:
            self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        if self.scheduler.remove(sequence):
            self.adapters.release(sequence.composition)


def _let_go(weight: Tensor, packed: PackedLinear) -> None:
    """Leave a weight its shape alone, if its numbers lie in a product of their own; who reads it yet reads no numbers."""
    if packed.weight.is_mkldnn or packed.weight.data_ptr() != weight.data_ptr():
        give_back_pages(weight.data)
        weight.data = weight.data.new_full((), float("nan")).expand(weight.shape)


def _note_state(work: Work, hidden: Tensor) -> None:
    """Take a work's hidden states (T, h) into the mean of its sequence's prompt."""
    sequence, rows = work.sequence, hidden.float()
    if work.start == 0 or sequence.state is None:
        sequence.state = rows[1:].sum(0) / max(1, work.stop - 1)
    else:
        sequence.state = (sequence.state * (work.start - 1) + rows.sum(0)) / (work.stop - 1)


def generate(engine: Engine, sequences: Iterable[Sequence]) -> Iterator[Sequence]:
    """Run sequences to their end; yields each as it finishes.

    Raises:
        EngineError: if one cannot be computed.
    """
    for sequence in sequences:
        engine.add(sequence)
    while engine.has_work:
        for sequence in engine.step():
            if sequence.failure is not None:
                raise EngineError(sequence.failure)
            if sequence.finish_reason is not None:
                yield sequence
