"""A run and its folder: the recipe, the plan, what will be learned, metrics, checkpoints, the adapter. How it is trained is in train.py."""

import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lorimer.config import Recipe, home, read_recipe, recipe_yaml
from lorimer.data.dataset import Dataset
from lorimer.errors import LorimerError, NotFoundError, TrainingError
from lorimer.model.base import Base
from lorimer.storage import digest_of, read_json, read_jsonl, write_json, write_text
from lorimer.training.inspection import LearningReport, refuse_waste, report_json
from lorimer.training.plan import TrainingPlan

State = Literal["running", "succeeded", "failed", "interrupted", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What is known of every run, whatever its method."""

    id: str
    adapter_name: str
    recipe: Recipe
    folder: Path
    base_name: str
    base_digest: str
    dataset_name: str
    dataset_digest: str
    plan_digest: str
    """Of all that decides the result's bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(RunRecord):
    """One training of one adapter."""

    plan: TrainingPlan

    @property
    def adapter_folder(self) -> Path:
        """Where the adapter's files appear when the run has succeeded."""
        return self.folder / "adapter"


def open_run(recipe: Recipe, plan: TrainingPlan, dataset: Dataset, base: Base) -> Run:
    """A new run's folder, with everything that decides its result written down before it starts.

    Raises:
        TrainingError: if what the plan found in the rows would waste the run.
    """
    refuse_waste(plan.report)
    run = _make_run(new_run_id(), recipe, plan, dataset, base)
    write_beginning(run, plan.to_json(), plan.report)
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
        folder=run_folder(run_id),
        base_name=base.name,
        base_digest=base.digest,
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
        plan_digest=digest_of_plan(plan.decisions, base.digest, dataset.digest),
    )


def new_run_id() -> str:
    """Ids sort by the time they were made."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def run_folder(run_id: str) -> Path:
    """Where a run keeps what it makes."""
    return home() / "runs" / run_id


def digest_of_plan(decisions: Mapping[str, Any], base_digest: str, dataset_digest: str) -> str:
    """Of all that decides a run's result."""
    return digest_of({**decisions, "base": base_digest, "dataset": dataset_digest})


def write_beginning(run: RunRecord, plan: Mapping[str, Any], report: LearningReport) -> None:
    """Fill a new run's folder with what is to be done, and say that it is being done."""
    write_text(run.folder / "recipe.yaml", recipe_yaml(run.recipe))
    write_json(run.folder / "plan.json", plan)
    write_json(run.folder / "learning.json", report_json(report))
    write_state(run, "running")


def write_state(run: RunRecord, state: State, **more: Any) -> None:
    """Say how a run stands, in its folder."""
    fields = ("id", "adapter_name", "base_name", "base_digest", "dataset_name", "dataset_digest", "plan_digest")
    value = {**{field: getattr(run, field) for field in fields}, "method": run.recipe.method}
    write_json(run.folder / "run.json", {**value, "state": state, "at": datetime.now(UTC).isoformat(), **more})


def is_cancelled(run: RunRecord) -> bool:
    """Whether somebody asked it to stop."""
    return (run.folder / "cancel").exists()


def list_runs() -> list[dict[str, Any]]:
    """What every run's folder says of it, newest first."""
    found = sorted((home() / "runs").glob("*/run.json"), reverse=True)
    return [{"method": "lora", **read_json(path)} for path in found]  # what older versions trained without writing it down


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetails:
    """All that a run's folder says."""

    recorded: Mapping[str, Any]
    """`run.json`."""
    recipe: Recipe
    needs: Mapping[str, Mapping[str, float | None]]
    """`seconds` and `memory_bytes`, where they were planned: low, middle (older runs have none), high, and once it has ended actual and
    its ratio to middle."""
    last_step: Mapping[str, Any] | None
    """The newest line of its metrics."""
    pictures: tuple[Path, ...]


def read_details(run_id: str) -> RunDetails:
    """A run's recipe, its plan against what it needed, how far it is, and its pictures.

    Raises:
        NotFoundError: if none or several runs match.
    """
    recorded = read_run(run_id)
    folder = run_folder(recorded["id"])
    plan, actual, metrics = read_json(folder / "plan.json"), recorded.get("actual", {}), folder / "metrics.jsonl"
    found = {"seconds": actual.get("seconds"), "memory_bytes": actual.get("peak_bytes")}
    return RunDetails(
        recorded=recorded,
        recipe=read_recipe(folder / "recipe.yaml"),
        needs={name: _against(plan[name], value) for name, value in found.items() if name in plan},
        last_step=deque(read_jsonl(metrics), maxlen=1).pop() if metrics.is_file() else None,
        pictures=tuple(sorted(folder.glob("*.svg"))),
    )


def _against(planned: Mapping[str, float], actual: float | None) -> dict[str, float | None]:
    middle = planned.get("middle")  # older versions planned the ends of a range alone
    ratio = actual / middle if actual is not None and middle else None
    return {"middle": middle, **planned, "actual": actual, "ratio": ratio}


def cancel_run(run_id: str) -> None:
    """Ask a run to stop after its present step; it keeps its newest checkpoint.

    Raises:
        LorimerError: if it is not running.
    """
    value = read_run(run_id)
    if value["state"] != "running":
        raise LorimerError(f"run {value['id']!r} is {value['state']}, not running: there is nothing to cancel")
    write_text(run_folder(value["id"]) / "cancel", "")
