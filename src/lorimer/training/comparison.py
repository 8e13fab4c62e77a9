"""Runs of the methods adapters are compared with, and how any run does on the rows nobody trained on.

These runs keep no checkpoints and cannot be resumed, and what they make is neither registered nor served: it lies in the run's
folder, where `score_run` finds it.
"""

import resource
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from lorimer.config import COMPARISON_METHODS, Method, Recipe, read_recipe
from lorimer.data.dataset import Dataset, read_dataset
from lorimer.errors import ConfigError, DataError, IntegrityError, TrainingError
from lorimer.model.adapter import load_adapter
from lorimer.model.base import digest_of_base, find_base, load_base
from lorimer.model.chat import Rendered, Renderer
from lorimer.model.machine import probe
from lorimer.storage import append_jsonl, read_json, read_jsonl, write_json
from lorimer.training.contenders import Contender, Schedule, Scores, build_contender, load_contender
from lorimer.training.inspection import LearningReport, inspect, refuse_waste
from lorimer.training.loop import StepMetrics
from lorimer.training.needs import MICRO_BATCH_TOKENS
from lorimer.training.pictures import draw_curves
from lorimer.training.plan import choose, learning_rate_for, max_len_for, steps_for
from lorimer.training.runs import (
    RunRecord,
    State,
    digest_of_plan,
    is_cancelled,
    new_run_id,
    read_run,
    run_folder,
    write_beginning,
    write_state,
)
from lorimer.training.scoring import score_rows
from lorimer.training.tracking import Tracker, open_trackers

