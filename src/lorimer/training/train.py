"""How runs go from start to end: begun or resumed, trained step by step, validated, checkpointed, saved, and seen to be right on disk.

The steps themselves are in loop.py, what a run's folder holds in runs.py.
"""

import resource
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorimer.errors import IntegrityError, TrainingError
from lorimer.model.adapter import Lock, load_adapter, save_adapter
from lorimer.model.base import Base
from lorimer.model.chat import Rendered
from lorimer.model.lora import LoRA, initialise
from lorimer.storage import append_jsonl, read_jsonl, write_json, write_jsonl
from lorimer.training.batching import batches
from lorimer.training.calibration import Actual, record_actual
from lorimer.training.checkpoints import TrainingState, find_checkpoints, load_checkpoint, save_checkpoint
from lorimer.training.frozen import keep_frozen_states
from lorimer.training.loop import Learner, Mode, RunFailure, StepMetrics, train
from lorimer.training.optim import make_optimizer
from lorimer.training.pictures import draw_curves, draw_rank_curve
from lorimer.training.preference import pair_batches, prepare_preference
from lorimer.training.rank import RankChoice, choose_rank
from lorimer.training.runs import Run, State, is_cancelled, write_state
from lorimer.training.scoring import RowScores, score_rows
from lorimer.training.tracking import Tracker, open_trackers

SECONDS_BETWEEN_CHECKPOINTS = 60.0
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A run that has succeeded: what it needed, and how its saved files do on the validation split."""

    run_id: str
    adapter_folder: Path
    rank: int
    alpha: float
    num_parameters: int
    num_steps: int
    kept_step: int
    """The step whose weights were saved."""
    validation_loss: float | None
    validation_exact: float | None
    num_validation_rows: int
    seconds: float
    peak_bytes: int
    """Of the process, loading the base included."""

    def to_json(self) -> dict[str, Any]:
        """The JSON value for programs."""
        value = {key: value for key, value in asdict(self).items() if key not in ("run_id", "adapter_folder")}
        return {"run": self.run_id, "folder": str(self.adapter_folder.parent), **value}


RunEvent = StepMetrics | Validation | RankChoice | RunFailure | RunResult


@dataclass(slots=True, kw_only=True)
class _Active:
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


def train_run(run: Run, base: Base, reference: LoRA | None = None) -> Iterator[RunEvent]:
    """Train one adapter, from its newest checkpoint if there is one; its files appear after the last step, whole or not at all.

    Raises:
        TrainingError: if the run cannot go on.
        IntegrityError: if a checkpoint is damaged, or the saved files do not answer as the adapter in memory does.
    """
    for event in train_runs([run], base, references={run.id: reference}):
        if isinstance(event, RunFailure):
            raise TrainingError(f"step {event.step}: {event.reason}")
        yield event


def train_runs(
    runs: Sequence[Run],
    base: Base,
    *,
    mode: Mode = "strict",
    memory_bytes: float = float("inf"),
    references: Mapping[str, LoRA | None] | None = None,
) -> Iterator[RunEvent]:
    """Train several adapters over one base. Runs that do not fit in `memory_bytes` together wait until others are done."""
    waiting, active, learners = deque(runs), dict[str, _Active](), list[Learner]()
    budget = max((run.plan.tokens_per_micro_batch for run in runs), default=0)
    try:
        while waiting or learners:
            _admit(waiting, active, learners, base, memory_bytes, references or {})
            for own in [own for own in active.values() if own.is_done]:  # killed or cancelled after its last step
                yield from _finish(own, base)
                learners.remove(own.state.learner)
                del active[own.run.id]
            for event in train(base, learners, mode=mode, tokens_per_micro_batch=budget):
                own = active[event.run_id]
                yield from _after_step(own, event, base)
                if own.is_done:
                    if not isinstance(event, RunFailure) and not is_cancelled(own.run):
                        yield from _finish(own, base)
                    learners.remove(own.state.learner)
                    del active[event.run_id]
                    _admit(waiting, active, learners, base, memory_bytes, references or {})
    except (KeyboardInterrupt, GeneratorExit):
        for own in active.values():
            _end(own, "interrupted")
        raise
    except Exception as exc:
        for own in active.values():
            _end(own, "failed", error=str(exc))
        raise


def _admit(
    waiting: deque[Run],
    active: dict[str, _Active],
    learners: list[Learner],
    base: Base,
    memory_bytes: float,
    references: Mapping[str, LoRA | None],
) -> None:
    """Start those that fit beside the ones in training; one always may."""
    while waiting:
        taken = max((own.run.plan.memory_bytes.high for own in active.values()), default=0.0)
        taken += sum(own.run.plan.resident_bytes for own in active.values())
        if active and taken + waiting[0].plan.resident_bytes > memory_bytes:
            return
        run = waiting.popleft()
        active[run.id] = _begin(run, base, references.get(run.id))
        learners.append(active[run.id].state.learner)


def _begin(run: Run, base: Base, reference: LoRA | None) -> _Active:
    """A run's adapter, optimizer and data, put where its newest checkpoint was."""
    plan = run.plan
    parameters = {key: value for key, value in plan.decisions.items() if isinstance(value, int | float | str)}
    trackers = open_trackers(run.recipe.track, run_id=run.id, adapter_name=run.adapter_name, parameters=parameters, folder=run.folder)
    lora = initialise(plan.lora, base.layers, plan.seed)
    if reference is not None:
        lora = _copy_for_training(reference)
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
        learner.is_stopped = _has_gained_nothing(state, plan.patience)
        write_jsonl(metrics, [row for row in read_jsonl(metrics) if row["step"] <= learner.step])
    else:
        metrics.unlink(missing_ok=True)
    _give_rows(learner, run, base, reference)
    base.is_checkpointed = plan.is_checkpointed
    seconds = sum(row["seconds"] for row in read_jsonl(metrics)) if metrics.is_file() else 0.0
    held_out = plan.report.rendered["validation"]
    return _Active(run=run, state=state, held_out=held_out, trackers=trackers, seconds=seconds, checkpointed_at=time.monotonic())


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


