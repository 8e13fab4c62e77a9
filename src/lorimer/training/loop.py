"""The training loop: flat, read top to bottom; yields what happened in each step and leaves logging and saving to the caller."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from lorimer.errors import TrainingError
from lorimer.model.attention import PackedSegments
from lorimer.model.base import Base
from lorimer.model.lora import AdapterRows, LoRA
from lorimer.training.batching import Batch, MicroBatch
from lorimer.training.loss import cross_entropy_sum
from lorimer.training.optim import OptimizerConfig, learning_rate_at, make_optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One optimizer step."""

    step: int
    """From 1."""
    num_steps: int
    loss: float
    """Mean negative log-likelihood per supervised token, in nats."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    num_tokens: int
    num_supervised: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """All tokens of the step, prompts included."""
        return self.num_tokens / self.seconds


def train(base: Base, lora: LoRA, batches: Iterable[Batch], config: OptimizerConfig, num_steps: int) -> Iterator[StepMetrics]:
    """Change `lora` in place, one yielded step after the other.

    Raises:
        TrainingError: if loss or gradients are not finite; the weights are then those of the step before.
    """
    parameters = lora.parameters()
    optimizer = make_optimizer(parameters, config)
    for step, batch in enumerate(batches):
        start = time.perf_counter()
        # 1) gradients of the mean loss over the step's supervised tokens, however many micro-batches hold them
        optimizer.zero_grad(set_to_none=True)
        loss = sum(_accumulate(base, lora, micro, batch.num_supervised) for micro in batch.micro_batches)
        # 2) refuse to learn from anything that is not a number
        grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingError(
                f"step {step + 1}: loss {loss} and gradient norm {grad_norm} are not both finite: "
                f"try a smaller learning rate than {config.learning_rate:g}"
            )
        # 3) step
        learning_rate = learning_rate_at(step, num_steps, config.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        yield StepMetrics(
            step=step + 1,
            num_steps=num_steps,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            num_tokens=batch.num_tokens,
            num_supervised=batch.num_supervised,
            seconds=time.perf_counter() - start,
        )


def _accumulate(base: Base, lora: LoRA, micro: MicroBatch, num_supervised: int) -> float:
    """Add one micro-batch's gradients; returns its share of the mean loss."""
    device = base.device
    segments = PackedSegments(micro.lengths, device)
    rows = [AdapterRows(start=0, stop=len(micro.ids), adapter=lora)]
    hidden = base.hidden_states(micro.ids.to(device), micro.positions.to(device), segments, rows)  # (T, h)
    loss = cross_entropy_sum(hidden.index_select(0, micro.predicting.to(device)), base.head, micro.targets.to(device)) / num_supervised
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())
