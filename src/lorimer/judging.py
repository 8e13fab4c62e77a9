"""What an adapter's gate asks, asked: its dataset's test items, then the suites of its recipe, beside base and champion, in one engine.

A gate covers all that its recipe wants or it is none: what is asked beside it (`ask_suites`) decides no promotion.
"""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from lorimer.config import Recipe, home, read_recipe
from lorimer.data.dataset import Dataset, read_dataset
from lorimer.database import open_database
from lorimer.errors import ErasedError, NotFoundError, UsageError
from lorimer.evaluation.asked import AskedSuite, Named, ask_suite, build_suite_report
from lorimer.evaluation.checks import check_sealed, check_suite, gate_of
from lorimer.evaluation.evaluate import Answer, answers_of, ask
from lorimer.evaluation.gates import Check, GateResult, JudgedSuite, check, with_suites
from lorimer.evaluation.judge.calibration import check_judge
from lorimer.evaluation.judge.record import Judge, open_judge
from lorimer.evaluation.judge.spec import JudgeSpec
from lorimer.evaluation.latency import time_answers
from lorimer.evaluation.memory.memorisation import memory_suite
from lorimer.evaluation.pages.page import report_folder, write_report
from lorimer.evaluation.pages.report_card import Attempt, Role, ServingCost, TrainingCost, render_report_card
from lorimer.evaluation.report import EvalReport, build_report
from lorimer.evaluation.results import SuiteReport
from lorimer.evaluation.suite import Suite, SuiteTask, find_suite
from lorimer.evaluation.suite_spec import Rule
from lorimer.evaluation.task import Task, task_from_dataset
from lorimer.inference.composition import BASE
from lorimer.inference.engine import Engine, EngineConfig
from lorimer.model.base import Base
from lorimer.registry.attempts import count_attempt
from lorimer.registry.audit import current_actor
from lorimer.registry.compositions import composition_of
from lorimer.registry.recipes import digest_of_recipe, is_imported, recipe_of
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import CHAMPION, Registry
from lorimer.registry.roles import check_role
from lorimer.storage import read_json, read_jsonl, write_json, write_text
from lorimer.training.plan import metric_of

EVALUATION_SEQUENCES = 96  # nobody waits for the first word, so wide batches: each step reads the base once for all of them
AUTOMATIC = ("domain", "memory")
"""Suites that are made from an adapter's own dataset."""


class SuiteFinding(NamedTuple):
    """What one suite found of one adapter."""

    version_id: str
    suite: JudgedSuite
    report: SuiteReport
    checks: tuple[Check, ...]


Judging = Task | Answer | EvalReport | SuiteFinding | GateResult


def judge(recipe: Recipe, dataset: Dataset, base: Base, version: AdapterVersion, *, opens_reserve: bool = True) -> Iterator[Judging]:
    """Ask a version's saved files, the base and the champion all that the recipe's gate wants; ends with the gate's result.

    With `opens_reserve`, the sealed items of suites are asked too: a promotion asks for such a result.

    Raises:
        NotFoundError, ConfigError, DataError: if a suite is not there or cannot be used, before anything is asked.
    """
    registry = Registry(open_database())
    champion = _champion_beside(version, registry)
    suites = suites_of(recipe, dataset, has_champion=champion is not None)
    engine = load_engine(base, registry, [version, *([champion] if champion else [])])
    report = yield from _judge_domain(recipe, dataset, engine, version)
    result, findings = check(report, recipe.gate), list[SuiteFinding]()
    for made in judge_suites(engine, registry, suites, [version], incumbent=champion, opens_reserve=opens_reserve):
        if isinstance(made, SuiteFinding):
            findings.append(made)
        yield made
    if findings:
        incumbent = champion.digest if champion else None
        result = with_suites(result, [(finding.suite, finding.checks) for finding in findings], incumbent_digest=incumbent)
    result = replace(result, recipe_digest=digest_of_recipe(recipe))
    write_report(report, result, report_folder(report.digest))
    yield report
    yield result


