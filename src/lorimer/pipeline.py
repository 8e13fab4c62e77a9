"""The product on one page: curate -> plan -> train -> evaluate -> check -> register -> promote.

Every step yields what it made, so that the caller shows progress and decides what to do with it:

    for made in build(recipe):
        print(made)
"""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from lorimer.config import COMPARISON_METHODS, Recipe, read_recipe
from lorimer.data.dataset import Dataset, read_dataset
from lorimer.data.shards import write_shards
from lorimer.database import open_database
from lorimer.errors import ConfigError, TrainingError, UsageError
from lorimer.evaluation.compare import ComparedRun, Comparison, refuse_unlike
from lorimer.evaluation.gates import GateResult
from lorimer.evaluation.statistics.proportions import compare_pairs, proportion_of
from lorimer.inference.adapter_pool import AdapterPool
from lorimer.inference.decoder import make_decoder
from lorimer.inference.fingerprint import FINGERPRINT_FILE, Prober, norms_of
from lorimer.inference.routing import ROUTING_FILE, make_profile, profile_to_bytes, prompts_of, states_of
from lorimer.judging import Judging, judge
from lorimer.model.adapter import load_adapter
from lorimer.model.base import Base, load_base
from lorimer.model.chat import Rendered
from lorimer.model.lora import LoRA
from lorimer.model.machine import prepare_for_many_shapes, probe
from lorimer.registry.audit import current_actor
from lorimer.registry.compositions import compose_shards
from lorimer.registry.promotion import promote
from lorimer.registry.recipes import digest_of_recipe, recipe_of
from lorimer.registry.records import AdapterVersion, Alias, NewVersion
from lorimer.registry.registry import Registry, digest_of_folder
from lorimer.registry.roles import check_role
from lorimer.storage import read_json, write_json
from lorimer.training.comparison import ComparisonEvent, num_bytes_in, result_folder, score_run, train_comparison
from lorimer.training.contenders import Scores
from lorimer.training.inputs import read_datasets
from lorimer.training.loop import Mode
from lorimer.training.plan import TrainingPlan, plan
from lorimer.training.runs import Run, open_run, read_run, reopen_run, run_folder
from lorimer.training.train import RunEvent, RunResult, train_run, train_runs

SHARDS_FILE = "shards.json"
"""In the run of a shard: which runs make which composition."""
NEEDED = frozenset(("num_parameters", "seconds", "peak_bytes"))  # of what a finished run has noted, for comparing it

Made = Dataset | Base | TrainingPlan | Run | RunEvent | ComparisonEvent | Judging | AdapterVersion | Alias


def build(recipe: Recipe) -> Iterator[Made]:
    """From a recipe to a registered adapter version, promoted to champion if its gate says PASS.

    Raises:
        ConfigError: if the recipe's method makes no adapter that could be registered.
    """
    if recipe.method in COMPARISON_METHODS:
        raise ConfigError(
            f"method {recipe.method!r} is there for comparison, what it makes is not registered: "
            "run it with `lorimer train` and put it beside an adapter's run with `lorimer runs compare`"
        )
    # 1) examples -> an immutable dataset, the frozen base, a plan, a trained and registered adapter
    made: Made
    for made in train_recipes([recipe]):
        yield made
        if isinstance(made, Base):
            base = made
        elif isinstance(made, Dataset):
            dataset = made
        elif isinstance(made, AdapterVersion):  # of a sharded recipe, the last is the composition of the others
            version = made
    # 2) evaluate the saved files beside the base, and check the gate: that of the recipe these bytes were first registered with
    registry = Registry(open_database())
    for made in judge(recipe_of(registry, version), dataset, base, version):
        yield made
    assert isinstance(made, GateResult)  # what `judge` ends with
    # 3) keep what the gate said, and promote: an alias moves only past a passed gate
    version = registry.record_gate(made, version)
    yield version
    if version.gate_verdict == "PASS":
        yield promote(registry, version, reason=f"gate of run {version.run_id} passed")


