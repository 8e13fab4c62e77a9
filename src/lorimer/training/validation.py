"""Looks at the validation split: which weights were best, when nothing is gained any more, and that saved files answer as memory did.

It knows nothing of steps, checkpoints or run folders.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorimer.errors import IntegrityError
from lorimer.model.base import Base
from lorimer.model.chat import Rendered
from lorimer.model.lora import LoRA
from lorimer.training.checkpoints import TrainingState
from lorimer.training.scoring import RowScores, score_rows

NUM_VERIFIED = 64  # validation rows the saved files answer again


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """A look at the validation split during a run."""

    run_id: str
    step: int
    loss: float
    """Mean negative log-likelihood per learned token, in nats."""
    exact: float
    """Share of rows that greedy decoding would answer exactly."""
    num_rows: int
    is_best: bool


def validate(base: Base, state: TrainingState, held_out: Sequence[Rendered], *, budget: int, patience: int | None) -> Validation:
    """Score the validation split; remember the weights if they are the best yet, and stop when none were for too long."""
    learner = state.learner
    scores = score_rows(base, learner.lora, held_out, budget)
    is_best = state.best_loss is None or scores.loss < state.best_loss
    if is_best:
        state.best = [parameter.detach().clone() for parameter in learner.lora.parameters()]
        state.best_loss, state.best_step, state.num_looks_since_best = scores.loss, learner.step, 0
    else:
        state.num_looks_since_best += 1
        learner.is_stopped = has_gained_nothing(state, patience)
    return Validation(
        run_id=learner.run_id, step=learner.step, loss=scores.loss, exact=scores.exact, num_rows=len(held_out), is_best=is_best
    )


def has_gained_nothing(state: TrainingState, patience: int | None) -> bool:
    """Whether as many looks as patience allows have found nothing better."""
    return patience is not None and state.num_looks_since_best >= patience


@torch.no_grad()
def keep_best(state: TrainingState) -> int:
    """Put the best weights back where there were looks; returns the step they are of."""
    if state.best is None or state.best_step is None:
        return state.learner.step
    for parameter, best in zip(state.learner.lora.parameters(), state.best, strict=True):
        parameter.copy_(best)
    return state.best_step


def verify_saved(base: Base, lora: LoRA, saved: LoRA, held_out: Sequence[Rendered], *, budget: int, run_id: str) -> RowScores | None:
    """Score the validation split by the adapter in memory, and some of it again by the one its files hold.

    Raises:
        IntegrityError: if the files answer otherwise.
    """
    if not held_out:
        return None
    rows = held_out[:NUM_VERIFIED]
    here, there = score_rows(base, lora, rows, budget), score_rows(base, saved, rows, budget)
    if here != there:
        raise IntegrityError(
            f"run {run_id!r}: the saved adapter scores {there.loss:.6f} where the one in memory scored {here.loss:.6f} on the same rows: "
            "it is not registered; check the disk and resume the run"
        )
    return here if len(rows) == len(held_out) else score_rows(base, lora, held_out, budget)