def judge_version(version: AdapterVersion, base: Base, *, dataset: Dataset | None = None, opens_reserve: bool = True) -> Iterator[Judging]:
    """Judge a registered version by the recipe and dataset it was trained with, and record what the gate says.

    A composition is judged as its first part is; `dataset` is what took the place of its own, where that was erased.

    Raises:
        UsageError: if it is a merge or composition of what learned from several datasets, or no recipe was given for it.
        IntegrityError: if its files, or its recipe's, are not those that were registered.
    """
    registry = Registry(open_database())
    check_role(registry.engine, current_actor(), "record_gate")
    registry.verify_files(version)
    recipe = recipe_of(registry, version)
    own = dataset or read_dataset(_dataset_of(version, registry))
    for made in judge(recipe, own, base, version, opens_reserve=opens_reserve):
        yield made
    assert isinstance(made, GateResult)  # what `judge` ends with
    registry.record_gate(made, version)


def ask_suites(
    versions: Sequence[AdapterVersion],
    base: Base,
    names: Sequence[str],
    *,
    against: AdapterVersion | None,
    times_answers: bool = False,
) -> Iterator[Judging]:
    """Put suites to several adapters and their base in one pass, without the sealed items; yields what each found of each.

    With `times_answers`, a few answers are timed one by one, for the report cards. It is no gate: nothing is recorded but that the suites'
    items were looked at.

    Raises:
        NotFoundError, ConfigError, DataError: if a suite is not there or cannot be used.
        UsageError: if an automatic suite is wanted of adapters with different datasets.
    """
    registry = Registry(open_database())
    check_role(registry.engine, current_actor(), "record_gate")
    for version in (*versions, *([against] if against else [])):
        registry.verify_files(version)
    suites = [_named_suite(name, versions, registry, has_champion=against is not None) for name in names]
    engine = load_engine(base, registry, [*versions, *([against] if against else [])])
    yield from judge_suites(engine, registry, suites, versions, incumbent=against, opens_reserve=False, times_answers=times_answers)


def judge_suites(
    engine: Engine,
    registry: Registry,
    suites: Sequence[Suite],
    versions: Sequence[AdapterVersion],
    *,
    incumbent: AdapterVersion | None,
    opens_reserve: bool,
    times_answers: bool = False,
) -> Iterator[Task | Answer | SuiteFinding]:
    """Ask each suite of base, incumbent and all versions together; yields a finding for each suite and version."""
    compositions = {version.digest: composition_of(version) for version in (*versions, *([incumbent] if incumbent else []))}
    base, opened = Named(name=engine.base.name, digest=engine.base.digest), dict[str, Judge]()
    for suite in suites:
        sealed = frozenset(s.id for one in suite.tasks for s in one.task.samples if suite.is_reserved(s))
        judges = {one.task.name: _open_once(one.judge, opened) for one in suite.tasks if one.judge}
        judge_checks = [check_judge(judge) for judge in judges.values()]
        asked: AskedSuite | None = None
        for made in ask_suite(engine, suite if opens_reserve else suite.open_part(), (None, *compositions.values())):
            if isinstance(made, AskedSuite):
                asked = made
            else:
                yield made
        assert asked is not None
        timed = next((one.task for one in suite.tasks if one.task.kind == "answer"), None) if times_answers else None
        asked_of = {base.digest: BASE, **compositions}
        costs = {digest: time_answers(engine, timed, own) for digest, own in asked_of.items()} if timed else {}
        for version in versions:
            beside = Named(name=incumbent.id, digest=incumbent.digest) if incumbent and incumbent.digest != version.digest else None
            candidate = Named(name=version.id, digest=version.digest)
            report = build_suite_report(asked, candidate=candidate, base=base, incumbent=beside, judges=judges)
            report = replace(report, suite_digest=suite.digest)  # of the whole, whatever part was asked
            checks = (*judge_checks, *check_suite(report), *(check_sealed(report, sealed) if opens_reserve else []))
            judged = JudgedSuite(
                id=suite.id,
                digest=suite.digest,
                report_digest=report.digest,
                attempt=count_attempt(registry, suite.digest, suite.id, version),
                opens_reserve=opens_reserve or not sealed,
            )
            finding = SuiteFinding(version.id, judged, report, checks)
            roles: dict[Role, str] = {"base": base.digest, "candidate": version.digest, **({"incumbent": beside.digest} if beside else {})}
            serving = {role: costs[digest] for role, digest in roles.items()} if costs else {}
            _write_card(finding, version, serving, has_reserve=bool(sealed))
            yield finding