def train_recipes(recipes: Sequence[Recipe], *, mode: Mode | None = None) -> Iterator[Made]:
    """Train one adapter, or several over one resident base, and register each that succeeds.

    `mode` says how several share their passes (strictly, if it is not given). A method that is there for comparison is trained alone,
    and what it makes is not registered. A sharded recipe makes an adapter of each shard, all in one strict pass, and a composition.

    Raises:
        ConfigError: if the recipes do not share a base, or one of several, or one with a mode, is there for comparison, or one cannot be
            trained in shards.
        NotFoundError, DataError: if bases or datasets are missing or broken; all that are, as far as that is seen without loading them.
        TrainingError: if a single run cannot go on; in a pack the others go on, and the failure is yielded.
    """
    compared = [recipe.method for recipe in recipes if recipe.method in COMPARISON_METHODS]
    if compared and (len(recipes) > 1 or mode is not None):
        raise ConfigError(
            f"method {compared[0]!r} is there for comparison and is trained alone: leave out `--packed` (and `--strict`, where it is given)"
        )
    if mode == "fused" and any(recipe.privacy for recipe in recipes):
        raise ConfigError("a sharded recipe is trained strictly, so that one shard alone can be trained again: add `--strict`")
    datasets = read_datasets(recipes)
    yield from datasets
    if compared:
        yield from train_comparison(recipes[0], datasets[0])
        return
    check_role(open_database(), current_actor(), "register")  # not after hours of training
    packs = [_deal(recipe, dataset) for recipe, dataset in zip(recipes, datasets, strict=True)]
    if sum(map(len, packs)) > 1:
        prepare_for_many_shapes()
    base = _load_shared_base(recipes)
    yield base
    runs = list[Run]()
    for recipe, dataset, pack in zip(recipes, datasets, packs, strict=True):
        opened = yield from open_runs(pack, base)
        if recipe.privacy:
            name = recipe.name or dataset.name
            note_shards(opened, name=name, dataset_name=dataset.name, dataset_digest=dataset.digest)
        runs += opened
    yield from train_and_register(runs, base, mode or "strict")
    yield from compose_trained(runs)


def _deal(recipe: Recipe, dataset: Dataset) -> list[tuple[Recipe, Dataset]]:
    """What is trained for a recipe: itself, or one ordinary recipe for each of its shards."""
    if recipe.privacy is None:
        return [(recipe, dataset)]
    as_curated = {"privacy": None, "columns": None, "system": None, "languages": None}
    return [
        (recipe.model_copy(update={**as_curated, "name": shard.name, "dataset": shard.name}), shard)
        for shard in write_shards(dataset, recipe.name or dataset.name, recipe)
    ]


def open_runs(pack: Sequence[tuple[Recipe, Dataset]], base: Base) -> Generator[Made, None, list[Run]]:
    """Plan each recipe and open its run; yields both, returns the runs."""
    runs = list[Run]()
    for recipe, dataset in pack:
        plan_ = plan(recipe, dataset, base)
        yield plan_
        runs.append(open_run(recipe, plan_, dataset, base))
        yield runs[-1]
    return runs


def note_shards(runs: Sequence[Run], *, name: str, dataset_name: str, dataset_digest: str, kept: Sequence[str] = ()) -> None:
    """Write into each shard's run what all of them make together; `kept` are the ids of shards that are there already."""
    value = {"name": name, "dataset_name": dataset_name, "dataset_digest": dataset_digest, "kept": list(kept)}
    for run in runs:
        write_json(run.folder / SHARDS_FILE, {**value, "runs": [run.id for run in runs]})


