"""A run and its folder: recipe, plan, metrics as they come, the adapter at the end."""

import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from lorimer.config import Recipe, home, recipe_yaml
from lorimer.data.dataset import Dataset
from lorimer.model.adapter import Lock, save_adapter
from lorimer.model.attention import PackedSegments
from lorimer.model.base import Base
from lorimer.model.chat import Rendered
from lorimer.model.lora import AdapterRows, LoRA, initialise
from lorimer.storage import append_jsonl, write_json, write_text
from lorimer.training.batching import batches, make_batch
from lorimer.training.loop import StepMetrics, train
from lorimer.training.loss import cross_entropy_sum
from lorimer.training.plan import TrainingPlan, render_split

State = Literal["running", "succeeded", "failed", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training of one adapter."""

    id: str
    adapter_name: str
    recipe: Recipe
    plan: TrainingPlan
    folder: Path
    base_name: str
    base_digest: str
    dataset_name: str
    dataset_digest: str

    @property
    def adapter_folder(self) -> Path:
        """Where the adapter's files appear when the run has succeeded."""
        return self.folder / "adapter"


def open_run(recipe: Recipe, plan: TrainingPlan, dataset: Dataset, base: Base) -> Run:
    """A new run's folder, with everything that decides its result written down before it starts."""
    name = recipe.name or dataset.name
    run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    run = Run(
        id=run_id,
        adapter_name=name,
        recipe=recipe,
        plan=plan,
        folder=home() / "runs" / run_id,
        base_name=base.name,
        base_digest=base.digest,
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
    )
    write_text(run.folder / "recipe.yaml", recipe_yaml(recipe))
    write_json(run.folder / "plan.json", plan.to_json())
    _write_state(run, "running")
    return run


def train_run(run: Run, dataset: Dataset, base: Base) -> Iterator[StepMetrics]:
    """Train, writing each step to `metrics.jsonl`; the adapter is saved after the last step, whole or not at all.

    Raises:
        TrainingError: as `lorimer.training.loop.train`.
    """
    plan = run.plan
    rows, _ = render_split(base, dataset.train, plan.max_len)
    held_out, _ = render_split(base, dataset.validation, plan.max_len)
    lora = initialise(plan.lora, base.layers, plan.seed)
    steps = batches(
        rows, batch_size=plan.batch_size, num_steps=plan.num_steps, tokens_per_micro_batch=plan.tokens_per_micro_batch, seed=plan.seed
    )
    try:
        for metrics in train(base, lora, steps, plan.optimizer, plan.num_steps):
            append_jsonl(run.folder / "metrics.jsonl", asdict(metrics))
            yield metrics
        lock = Lock(
            base_name=base.name,
            base_digest=base.digest,
            template_digest=base.renderer.template_digest,
            dataset_digest=dataset.digest,
            run_id=run.id,
        )
        save_adapter(lora, run.adapter_folder, base, lock)
        _write_state(run, "succeeded", validation_loss=mean_loss(base, lora, held_out, plan.tokens_per_micro_batch))
    except (KeyboardInterrupt, GeneratorExit):
        _write_state(run, "interrupted")
        raise
    except Exception as exc:
        _write_state(run, "failed", error=str(exc))
        raise


@torch.inference_mode()
def mean_loss(base: Base, lora: LoRA, rows: list[Rendered], tokens_per_micro_batch: int) -> float | None:
    """Mean negative log-likelihood per supervised token, in nats; None without rows."""
    if not rows:
        return None
    ready = lora.to(dtype=base.dtype, device=base.device)
    batch = make_batch(rows, tokens_per_micro_batch)
    total = 0.0
    for micro in batch.micro_batches:
        routed = [AdapterRows(start=0, stop=len(micro.ids), adapter=ready)]
        ids, positions = micro.ids.to(base.device), micro.positions.to(base.device)
        hidden = base.hidden_states(ids, positions, PackedSegments(micro.lengths, base.device), routed)
        total += float(cross_entropy_sum(hidden[micro.predicting.to(base.device)], base.head, micro.targets.to(base.device)))
    return total / batch.num_supervised


def _write_state(run: Run, state: State, **more: Any) -> None:
    fields = ("id", "adapter_name", "base_name", "base_digest", "dataset_name", "dataset_digest")
    value = {field: getattr(run, field) for field in fields}
    write_json(run.folder / "run.json", {**value, "state": state, "at": datetime.now(UTC).isoformat(), **more})