def _open_once(spec: JudgeSpec, opened: dict[str, Judge]) -> Judge:
    """A judge, opened when it is first needed: several tasks and adapters may have one."""
    key = spec.model_dump_json()
    if key not in opened:
        opened[key] = open_judge(spec)
    return opened[key]


def card_path(report: SuiteReport) -> Path:
    """Where a report's page is."""
    return report_folder(report.digest) / "card.html"


def _write_card(finding: SuiteFinding, version: AdapterVersion, serving: Mapping[Role, ServingCost], *, has_reserve: bool) -> None:
    """Keep a report and the page a person reads."""
    training = _training_cost(version)
    price = training.price_per_hour if training else None
    report, judged = finding.report, finding.suite
    reserve: Literal["sealed", "opened", "none"] = "none" if not has_reserve else "opened" if judged.opens_reserve else "sealed"
    page = render_report_card(
        report,
        gate_of_findings([finding]),
        attempt=Attempt(number=judged.attempt, reserve=reserve),
        training=training,
        serving={role: replace(cost, price_per_hour=price) for role, cost in serving.items()},
    )
    write_json(card_path(report).with_name("report.json"), report.to_json())
    write_text(card_path(report), page)


def _training_cost(version: AdapterVersion) -> TrainingCost | None:
    """What a version's run took; None where it is not here, or none trained it alone."""
    folder = home() / "runs" / version.run_id
    actual = read_json(folder / "run.json").get("actual", {}) if version.run_id and (folder / "run.json").is_file() else {}
    if "seconds" not in actual:
        return None
    num_tokens = sum(step["num_tokens"] for step in read_jsonl(folder / "metrics.jsonl"))
    price = read_recipe(folder / "recipe.yaml").price_per_hour
    return TrainingCost(seconds=actual["seconds"], num_tokens=num_tokens, price_per_hour=price)


def gate_of_findings(findings: Sequence[SuiteFinding]) -> GateResult:
    """What suites alone say of one adapter: all their checks must pass. It decides no promotion."""
    checks = [check for finding in findings for check in finding.checks]
    return gate_of(findings[0].report, checks, [finding.suite for finding in findings])


def needs_judging(registry: Registry, version: AdapterVersion) -> bool:
    """Whether a version's newest gate result is none to promote it by.

    There is none, sealed items are left, it is of another recipe's gate, or another version is champion now.
    """
    gate, champion = registry.newest_gate(version), _champion_beside(version, registry)
    if gate is None or not gate.is_final:
        return True
    recipe = recipe_of(registry, version)
    if gate.recipe_digest != digest_of_recipe(recipe):
        return True
    wants = recipe.gate
    return bool(wants.suites or wants.champion) and gate.incumbent_digest != (champion.digest if champion else None)


def suites_of(recipe: Recipe, dataset: Dataset, *, has_champion: bool) -> list[Suite]:
    """The suites that a recipe's gate wants; beside a champion the test items are one of them."""
    suites = [] if recipe.gate.champion is None or not has_champion else [domain_suite(recipe, dataset, has_champion=True)]
    return suites + [_suite_of(name, recipe, dataset, has_champion=has_champion) for name in recipe.gate.suites]


