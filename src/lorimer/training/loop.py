"""The training loop, flat and read top to bottom: one adapter or several over one base, each learning as if it were alone.

It yields what happened in each step and leaves logging, validating and saving to the caller, who may act between steps: mark a
learner stopped, or add one to the list.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from lorimer.model.attention import PackedSegments
from lorimer.model.base import Base
from lorimer.model.lora import AdapterRows, LoRA
from lorimer.training.batching import Batch, MicroBatch, Part, fuse
from lorimer.training.frozen import FrozenStates
from lorimer.training.loss import cross_entropy
from lorimer.training.optim import OptimizerConfig, clip, learning_rate_at, take_step

Mode = Literal["strict", "fused"]
MOVED_BY_STEP = 5  # by then every adapted layer must have changed
FIRST_LOSS_TOLERANCE = 0.01
IMPLAUSIBLE_LOSS = 1.5  # times that of a uniform guess


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One optimizer step of one run."""

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
    run_id: str = ""

    @property
    def tokens_per_second(self) -> float:
        """All tokens of the step's rows, prompts included."""
        return self.num_tokens / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailure:
    """A run that cannot go on; its weights are those of the step before, and others in the pack go on without it."""

    run_id: str
    step: int
    reason: str


class Objective(Protocol):
    """What is learned, where it is not the next token."""

    @property
    def first_loss(self) -> float | None:
        """What the first step must find, where that is known."""
        ...

    def accumulate(self, base: Base, lora: LoRA, batch: Batch, micro: MicroBatch) -> float:
        """Add a micro-batch's gradients; returns its share of the step's loss."""
        ...


@dataclass(slots=True, kw_only=True)
class Learner:
    """One adapter in training: with its batches, all that changes from step to step, and so all that a checkpoint holds."""

    run_id: str
    lora: LoRA
    optimizer: torch.optim.AdamW
    config: OptimizerConfig
    batches: Iterator[Batch]
    num_steps: int
    step: int = 0
    """Steps taken."""
    is_stopped: bool = False
    frozen: FrozenStates | None = None
    """States below the lowest adapted layer, where they are kept."""
    objective: Objective | None = None
    seed: int = 0

    def dropout_key(self, part: Part) -> str:
        """What a micro-batch's dropout is drawn from."""
        return f"{self.seed} {self.step} {part.index}"


def train(
    base: Base, learners: list[Learner], *, mode: Mode = "strict", tokens_per_micro_batch: int = 0
) -> Iterator[StepMetrics | RunFailure]:
    """Change the learners' adapters in place, one step of each after the other, until all are done or stopped.

    `strict` computes each run's micro-batches as they would be alone, so its bytes are the same as alone. `fused` puts those of
    several runs into one stream of at most `tokens_per_micro_batch` places: equal but for the order of floating-point sums.
    """
    while active := [learner for learner in learners if not learner.is_stopped and learner.step < learner.num_steps]:
        start = time.perf_counter()
        steps = [next(learner.batches) for learner in active]
        # 1) gradients of each run's mean loss over its step's supervised tokens, however many micro-batches hold them
        losses = [0.0] * len(active)
        for micro in _micro_batches(steps, mode, tokens_per_micro_batch):
            for part, loss in zip(micro.parts, accumulate(base, active, steps, micro), strict=True):
                losses[part.owner] += loss
        seconds = time.perf_counter() - start
        # 2) each run on its own: refuse to learn from what is not a number, clip, step
        for learner, batch, loss in zip(active, steps, losses, strict=True):
            start = time.perf_counter()
            parameters = learner.lora.parameters()
            grad_norm = clip(parameters, learner.config.max_grad_norm)
            if reason := _why_not(base, learner, loss, grad_norm):
                learner.is_stopped = True
                learner.optimizer.zero_grad(set_to_none=True)
                yield RunFailure(run_id=learner.run_id, step=learner.step + 1, reason=reason)
                continue
            learning_rate = learning_rate_at(learner.step, learner.num_steps, learner.config.learning_rate)
            take_step(learner.optimizer, learning_rate)
            learner.step += 1
            yield StepMetrics(
                run_id=learner.run_id,
                step=learner.step,
                num_steps=learner.num_steps,
                loss=loss,
                grad_norm=grad_norm,
                learning_rate=learning_rate,
                num_tokens=batch.num_tokens,
                num_supervised=batch.num_supervised,
                seconds=seconds + time.perf_counter() - start,
            )


