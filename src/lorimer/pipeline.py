"""The product on one page: curate -> plan -> train -> evaluate -> check -> register -> promote.

Every step yields what it made, so that the caller shows progress and decides what to do with it:

    for made in build(recipe):
        print(made)
"""

import time
from collections.abc import Iterator
from pathlib import Path

from lorimer.config import Recipe, home, read_recipe
from lorimer.data.curate import resolve_dataset
from lorimer.data.dataset import Dataset, read_dataset
from lorimer.database import open_database
from lorimer.evaluation.evaluate import Answer, answers_of, ask
from lorimer.evaluation.gates import GateResult, check
from lorimer.evaluation.page import report_folder, write_report
from lorimer.evaluation.report import EvalReport, build_report
from lorimer.evaluation.task import Task, task_from_dataset
from lorimer.inference.engine import Engine, EngineConfig
from lorimer.model.base import Base, load_base
from lorimer.registry.promotion import promote
from lorimer.registry.records import AdapterVersion, Alias, NewVersion
from lorimer.registry.registry import Registry, digest_of_folder
from lorimer.training.loop import StepMetrics
from lorimer.training.plan import TrainingPlan, metric_of, plan
from lorimer.training.runs import Run, open_run, train_run

EVALUATION_SEQUENCES = 96  # nobody waits for the first word, so wide batches: each step reads the base once for all of them

Made = Dataset | Base | TrainingPlan | Run | StepMetrics | Task | Answer | EvalReport | GateResult | AdapterVersion | Alias


def build(recipe: Recipe) -> Iterator[Made]:
    """From a recipe to a registered adapter version, promoted to champion if its gate says PASS."""
    # 1) examples -> an immutable dataset, and the frozen base
    dataset = resolve_dataset(recipe)
    yield dataset
    base = load_base(recipe.base)
    yield base
    # 2) what the run will do and need
    plan_ = plan(recipe, dataset, base)
    yield plan_
    # 3) train
    run = open_run(recipe, plan_, dataset, base)
    yield run
    yield from train_run(run, dataset, base)
    # 4) evaluate the saved files beside the base, and check the gate
    for made in judge(recipe, dataset, base, name=run.adapter_name, folder=run.adapter_folder):
        yield made
    assert isinstance(made, GateResult)  # what `judge` ends with
    # 5) register, with what the gate said
    registry = Registry(open_database())
    version = registry.record_gate(made, register(run, base.renderer.template_digest))
    yield version
    # 6) promote: an alias moves only past a passed gate
    if version.gate_verdict == "PASS":
        yield promote(registry, version, reason=f"gate of run {run.id} passed")


def judge(recipe: Recipe, dataset: Dataset, base: Base, *, name: str, folder: Path) -> Iterator[Task | Answer | EvalReport | GateResult]:
    """Ask an adapter's saved files and the base the test split; yields the task, each answer, the report, the gate's result."""
    digest = digest_of_folder(folder)
    engine = Engine(base, EngineConfig(max_sequences=EVALUATION_SEQUENCES))
    engine.adapters.load(digest, folder)
    task = task_from_dataset(dataset, metric_of(recipe))
    yield task
    start, answers = time.perf_counter(), list[Answer]()
    for answer in ask(engine, task, (None, digest)):
        answers.append(answer)
        yield answer
    seconds, num_generated = time.perf_counter() - start, sum(answer.num_tokens for answer in answers)
    report = build_report(
        task,
        base_answers=answers_of(answers, None, len(task.samples)),
        adapter_answers=answers_of(answers, digest, len(task.samples)),
        base_name=base.name,
        base_digest=base.digest,
        adapter_name=name,
        adapter_digest=digest,
        seconds=seconds,
        tokens_per_second=num_generated / seconds if num_generated else None,
    )
    result = check(report, recipe.gate)
    write_report(report, result, report_folder(report.digest))
    yield report
    yield result


def judge_version(version: AdapterVersion, base: Base) -> Iterator[Task | Answer | EvalReport | GateResult]:
    """Evaluate a registered version by the recipe and dataset it was trained with, and record what the gate says."""
    registry = Registry(open_database())
    registry.verify_files(version)
    recipe = read_recipe(home() / "runs" / version.run_id / "recipe.yaml")
    dataset = read_dataset(version.dataset_digest)
    for made in judge(recipe, dataset, base, name=version.name, folder=version.path):
        yield made
    assert isinstance(made, GateResult)  # what `judge` ends with
    registry.record_gate(made, version)


def find_version(name: str) -> AdapterVersion:
    """A registered version by `name`, `name@v3`, `name@alias` or `name@sha256:..`."""
    return Registry(open_database()).resolve(name)


def register(run: Run, template_digest: str) -> AdapterVersion:
    """Keep a run's adapter as the next version of its name."""
    new = NewVersion(
        name=run.adapter_name,
        source=run.adapter_folder,
        base_name=run.base_name,
        base_digest=run.base_digest,
        dataset_name=run.dataset_name,
        dataset_digest=run.dataset_digest,
        run_id=run.id,
        rank=run.plan.lora.rank,
        alpha=run.plan.lora.alpha,
        num_parameters=run.plan.num_parameters,
        template_digest=template_digest,
    )
    return Registry(open_database()).register(new)