def compose_trained(runs: Sequence[Run], *, waits: bool = False) -> Iterator[AdapterVersion]:
    """The composition of shards whose runs have all succeeded, once for each that some of `runs` belong to.

    With `waits`, one of which runs are open yet is left for later.

    Raises:
        TrainingError: if a shard's run has not ended well.
    """
    registry = Registry(open_database())
    notes = [read_json(run.folder / SHARDS_FILE) for run in runs if (run.folder / SHARDS_FILE).is_file()]
    for note in {note["runs"][0]: note for note in notes}.values():
        recorded = [read_run(run_id) for run_id in note["runs"]]
        unfinished = [run["id"] for run in recorded if run["state"] != "succeeded"]
        if unfinished and waits:
            continue
        if unfinished:
            raise TrainingError(
                f"{note['name']!r} is not composed: {len(unfinished)} of its {len(recorded) + len(note['kept'])} shards are not trained "
                f"({', '.join(unfinished)}); `lorimer runs resume RUN` goes on with each, the last of them composes it"
            )
        shards = [registry.resolve(shard) for shard in note["kept"]]
        for run in recorded:
            digest = digest_of_folder(run_folder(run["id"]) / "adapter")
            shards.append(registry.resolve(f"{run['adapter_name']}@sha256:{digest}"))
        yield compose_shards(registry, note["name"], shards, dataset_name=note["dataset_name"], dataset_digest=note["dataset_digest"])


def resume(run_id: str) -> Iterator[Made]:
    """Go on with a run that did not end, from its newest checkpoint, and register its adapter.

    Raises:
        TrainingError: if it has ended, or if what it was planned on has changed.
    """
    recorded = read_run(run_id)
    if recorded["method"] in COMPARISON_METHODS:
        raise TrainingError(f"run {recorded['id']!r} cannot go on: method {recorded['method']!r} keeps no checkpoints; train again")
    if recorded["state"] == "succeeded":
        raise TrainingError(f"run {recorded['id']!r} has succeeded: its adapter is registered, there is nothing to resume")
    if "plan_digest" not in recorded:
        raise TrainingError(f"run {recorded['id']!r} cannot go on: an older version began it and kept no checkpoints; train again")
    check_role(open_database(), current_actor(), "register")
    recipe = read_recipe(run_folder(recorded["id"]) / "recipe.yaml")
    dataset = read_dataset(recorded["dataset_digest"])
    yield dataset
    base = load_base(recipe.base, quantisation=recipe.quantise)
    yield base
    run = reopen_run(recorded["id"], recipe, plan(recipe, dataset, base), dataset, base)
    yield run
    yield from train_and_register([run], base, "strict")
    yield from compose_trained([run], waits=True)


def train_on(recipe: Recipe, dataset: Dataset, base: Base) -> Iterator[Made]:
    """Train one adapter on a dataset that is at hand, whatever the recipe calls it, and register it.

    Raises:
        TrainingError: if the run cannot go on.
    """
    plan_ = plan(recipe, dataset, base)
    yield plan_
    run = open_run(recipe, plan_, dataset, base)
    yield run
    yield from train_and_register([run], base, "strict")


def compare_runs(run_ids: Sequence[str]) -> Comparison:
    """Put finished runs of any method side by side, each paired with the first on the test items; runs never scored are scored now.

    Raises:
        UsageError: if they are not on the same base and dataset; it says what differs.
        TrainingError: if one has not succeeded.
    """
    recorded = [read_run(run_id) for run_id in run_ids]
    refuse_unlike(recorded)
    if old := [run["id"] for run in recorded if run["state"] == "succeeded" and not run.get("actual", {}).keys() >= NEEDED]:
        raise TrainingError(f"an older version trained {', '.join(map(repr, old))} and did not note what that took: train again to compare")
    scores = [score_run(run["id"]) for run in recorded]
    firsts = (None, *[scores[0]] * (len(scores) - 1))
    lineage = {key: recorded[0][key] for key in ("base_name", "base_digest", "dataset_name", "dataset_digest")}
    runs = tuple(_compared(run, own, first) for run, own, first in zip(recorded, scores, firsts, strict=True))
    return Comparison(**lineage, num_items=len(scores[0].exact), runs=runs)


