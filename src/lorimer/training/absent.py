"""Planning for a base that is not here, from its configuration alone: full fine-tuning, LoRA and QLoRA side by side."""

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedConfig

from lorimer.model.machine import Machine
from lorimer.training.footprint import Footprint, adapter_for, compare_methods, flops
from lorimer.training.plan import Range

MICRO_BATCH_TOKENS = 2048
EFFICIENCY = (0.4, 0.7)  # share of a machine's product rate that whole steps reach (bench/results/train.json)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What would be trained on."""

    rank: int
    num_rows: int
    row_len: int
    num_supervised: int
    """Learned tokens of a row."""
    epochs: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodPlan:
    """One way of adapting the base."""

    method: str
    num_parameters: int
    num_trained: int
    saved_bytes: int
    """Of what is kept in the end: an adapter in float32, or the whole base in 16 bits."""
    memory_bytes: float
    checkpointed_bytes: float
    """The same with each layer computed again in the backward pass."""
    fits: bool
    """In this machine's memory, one way or the other."""
    seconds: Range
    """At this machine's product rate."""


def plan_absent(config: PreTrainedConfig, job: Job, machine: Machine) -> Iterator[MethodPlan]:
    """Memory and time of each method, one micro-batch at a time."""
    lora = adapter_for(config, job.rank)
    num_tokens = max(job.row_len, MICRO_BATCH_TOKENS // job.row_len * job.row_len)
    for method, footprint in compare_methods(config, rank=job.rank, row_len=job.row_len).items():
        operations = flops(config, None if method == "full" else lora, row_len=job.row_len)
        num_seen = job.epochs * job.num_rows
        total = operations.total(num_seen * job.row_len, num_seen * job.num_supervised)
        slow, fast = (total / (machine.flops_per_second * share) for share in EFFICIENCY)
        whole, twice = footprint.peak_bytes(num_tokens, job.row_len), _one_row_checkpointed(footprint, job.row_len)
        yield MethodPlan(
            method=method,
            num_parameters=footprint.num_parameters,
            num_trained=footprint.num_trained,
            saved_bytes=2 * footprint.num_parameters if method == "full" else 4 * footprint.num_trained,
            memory_bytes=whole,
            checkpointed_bytes=twice,
            fits=min(whole, twice) < machine.memory_bytes,
            seconds=Range(low=fast, middle=(fast + slow) / 2, high=slow),
        )


def _one_row_checkpointed(footprint: Footprint, row_len: int) -> float:
    """The least there is: one row at a time, every layer computed twice."""
    return footprint.checkpointed_peak_bytes(row_len, row_len)
