"""What a run needs on this machine: memory counted for its own micro-batches, time from a probe of its own step."""

import random
import statistics
import time
from dataclasses import dataclass, replace

from lorimer.errors import TrainingError
from lorimer.model.base import Base
from lorimer.model.lora import LoRAConfig, initialise
from lorimer.model.machine import Machine
from lorimer.training.batching import Batch, MicroBatch, make_batch, row_order
from lorimer.training.footprint import flops, footprint
from lorimer.training.frozen import lowest_layer, num_state_bytes
from lorimer.training.inspection import LearningReport
from lorimer.training.loop import Learner, accumulate
from lorimer.training.optim import OptimizerConfig, make_optimizer
from lorimer.training.preference import make_pair_batch
from lorimer.training.tracing import SavedBytes, count_saved_bytes

MICRO_BATCH_TOKENS = 2048  # products are at full speed from about a thousand rows on
MAX_SHARE_OF_MEMORY = 0.9
MAX_SHARE_OF_FROZEN_STATES = 0.25  # of the machine's memory
NUM_SAMPLED_STEPS = 64  # whose real batches are laid out to count what a step computes
PROBE_SECONDS, NUM_PROBES = 8.0, 6
PREFERENCE_HEAD = 1.5  # times the head's operations: its logits are formed again in the backward pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What decides how much a run's steps compute and keep."""

    base: Base
    lora: LoRAConfig
    report: LearningReport
    batch_size: int
    num_steps: int
    seed: int

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.ids) for split in (self.report.rendered, self.report.rejected) for row in split["train"])

    @property
    def mean_len(self) -> int:
        """Tokens of a row, on average."""
        return max(2, round(self.report.num_tokens / self.report.num_rows))

    def sample(self, budget: int) -> list[Batch]:
        """Batches of the run itself, from all its steps."""
        rows, rejected = self.report.rendered["train"], self.report.rejected["train"]
        order = list(row_order(len(rows), batch_size=self.batch_size, num_steps=min(self.num_steps, 20_000), seed=self.seed))
        chosen = order if len(order) <= NUM_SAMPLED_STEPS else random.Random(0).sample(order, NUM_SAMPLED_STEPS)
        if not rejected:
            return [make_batch(rows, row_ids, budget, share_prefixes=not self.lora.dropout) for row_ids in chosen]
        pairs = [row for pair in zip(rows, rejected, strict=True) for row in pair]
        return [make_pair_batch(pairs, row_ids, budget) for row_ids in chosen]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFit:
    """The fastest way of computing a step that the machine's memory holds."""

    tokens_per_micro_batch: int
    is_checkpointed: bool
    peak_bytes: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeEstimate:
    """For all steps of a run."""

    seconds: float
    num_computed_tokens: int


def frozen_layer(work: Work, machine: Machine) -> int:
    """The lowest adapted layer, where the states below it are used more than once and keeping them is cheap; else 0."""
    is_repeated = work.num_steps * work.batch_size > work.report.num_rows
    fits = num_state_bytes(work.base, work.report.num_tokens) < MAX_SHARE_OF_FROZEN_STATES * machine.memory_bytes
    return lowest_layer(work.lora.target_modules) if is_repeated and fits and not work.report.rejected["train"] else 0


