"""A run and its folder: the recipe, the plan, what will be learned, metrics, checkpoints, the adapter. How it is trained is in train.py."""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lorimer.config import Recipe, home, recipe_yaml
from lorimer.data.dataset import Dataset
from lorimer.errors import LorimerError, NotFoundError, TrainingError
from lorimer.model.base import Base
from lorimer.storage import digest_of, read_json, write_json, write_text
from lorimer.training.inspection import refuse_waste, report_json
from lorimer.training.plan import TrainingPlan

State = Literal["running", "succeeded", "failed", "interrupted", "cancelled"]


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

    @property
    def plan_digest(self) -> str:
        """Of all that decides the adapter's bytes."""
        return digest_of({**self.plan.decisions, "base": self.base_digest, "dataset": self.dataset_digest})


def open_run(recipe: Recipe, plan: TrainingPlan, dataset: Dataset, base: Base) -> Run:
    """A new run's folder, with everything that decides its result written down before it starts.

    Raises:
        TrainingError: if what the plan found in the rows would waste the run.
    """
    refuse_waste(plan.report)
    run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    run = _make_run(run_id, recipe, plan, dataset, base)
    write_text(run.folder / "recipe.yaml", recipe_yaml(recipe))
    write_json(run.folder / "plan.json", plan.to_json())
    write_json(run.folder / "learning.json", report_json(plan.report))
    write_state(run, "running")
    return run


def reopen_run(run_id: str, recipe: Recipe, plan: TrainingPlan, dataset: Dataset, base: Base) -> Run:
    """A run that did not end, to go on from its newest checkpoint.

    Raises:
        TrainingError: if recipe, data, base or machine now lead to another plan than the run's.
    """
    run = _make_run(run_id, recipe, plan, dataset, base)
    recorded = read_json(run.folder / "run.json")["plan_digest"]
    if recorded != run.plan_digest:
        before, now = read_json(run.folder / "plan.json"), plan.decisions
        differing = [key for key in now if before.get(key) != now[key]] or ["base or dataset"]
        raise TrainingError(f"run {run_id!r} cannot go on: its plan would now differ in {', '.join(differing)}; train again")
    (run.folder / "cancel").unlink(missing_ok=True)
    write_state(run, "running")
    return run


def _make_run(run_id: str, recipe: Recipe, plan: TrainingPlan, dataset: Dataset, base: Base) -> Run:
    return Run(
        id=run_id,
        adapter_name=recipe.name or dataset.name,
        recipe=recipe,
        plan=plan,
        folder=home() / "runs" / run_id,
        base_name=base.name,
        base_digest=base.digest,
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
    )


def write_state(run: Run, state: State, **more: Any) -> None:
    """Say how a run stands, in its folder."""
    fields = ("id", "adapter_name", "base_name", "base_digest", "dataset_name", "dataset_digest", "plan_digest")
    value = {field: getattr(run, field) for field in fields}
    write_json(run.folder / "run.json", {**value, "state": state, "at": datetime.now(UTC).isoformat(), **more})


def is_cancelled(run: Run) -> bool:
    """Whether somebody asked it to stop."""
    return (run.folder / "cancel").exists()


def list_runs() -> list[dict[str, Any]]:
    """What every run's folder says of it, newest first."""
    return [read_json(path) for path in sorted((home() / "runs").glob("*/run.json"), reverse=True)]


def read_run(run_id: str) -> dict[str, Any]:
    """What a run's folder says of it; the id may be shortened as long as it names one run.

    Raises:
        NotFoundError: if none or several match.
    """
    found = [value for value in list_runs() if value["id"].startswith(run_id)]
    if len(found) != 1:
        there = ", ".join(value["id"] for value in (found or list_runs())[:5]) or "none yet"
        raise NotFoundError(f"run {run_id!r} names {len(found)} runs; there {'are' if there else 'is'}: {there}")
    return found[0]


def cancel_run(run_id: str) -> None:
    """Ask a run to stop after its present step; it keeps its newest checkpoint.

    Raises:
        LorimerError: if it is not running.
    """
    value = read_run(run_id)
    if value["state"] != "running":
        raise LorimerError(f"run {value['id']!r} is {value['state']}, not running: there is nothing to cancel")
    write_text(home() / "runs" / value["id"] / "cancel", "")
