"""How runs go from start to end: begun or resumed, trained step by step, validated, checkpointed, saved, and seen to be right on disk.

How runs begin is in active.py, the steps are in loop.py, looks at the validation split in validation.py, a run's folder in runs.py.
"""

import contextlib
import platform
import resource
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lorimer import __version__
from lorimer.errors import TrainingError
from lorimer.model.adapter import Lock, load_adapter, save_adapter
from lorimer.model.base import Base
from lorimer.model.lora import LoRA
from lorimer.storage import append_jsonl, read_jsonl, write_json
from lorimer.training.active import Active, begin
from lorimer.training.calibration import Actual, record_actual
from lorimer.training.checkpoints import save_checkpoint
from lorimer.training.loop import Learner, Mode, RunFailure, StepMetrics, train
from lorimer.training.pictures import draw_curves, draw_rank_curve
from lorimer.training.rank import RankChoice, choose_rank
from lorimer.training.runs import Run, State, is_cancelled, write_state
from lorimer.training.validation import Validation, keep_best, validate, verify_saved

SECONDS_BETWEEN_CHECKPOINTS = 60.0
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "bitsandbytes")
"""What an adapter's bytes may depend on: their versions are in its lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A run that has succeeded: what it needed, and how its saved files do on the validation split."""

    run_id: str
    adapter_folder: Path
    rank: int
    """The highest of any layer. This, alpha and the number of parameters are what the saved files say, whatever the recipe asked for:
    PiSSA is saved at twice its rank, rsLoRA with the alpha that comes to its scale, preferences as the reference they began with."""
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
    waiting, active, learners = deque(runs), dict[str, Active](), list[Learner]()
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
    active: dict[str, Active],
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
        active[run.id] = begin(run, base, references.get(run.id))
        learners.append(active[run.id].state.learner)


def _after_step(own: Active, event: StepMetrics | RunFailure, base: Base) -> Iterator[RunEvent]:
    """Validate, write down, checkpoint, and see whether to stop."""
    yield event
    if isinstance(event, RunFailure):
        _end(own, "failed", error=f"step {event.step}: {event.reason}")
        return
    own.seconds += event.seconds
    row: dict[str, Any] = asdict(event)
    plan = own.run.plan
    every = plan.validate_every
    if every and own.held_out and (event.step % every == 0 or event.step == event.num_steps):
        validation = validate(base, own.state, own.held_out, budget=plan.tokens_per_micro_batch, patience=plan.patience)
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


def _checkpoint(own: Active, step: int) -> None:
    every = own.run.recipe.checkpoint_every
    due = step % every == 0 if every else time.monotonic() - own.checkpointed_at >= SECONDS_BETWEEN_CHECKPOINTS
    if due and step < own.run.plan.num_steps:
        save_checkpoint(own.state, own.run.folder / "checkpoints", own.run.plan_digest)
        own.checkpointed_at = time.monotonic()


def _finish(own: Active, base: Base) -> Iterator[RankChoice | RunResult]:
    """Keep the best weights, choose the rank where asked, save, and see that the saved files answer as the adapter did."""
    run, state, plan = own.run, own.state, own.run.plan
    lora, kept_step = state.learner.lora, keep_best(state)
    if plan.rank_margin is not None:
        choice = choose_rank(base, lora, own.held_out, plan.rank_margin, plan.tokens_per_micro_batch, run.id)
        write_json(run.folder / "rank.json", choice.to_json())
        draw_rank_curve(choice.points, choice.chosen, run.folder)
        lora = choice.lora
        yield choice
    save_adapter(lora, run.adapter_folder, base, _lock(run, base))
    saved = load_adapter(run.adapter_folder, base)
    scores = verify_saved(base, lora, saved, own.held_out, budget=plan.tokens_per_micro_batch, run_id=run.id)
    result = RunResult(
        run_id=run.id,
        adapter_folder=run.adapter_folder,
        rank=saved.config.rank,
        alpha=saved.config.alpha,
        num_parameters=saved.num_parameters,
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


def _lock(run: Run, base: Base) -> Lock:
    return Lock(
        base_name=base.name,
        base_digest=base.digest,
        template_digest=base.renderer.template_digest,
        dataset_digest=run.dataset_digest,
        run_id=run.id,
        quantisation=base.quantisation,
        base_files=base.files,
        tokenizer_files=base.tokenizer_files,
        recipe={"given": run.recipe.model_dump(mode="json"), "resolved": run.plan.decisions},
        seeds={"training": run.plan.seed},
        libraries=_versions(),
    )


def _versions() -> dict[str, str]:
    """Of those that are installed."""
    found = {"lorimer": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _end(own: Active, state: State, **more: Any) -> None:
    write_state(own.run, state, **more)
    for tracker in own.trackers:
        tracker.finish(state)
