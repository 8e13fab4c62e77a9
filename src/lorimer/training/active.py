"""A run about to be trained: its adapter, optimizer and rows, put where its newest checkpoint was. The steps it takes are in train.py."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from lorimer.model.base import Base
from lorimer.model.chat import Rendered
from lorimer.model.lora import LoRA, initialise
from lorimer.storage import read_jsonl, write_jsonl
from lorimer.training.batching import batches
from lorimer.training.checkpoints import TrainingState, find_checkpoints, load_checkpoint
from lorimer.training.frozen import keep_frozen_states
from lorimer.training.loop import Learner
from lorimer.training.optim import make_optimizer
from lorimer.training.preference import copy_for_training, pair_batches, prepare_preference
from lorimer.training.runs import Run
from lorimer.training.tracking import Tracker, open_trackers
from lorimer.training.validation import has_gained_nothing


@dataclass(slots=True, kw_only=True)
class Active:
    """A run that is being trained."""

    run: Run
    state: TrainingState
    held_out: Sequence[Rendered]
    trackers: Sequence[Tracker]
    seconds: float = 0.0
    checkpointed_at: float

    @property
    def is_done(self) -> bool:
        """Whether no step is left to take."""
        return self.state.learner.is_stopped or self.state.learner.step == self.state.learner.num_steps


def begin(run: Run, base: Base, reference: LoRA | None) -> Active:
    """A run's adapter, optimizer and data, put where its newest checkpoint was."""
    plan = run.plan
    parameters = {key: value for key, value in plan.decisions.items() if isinstance(value, int | float | str)}
    trackers = open_trackers(run.recipe.track, run_id=run.id, adapter_name=run.adapter_name, parameters=parameters, folder=run.folder)
    lora = initialise(plan.lora, base.layers, plan.seed)
    if reference is not None:
        lora = copy_for_training(reference)
    learner = Learner(
        run_id=run.id,
        lora=lora,
        optimizer=make_optimizer(lora, plan.optimizer),
        config=plan.optimizer,
        batches=iter(()),
        num_steps=plan.num_steps,
        seed=plan.seed,
    )
    state = TrainingState(learner=learner)
    metrics = run.folder / "metrics.jsonl"
    if checkpoints := find_checkpoints(run.folder / "checkpoints"):
        load_checkpoint(checkpoints[-1], state, run.plan_digest)
        learner.is_stopped = has_gained_nothing(state, plan.patience)
        write_jsonl(metrics, [row for row in read_jsonl(metrics) if row["step"] <= learner.step])
    else:
        metrics.unlink(missing_ok=True)
    _give_rows(learner, run, base, reference)
    base.is_checkpointed = plan.is_checkpointed
    seconds = sum(row["seconds"] for row in read_jsonl(metrics)) if metrics.is_file() else 0.0
    held_out = plan.report.rendered["validation"]
    return Active(run=run, state=state, held_out=held_out, trackers=trackers, seconds=seconds, checkpointed_at=time.monotonic())


def _give_rows(learner: Learner, run: Run, base: Base, reference: LoRA | None) -> None:
    """The batches from the learner's step on, and what is computed once for all of them."""
    plan, rows = run.plan, run.plan.report.rendered["train"]
    steps = {
        "batch_size": plan.batch_size,
        "num_steps": plan.num_steps,
        "tokens_per_micro_batch": plan.tokens_per_micro_batch,
        "seed": plan.seed,
        "start": learner.step,
    }
    if plan.preference is not None:
        pairs = list(zip(rows, plan.report.rejected["train"], strict=True))
        learner.objective = preference = prepare_preference(
            pairs, base, reference, beta=plan.preference.beta, tokens_per_micro_batch=plan.tokens_per_micro_batch
        )
        learner.batches = pair_batches(preference, **steps)
        return
    if plan.from_layer:
        learner.frozen = keep_frozen_states(base, plan.from_layer, rows, plan.tokens_per_micro_batch)
    learner.batches = batches(rows, **steps, share_prefixes=not plan.lora.dropout)  # each row's dropout is its own