def accumulate(base: Base, learners: Sequence[Learner], steps: Sequence[Batch], micro: MicroBatch) -> list[float]:
    """Add one micro-batch's gradients to its runs' adapters; returns each part's share of its run's mean loss."""
    first = learners[micro.parts[0].owner]
    if first.objective is not None:
        return [first.objective.accumulate(base, first.lora, steps[micro.parts[0].owner], micro)]
    device = base.device
    routed = [
        AdapterRows(start=part.start, stop=part.stop, adapter=learners[part.owner].lora, dropout_key=learners[part.owner].dropout_key(part))
        for part in micro.parts
    ]
    weights = torch.cat([torch.full((part.num_targets,), 1 / steps[part.owner].num_supervised) for part in micro.parts]).to(device)
    frozen = first.frozen if len(micro.parts) == 1 else None
    with base.routed(routed):  # until the backward pass is done: a checkpointed layer computes its forward pass again
        hidden = hidden_states(base, micro, frozen)
        total, losses = cross_entropy(hidden.index_select(0, micro.predicting.to(device)), base.head, micro.targets.to(device), weights)
        total.backward()  # type: ignore[no-untyped-call]
    return [float(part.sum()) for part in torch.split(losses * weights, [part.num_targets for part in micro.parts])]


def hidden_states(base: Base, micro: MicroBatch, frozen: FrozenStates | None = None) -> Tensor:
    """(T, h) of a micro-batch, through the adapters that are routed."""
    device = base.device
    segments = PackedSegments(micro.groups, device)
    ids, positions = micro.ids.to(device), micro.positions.to(device)
    if frozen is None:
        return base.hidden_states(ids, positions, segments)
    return base.hidden_states(ids, positions, segments, from_layer=frozen.layer, states=frozen.gather(micro).to(device))


def _micro_batches(steps: Sequence[Batch], mode: Mode, budget: int) -> Iterator[MicroBatch]:
    """Of all runs' steps, each part marked with its run's place in the list."""
    owned = [micro.owned_by(owner, i) for owner, batch in enumerate(steps) for i, micro in enumerate(batch.micro_batches)]
    if mode == "strict":
        yield from owned
        return
    current: list[MicroBatch] = []
    for micro in owned:
        if current and sum(len(m.ids) for m in current) + len(micro.ids) > budget:
            yield fuse(current)
            current = []
        current.append(micro)
    yield fuse(current)


def _why_not(base: Base, learner: Learner, loss: float, grad_norm: float) -> str | None:
    """Why a run must not take this step, if so."""
    rate = learner.config.learning_rate
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        return f"loss {loss} and gradient norm {grad_norm} are not both finite: try a smaller learning rate than {rate:g}"
    expected = learner.objective.first_loss if learner.objective else None
    if learner.step == 0 and expected is not None and abs(loss - expected) > FIRST_LOSS_TOLERANCE:
        return f"the first loss is {loss:.4f}, not {expected:.4f}: adapter and reference differ before training"
    guess = math.log(base.head.weight.shape[0])
    if learner.step == 0 and loss > IMPLAUSIBLE_LOSS * guess:
        return (
            f"the first loss is {loss:.2f} nats a token, a uniform guess has {guess:.2f}: the base does not know such text at all; "
            "check that tokenizer, chat template and base belong together"
        )
    if learner.step == MOVED_BY_STEP:
        unmoved = [name for name, weights in learner.lora.weights.items() if not bool(weights.b.any())]
        if unmoved:
            return f"{len(unmoved)} adapted layers have not moved, among them {unmoved[0]!r}: nothing the loss depends on reaches them"
    return None