def _copy_for_training(reference: LoRA) -> LoRA:
    """An adapter that begins where the reference is."""
    weights = {
        name: replace(own, a=own.a.detach().clone().requires_grad_(), b=own.b.detach().clone().requires_grad_())
        for name, own in reference.weights.items()
    }
    return replace(reference, weights=weights)


def _after_step(own: _Active, event: StepMetrics | RunFailure, base: Base) -> Iterator[RunEvent]:
    """Validate, write down, checkpoint, and see whether to stop."""
    yield event
    if isinstance(event, RunFailure):
        _end(own, "failed", error=f"step {event.step}: {event.reason}")
        return
    own.seconds += event.seconds
    row: dict[str, Any] = asdict(event)
    every = own.run.plan.validate_every
    if every and own.held_out and (event.step % every == 0 or event.step == event.num_steps):
        validation = _validate(own, base)
        row |= {"validation_loss": validation.loss, "validation_exact": validation.exact}
        yield validation
    append_jsonl(own.run.folder / "metrics.jsonl", row)
    numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float) and key not in ("step", "num_steps")}
    for tracker in own.trackers:
        tracker.log(numbers, event.step)
    _checkpoint(own, event.step)
    if is_cancelled(own.run):
        save_checkpoint(own.state, own.run.folder / "checkpoints", own.run.plan_digest)
        own.state.learner.is_stopped = True
        _end(own, "cancelled")


def _validate(own: _Active, base: Base) -> Validation:
    """Score the validation split; remember the weights if they are the best yet, and stop when none were for too long."""
    state, plan = own.state, own.run.plan
    scores = score_rows(base, state.learner.lora, own.held_out, plan.tokens_per_micro_batch)
    is_best = state.best_loss is None or scores.loss < state.best_loss
    if is_best:
        state.best = [parameter.detach().clone() for parameter in state.learner.lora.parameters()]
        state.best_loss, state.best_step, state.num_looks_since_best = scores.loss, state.learner.step, 0
    else:
        state.num_looks_since_best += 1
        state.learner.is_stopped = _has_gained_nothing(state, plan.patience)
    return Validation(
        run_id=own.run.id, step=state.learner.step, loss=scores.loss, exact=scores.exact, num_rows=len(own.held_out), is_best=is_best
    )