def fit_memory(work: Work, machine: Machine) -> MemoryFit:
    """Whole micro-batches if they fit, smaller ones if not, layers computed twice as the last resort.

    Raises:
        TrainingError: if even one row at a time does not fit, with what would.
    """
    limit, budget = MAX_SHARE_OF_MEMORY * machine.memory_bytes, max(MICRO_BATCH_TOKENS, work.longest)
    while (needed := peak_bytes(work, budget, is_checkpointed=False)) > limit and budget > work.longest:
        budget = max(work.longest, budget // 2)
    if needed <= limit:
        why = "not needed: what the backward pass needs fits in memory"
        return MemoryFit(tokens_per_micro_batch=budget, is_checkpointed=False, peak_bytes=needed, why=why)
    needed = peak_bytes(work, budget, is_checkpointed=True)
    if needed > limit:
        raise TrainingError(
            f"the run needs at least {needed / 1e9:.1f} GB with one row at a time, this machine has {machine.memory_bytes / 1e9:.1f} GB: "
            f"leave out long rows with `max_len` (rows have {work.mean_len} tokens on average, {work.longest} at most), "
            "hold the base in 4 bits with `quantise: nf4`, or take a smaller base"
        )
    why = "each layer is computed again in the backward pass, as memory does not hold what it needs"
    return MemoryFit(tokens_per_micro_batch=budget, is_checkpointed=True, peak_bytes=needed, why=why)


def peak_bytes(work: Work, budget: int, *, is_checkpointed: bool) -> float:
    """Counted for the largest micro-batch of those the run will really have."""
    base, config = work.base, work.base.model.config.get_text_config()
    micro = max((m for batch in work.sample(budget) for m in batch.micro_batches), key=lambda m: len(m.ids))
    kept = count_saved_bytes(config, work.lora, micro.groups, dtype=base.dtype)
    counted = SavedBytes(row_len=work.mean_len, fixed=kept, per_token=0.0, per_score=0.0)
    parts = footprint(config, work.lora, row_len=work.mean_len, dtype=base.dtype, quantise=base.quantisation, saved=counted)
    parts = replace(parts, head_bytes=min(parts.head_bytes, len(micro.targets) * base.dtype.itemsize * base.head.weight.shape[0]))
    num_tokens = len(micro.ids)
    return parts.checkpointed_peak_bytes(num_tokens, work.mean_len) if is_checkpointed else parts.peak_bytes(num_tokens, work.mean_len)


def estimate_seconds(work: Work, fit: MemoryFit, from_layer: int) -> TimeEstimate:
    """Operations of all steps over the rate at which this machine computes one of them, measured in a few seconds."""
    batches = work.sample(fit.tokens_per_micro_batch)
    micro_batches = [micro for batch in batches for micro in batch.micro_batches]
    per_run = work.num_steps / len(batches)
    operations = flops(work.base.model.config.get_text_config(), work.lora, row_len=work.mean_len)
    if work.report.rejected["train"]:
        operations = replace(operations, per_supervised_token=PREFERENCE_HEAD * operations.per_supervised_token)
    typical = sorted(micro_batches, key=lambda m: len(m.ids))[len(micro_batches) // 2]
    seconds = _probe_seconds(work, typical, fit.is_checkpointed)
    rate = operations.total(len(typical.ids), len(typical.targets)) / seconds
    if from_layer:  # the probe ran the layers below, the run will not
        operations = replace(operations, per_token_below=0.0)
    num_computed = sum(len(micro.ids) for micro in micro_batches)
    total = operations.total(num_computed, sum(len(micro.targets) for micro in micro_batches))
    return TimeEstimate(seconds=total / rate * per_run, num_computed_tokens=round(num_computed * per_run))


def _probe_seconds(work: Work, micro: MicroBatch, is_checkpointed: bool) -> float:
    """One micro-batch forward and back through an adapter that is thrown away: the median of a few.

    The first is left out where there is another: it waits for memory and products to be prepared, as few of a run's steps do.
    """
    base, lora = work.base, initialise(replace(work.lora, kind="lora"), work.base.layers, work.seed)
    config = OptimizerConfig(learning_rate=1e-4)
    learner = Learner(
        run_id="", lora=lora, optimizer=make_optimizer(lora, config), config=config, batches=iter(()), num_steps=1, objective=None
    )
    batch = Batch(micro_batches=(micro,), num_supervised=len(micro.targets), num_tokens=micro.num_row_tokens, num_rows=len(micro.row_ids))
    before, base.is_checkpointed = base.is_checkpointed, is_checkpointed
    seconds = list[float]()
    try:
        while len(seconds) < NUM_PROBES and sum(seconds) < PROBE_SECONDS:
            start = time.perf_counter()
            accumulate(base, [learner], [batch], micro)
            learner.optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - start)
    finally:
        base.is_checkpointed = before
    return statistics.median(seconds[1:] or seconds)