def domain_suite(recipe: Recipe, dataset: Dataset, *, has_champion: bool) -> Suite:
    """The test items of a dataset, held to the base and, where there is one, to the champion."""
    task = task_from_dataset(dataset, metric_of(recipe))
    rules = {"against_base": Rule(better_than="base")}
    if has_champion and recipe.gate.champion == "better":
        rules["against_champion"] = Rule(better_than="incumbent")
    elif has_champion:
        rules["against_champion"] = Rule(not_worse_than="incumbent", margin=recipe.gate.margin)
    tasks = tuple(SuiteTask(family="domain", rule=rule, task=replace(task, name=name)) for name, rule in rules.items())
    return Suite(name="domain", version=1, about=f"the test items of {dataset.name!r}", reserve=0.0, tasks=tasks)


def load_engine(base: Base, registry: Registry, versions: Sequence[AdapterVersion]) -> Engine:
    """An engine with these versions' adapters, the parts of compositions too."""
    engine = Engine(base, EngineConfig(max_sequences=EVALUATION_SEQUENCES))
    for version in versions:
        for part in composition_of(version).digests:
            engine.adapters.load(part, version.path if part == version.digest else registry.find_digest(part).path)
    return engine


def _judge_domain(recipe: Recipe, dataset: Dataset, engine: Engine, version: AdapterVersion) -> Generator[Judging, None, EvalReport]:
    """The test items, put to base and version; yields the task and each answer, returns the report."""
    composition, base = composition_of(version), engine.base
    task = task_from_dataset(dataset, metric_of(recipe))
    yield task
    start, answers = time.perf_counter(), list[Answer]()
    for answer in ask(engine, task, (None, composition)):
        answers.append(answer)
        yield answer
    seconds, num_generated = time.perf_counter() - start, sum(answer.num_tokens for answer in answers)
    return build_report(
        task,
        base_answers=answers_of(answers, None, len(task.samples)),
        adapter_answers=answers_of(answers, version.digest, len(task.samples)),
        base_name=base.name,
        base_digest=base.digest,
        adapter_name=version.name,
        adapter_digest=version.digest,
        seconds=seconds,
        tokens_per_second=num_generated / seconds if num_generated else None,
    )


def _champion_beside(version: AdapterVersion, registry: Registry) -> AdapterVersion | None:
    """The champion of the same name, unless it is this one, or has another base."""
    try:
        champion = registry.resolve(f"{version.name}@{CHAMPION}")
    except (NotFoundError, ErasedError):
        return None
    return champion if champion.digest != version.digest and champion.base_digest == version.base_digest else None


def _named_suite(name: str, versions: Sequence[AdapterVersion], registry: Registry, *, has_champion: bool) -> Suite:
    if name not in AUTOMATIC:
        return find_suite(name)
    digests = {_dataset_of(version, registry) for version in versions}
    if len(digests) > 1:
        raise UsageError(f"suite {name!r} is made of an adapter's own dataset, and these learned from {len(digests)}: ask them one by one")
    recipe = recipe_of(registry, versions[0])
    return _suite_of(name, recipe, read_dataset(digests.pop()), has_champion=has_champion)


def _suite_of(name: str, recipe: Recipe, dataset: Dataset, *, has_champion: bool) -> Suite:
    if name == "memory":
        return memory_suite(dataset)
    return domain_suite(recipe, dataset, has_champion=has_champion) if name == "domain" else find_suite(name)


def _dataset_of(version: AdapterVersion, registry: Registry) -> str:
    """The dataset whose test rows a version is judged by; of an imported one its recipe's, of a composition that names none its parts'."""
    if is_imported(registry, version):
        return recipe_of(registry, version).dataset
    parts = [registry.find_digest(part.digest) for part in version.parts]
    found = {version.dataset_digest} if version.dataset_digest or not parts else {part.dataset_digest for part in parts}
    if len(found) > 1 or "" in found:
        kind = "composition" if parts else "merge"
        raise UsageError(f"{version.id} is a {kind} of adapters that learned from different datasets: by which it is judged is not known")
    return found.pop()