def _has_gained_nothing(state: TrainingState, patience: int | None) -> bool:
    return patience is not None and state.num_looks_since_best >= patience


def _checkpoint(own: _Active, step: int) -> None:
    every = own.run.recipe.checkpoint_every
    due = step % every == 0 if every else time.monotonic() - own.checkpointed_at >= SECONDS_BETWEEN_CHECKPOINTS
    if due and step < own.run.plan.num_steps:
        save_checkpoint(own.state, own.run.folder / "checkpoints", own.run.plan_digest)
        own.checkpointed_at = time.monotonic()


def _finish(own: _Active, base: Base) -> Iterator[RankChoice | RunResult]:
    """Keep the best weights, choose the rank where asked, save, and see that the saved files answer as the adapter did."""
    run, state, plan = own.run, own.state, own.run.plan
    lora, kept_step = state.learner.lora, state.learner.step
    if state.best is not None and state.best_step is not None:
        kept_step = state.best_step
        with torch.no_grad():
            for parameter, best in zip(lora.parameters(), state.best, strict=True):
                parameter.copy_(best)
    if plan.rank_margin is not None:
        choice = choose_rank(base, lora, own.held_out, plan.rank_margin, plan.tokens_per_micro_batch, run.id)
        write_json(run.folder / "rank.json", choice.to_json())
        draw_rank_curve(choice.points, choice.chosen, run.folder)
        lora = choice.lora
        yield choice
    save_adapter(lora, run.adapter_folder, base, _lock(run, base))
    scores = verify_saved(run, base, lora, own.held_out)
    result = RunResult(
        run_id=run.id,
        adapter_folder=run.adapter_folder,
        rank=max(weights.factors[0].shape[0] for weights in lora.weights.values()),
        alpha=plan.lora.alpha,
        num_parameters=sum(factor.numel() for weights in lora.weights.values() for factor in weights.factors),
        num_steps=state.learner.step,
        kept_step=kept_step,
        validation_loss=scores.loss if scores else None,
        validation_exact=scores.exact if scores else None,
        num_validation_rows=len(own.held_out),
        seconds=own.seconds,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    draw_curves(list(read_jsonl(run.folder / "metrics.jsonl")), run.folder)
    share = result.num_steps / plan.num_steps
    record_actual(
        Actual(
            machine=plan.machine,
            planned_seconds=plan.uncorrected_seconds * share,
            seconds=result.seconds,
            planned_bytes=plan.uncorrected_bytes,
            peak_bytes=result.peak_bytes,
        )
    )
    _end(own, "succeeded", actual=result.to_json())
    yield result


def verify_saved(run: Run, base: Base, lora: LoRA, held_out: Sequence[Rendered]) -> RowScores | None:
    """Score the validation split by the adapter in memory, and some of it again by the saved files.

    Raises:
        IntegrityError: if the files answer otherwise.
    """
    if not held_out:
        return None
    budget = run.plan.tokens_per_micro_batch
    again, rows = load_adapter(run.adapter_folder, base), held_out[:NUM_VERIFIED]
    here, there = score_rows(base, lora, rows, budget), score_rows(base, again, rows, budget)
    if here != there:
        raise IntegrityError(
            f"run {run.id!r}: the saved adapter scores {there.loss:.6f} where the one in memory scored {here.loss:.6f} on the same rows: "
            "it is not registered; check the disk and resume the run"
        )
    return here if len(rows) == len(held_out) else score_rows(base, lora, held_out, budget)


def _lock(run: Run, base: Base) -> Lock:
    return Lock(
        base_name=base.name,
        base_digest=base.digest,
        template_digest=base.renderer.template_digest,
        dataset_digest=run.dataset_digest,
        run_id=run.id,
        quantisation=base.quantisation,
    )


def _end(own: _Active, state: State, **more: Any) -> None:
    write_state(own.run, state, **more)
    for tracker in own.trackers:
        tracker.finish(state)