def _compared(run: dict[str, Any], own: Scores, first: Scores | None) -> ComparedRun:
    return ComparedRun(
        run_id=run["id"],
        name=run["adapter_name"],
        method=run["method"],
        exact=proportion_of(own.exact),
        loss=own.loss,
        against_first=None if first is None else compare_pairs(zip(own.exact, first.exact, strict=True)),
        saved_bytes=num_bytes_in(result_folder(run_folder(run["id"]), run["method"])),
        **{key: run["actual"][key] for key in NEEDED},
    )


def train_and_register(runs: Sequence[Run], base: Base, mode: Mode) -> Iterator[Made]:
    """Train opened runs together, or the one, and register each that succeeds."""
    references = {run.id: _reference(run.recipe, base) for run in runs}
    by_id = {run.id: run for run in runs}
    if len(runs) == 1:
        events: Iterator[RunEvent] = train_run(runs[0], base, references[runs[0].id])
    else:
        events = train_runs(runs, base, mode=mode, memory_bytes=probe().memory_bytes, references=references)
    for event in events:
        yield event
        if isinstance(event, RunResult):
            yield register(by_id[event.run_id], event, base)


def _load_shared_base(recipes: Sequence[Recipe]) -> Base:
    bases = {(recipe.base, recipe.quantise) for recipe in recipes}
    if len(bases) > 1:
        named = ", ".join(sorted(f"{base} ({quantise})" if quantise else base for base, quantise in bases))
        raise ConfigError(f"recipes trained together share one base, these name {len(bases)}: {named}")
    ((name, quantise),) = bases
    return load_base(name, quantisation=quantise)


def _reference(recipe: Recipe, base: Base) -> LoRA | None:
    """The adapter that preferences are learned against; None is the base alone."""
    if recipe.preference is None or recipe.preference.reference == "base":
        return None
    version = find_version(recipe.preference.reference)
    if version.parts:
        named = ", ".join(part.id for part in version.parts)
        raise UsageError(f"{version.id} is a composition, without files of its own, and is not trained from: name one of {named}")
    Registry(open_database()).verify_files(version)
    return load_adapter(version.path, base)


def find_version(name: str) -> AdapterVersion:
    """A registered version by `name`, `name@v3`, `name@alias` or `name@sha256:..`."""
    return Registry(open_database()).resolve(name)


def register(run: Run, result: RunResult, base: Base) -> AdapterVersion:
    """Keep a run's adapter as the next version of its name, with what serving will hold it to and route to it by."""
    new = NewVersion(
        name=run.adapter_name,
        source=result.adapter_folder,
        base_name=run.base_name,
        base_digest=run.base_digest,
        dataset_name=run.dataset_name,
        dataset_digest=run.dataset_digest,
        run_id=run.id,
        rank=result.rank,
        alpha=result.alpha,
        num_parameters=result.num_parameters,
        template_digest=base.renderer.template_digest,
        companions=describe(result.adapter_folder, base, run.plan.report.rendered["train"]),
        recipe_digest=digest_of_recipe(run.recipe),
    )
    return Registry(open_database()).register(new)


def describe(folder: Path, base: Base, rows: Sequence[Rendered]) -> dict[str, bytes]:
    """What is kept beside an adapter's files, by name: what it answers to the probes, and where the rows it learned from lie."""
    decoder = make_decoder(base)
    lora = load_adapter(folder, base)
    ready = AdapterPool(base, dense_weight=decoder.dense_weight).prepare(lora)
    fingerprint = Prober(base, decoder).take(digest_of_folder(folder), ready, norms_of(lora, decoder.dense_weight))
    profile = make_profile(states_of(base, decoder, prompts_of(rows)))
    return {FINGERPRINT_FILE: fingerprint.to_bytes(), ROUTING_FILE: profile_to_bytes(profile, base.digest)}