FULL_RATE_SHARE = 0.1  # of an adapter's rate, by the field's sweeps ("LoRA Without Regret", Schulman et al. 2025)
SCORES_FILE = "test_scores.json"
UNUSED_KEYS = (
    *("preference", "privacy", "rank", "rank_margin", "rank_pattern", "alpha", "targets", "layers", "dropout", "quantise"),
    *("validate_every", "patience", "checkpoint_every", "price_per_hour"),
)
TRACKED = ("loss", "grad_norm", "learning_rate", "num_tokens", "num_supervised", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRun(RunRecord):
    """One training by a method that adapters are compared with."""

    schedule: Schedule

    @property
    def result_folder(self) -> Path:
        """Where what was learned appears when the run has succeeded."""
        return result_folder(self.folder, self.recipe.method)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonResult:
    """A run that has succeeded: what it needed and where its files are."""

    run_id: str
    method: Method
    result_folder: Path
    num_parameters: int
    """Numbers that learned."""
    num_steps: int
    loss: float
    """Of the last step."""
    saved_bytes: int
    seconds: float
    peak_bytes: int
    """Of the process, loading the base included."""

    def to_json(self) -> dict[str, Any]:
        """The JSON value for programs."""
        value = {key: value for key, value in asdict(self).items() if key not in ("run_id", "result_folder")}
        return {"run": self.run_id, "folder": str(self.result_folder.parent), **value}


ComparisonEvent = ComparisonRun | StepMetrics | ComparisonResult


def result_folder(folder: Path, method: Method) -> Path:
    """Where in a run's folder a method's files are."""
    return folder / ("model" if method == "full" else "adapter")


def train_comparison(recipe: Recipe, dataset: Dataset) -> Iterator[ComparisonEvent]:
    """Train by a method of `COMPARISON_METHODS`; yields the run, each step, the result. It starts anew each time: no run is resumed.

    Raises:
        ConfigError: if the recipe asks for what the method has no use for.
        TrainingError: if nothing would be learned, or the run cannot go on.
    """
    _refuse_unused(recipe)
    base_digest = digest_of_base(find_base(recipe.base))
    contender = build_contender(recipe.method, recipe.base, seed=recipe.seed)
    max_len = max_len_for(recipe, recipe.base, contender.max_len)
    report = inspect(dataset, contender.renderer, max_len=max_len, num_parameters=contender.num_parameters)
    refuse_waste(report)
    if not report.num_rows:
        raise TrainingError(f"dataset {dataset.name!r} has no training row of at most {max_len} tokens: raise `max_len`")
    run = _open_run(recipe, dataset, base_digest, contender, report)
    trackers = list[Tracker]()
    try:
        yield run
        facts = asdict(run.schedule)
        trackers += open_trackers(recipe.track, run_id=run.id, adapter_name=run.adapter_name, parameters=facts, folder=run.folder)
        yield from _train(run, contender, report.rendered["train"], trackers)
    except (KeyboardInterrupt, GeneratorExit):
        _end(run, trackers, "interrupted")
        raise
    except Exception as exc:
        _end(run, trackers, "failed", error=str(exc))
        raise


def _refuse_unused(recipe: Recipe) -> None:
    """What is given must mean something."""
    given = recipe.model_dump(exclude_defaults=True)
    unused = [f"`{key}`" for key in UNUSED_KEYS if key in given]
    if unused:
        raise ConfigError(f"method {recipe.method!r} has no use for {', '.join(unused)}: leave {'them' if len(unused) > 1 else 'it'} out")


def _open_run(recipe: Recipe, dataset: Dataset, base_digest: str, contender: Contender, report: LearningReport) -> ComparisonRun:
    """A new run's folder, with everything that decides its result written down before it starts."""
    reasons: dict[str, str] = {}
    batch_size, num_steps = steps_for(recipe, report.num_rows, reasons)
    rate = choose(reasons, "learning_rate", recipe.learning_rate, *_learning_rate(recipe, contender))
    schedule = Schedule(learning_rate=rate, batch_size=batch_size, num_steps=num_steps, seed=recipe.seed)
    dtype = str(probe().dtype).removeprefix("torch.")
    decisions = {"method": recipe.method, **asdict(schedule), "max_len": report.max_len, "dtype": dtype}
    run_id = new_run_id()
    run = ComparisonRun(
        id=run_id,
        adapter_name=recipe.name or dataset.name,
        recipe=recipe,
        folder=run_folder(run_id),
        base_name=recipe.base,
        base_digest=base_digest,
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
        plan_digest=digest_of_plan(decisions, base_digest, dataset.digest),
        schedule=schedule,
    )
    write_beginning(run, {**decisions, "num_parameters": contender.num_parameters, "reasons": reasons}, report)
    return run


def _learning_rate(recipe: Recipe, contender: Contender) -> tuple[float, str]:
    if recipe.method != "full":
        from lorimer.training.peft_methods import default_learning_rate

        return default_learning_rate(recipe.method), "the best of those tried for this method"
    rate, why = learning_rate_for(recipe, contender.num_parameters)
    return FULL_RATE_SHARE * rate, f"a tenth of an adapter's, which is {why}"


def _train(run: ComparisonRun, contender: Contender, rows: Sequence[Rendered], trackers: Sequence[Tracker]) -> Iterator[ComparisonEvent]:
    """Step by step, each written down; then the files, and what they took."""
    steps = list[StepMetrics]()
    for event in contender.train(rows, run.schedule):
        steps.append(replace(event, run_id=run.id))
        row = asdict(steps[-1])
        append_jsonl(run.folder / "metrics.jsonl", row)
        for tracker in trackers:
            tracker.log({key: float(row[key]) for key in TRACKED}, event.step)
        yield steps[-1]
        if is_cancelled(run):
            _end(run, trackers, "cancelled")
            return
    contender.save(run.result_folder)
    result = ComparisonResult(
        run_id=run.id,
        method=run.recipe.method,
        result_folder=run.result_folder,
        num_parameters=contender.num_parameters,
        num_steps=len(steps),
        loss=steps[-1].loss,
        saved_bytes=num_bytes_in(run.result_folder),
        seconds=sum(step.seconds for step in steps),
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    draw_curves(list(read_jsonl(run.folder / "metrics.jsonl")), run.folder)
    _end(run, trackers, "succeeded", actual=result.to_json())
    yield result


def _end(run: ComparisonRun, trackers: Sequence[Tracker], state: State, **more: Any) -> None:
    write_state(run, state, **more)
    for tracker in trackers:
        tracker.finish(state)


def num_bytes_in(folder: Path) -> int:
    """Of all files that were saved."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def score_run(run_id: str) -> Scores:
    """How a run of any method does on its dataset's test split, by teacher forcing; kept in its folder, so it is computed once.

    Raises:
        NotFoundError: if there is no such run, or its base or dataset is gone.
        TrainingError: if it has not succeeded.
        DataError: if the dataset has no test row that the base can read.
        IntegrityError: if the base is no longer the one it was trained on.
    """
    recorded = read_run(run_id)
    if recorded["state"] != "succeeded":
        raise TrainingError(f"run {recorded['id']!r} is {recorded['state']}: only a run that has succeeded can be scored")
    path = run_folder(recorded["id"]) / SCORES_FILE
    if path.is_file() and (kept := read_json(path))["dataset_digest"] == recorded["dataset_digest"]:
        return Scores(exact=tuple(kept["exact"]), loss=kept["loss"])
    recipe = read_recipe(path.parent / "recipe.yaml")
    if (found := digest_of_base(find_base(recipe.base))) != recorded["base_digest"]:
        raise IntegrityError(
            f"run {recorded['id']!r} was trained on base {recorded['base_digest'][:12]}, but {recipe.base!r} is {found[:12]} now: "
            "put the base back, or train again"
        )
    rows = _test_rows(recipe, read_dataset(recorded["dataset_digest"]))
    scores = _score(recipe, result_folder(path.parent, recipe.method), rows)
    value = {"exact": list(scores.exact), "loss": scores.loss, "rows": len(rows), "dataset_digest": recorded["dataset_digest"]}
    write_json(path, value)
    return scores


def _score(recipe: Recipe, folder: Path, rows: Sequence[Rendered]) -> Scores:
    if recipe.method in COMPARISON_METHODS:
        return load_contender(recipe.method, recipe.base, folder).score(rows)
    base = load_base(recipe.base, quantisation=recipe.quantise)
    scores = score_rows(base, load_adapter(folder, base), rows, MICRO_BATCH_TOKENS)
    return Scores(exact=scores.is_exact, loss=scores.loss)


def _test_rows(recipe: Recipe, dataset: Dataset) -> list[Rendered]:
    """All that the base reads, whatever `max_len` a run had, so that every run on the same base and dataset is asked the same."""
    folder = find_base(recipe.base)
    renderer = Renderer(AutoTokenizer.from_pretrained(folder))
    longest = AutoConfig.from_pretrained(folder).get_text_config().max_position_embeddings
    rows = [row for example in dataset.test if len((row := renderer.render_example(example)).ids) <= longest]
    if not rows:
        raise DataError(f"dataset {dataset.name!r} has no test row that base {recipe.base!r} can read: there is nothing to compare by")
    return rows
