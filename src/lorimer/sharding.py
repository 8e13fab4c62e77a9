"""Sharded adapters when somebody's rows go: the shards that hold them are trained again, the others stay as they are, to the byte.

    for made in retrain_shards("helpdesk@v1", {key}):
        print(made)

Until that is done, the other shards can answer alone (`stand_in`).
"""

from collections.abc import Collection, Iterator, Mapping

from lorimer.config import Recipe, read_recipe
from lorimer.data.dataset import Dataset, read_dataset
from lorimer.data.shards import holds, shard_name, write_without
from lorimer.database import open_database
from lorimer.errors import TrainingError, UsageError
from lorimer.model.base import Base, load_base
from lorimer.pipeline import Made, compose_trained, note_shards, open_runs, train_and_register
from lorimer.registry.audit import current_actor
from lorimer.registry.compositions import compose_shards
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.registry.roles import check_role
from lorimer.training.runs import run_folder

Replaced = Mapping[str, str | None]
"""Datasets by the digests of those whose place they took, where these are gone already; None where no row is left."""


def is_sharded(version: AdapterVersion) -> bool:
    """Whether a version is the composition of a recipe's shards."""
    prefix = shard_name(version.name, 0)[:-1]
    return bool(version.dataset_digest and version.parts) and all(part.id.startswith(prefix) for part in version.parts)


def shards_of(registry: Registry, version: AdapterVersion) -> list[AdapterVersion]:
    """The adapters of a sharded version.

    Raises:
        UsageError: if it is not one.
    """
    if not is_sharded(version):
        raise UsageError(
            f"{version.id} was not trained in shards: train its recipe without the rows, or with `privacy: sharded` from now on"
        )
    named = {shard.id: shard for name in {part.id.partition("@")[0] for part in version.parts} for shard in registry.history(name)}
    return [named[part.id] for part in version.parts]  # by name: another recipe's shard may have the same bytes


def shards_with(registry: Registry, version: AdapterVersion, subjects: Collection[str]) -> list[AdapterVersion]:
    """Which adapters of a sharded version have learned from rows of some subjects, or chose their weights by them.

    Raises:
        UsageError: if it is not a sharded version.
        NotFoundError: if a shard's dataset is gone.
    """
    return [shard for shard in shards_of(registry, version) if _holds(read_dataset(shard.dataset_digest), subjects)]


def stand_in(registry: Registry, version: AdapterVersion, without: Collection[str], *, actor: str | None = None) -> AdapterVersion | None:
    """The mean of those shards that hold no rows of some subjects: it can answer at once, and knows a share less.

    It is a version like any other, and meets the gate before an alias points at it. None if fewer than two shards are left: one alone
    is `NAME-shard-K`, and an alias of `NAME` cannot point there.

    Raises:
        As `shards_with`.
    """
    gone = {shard.digest for shard in shards_with(registry, version, without)}
    left = [shard for shard in shards_of(registry, version) if shard.digest not in gone]
    if not gone or len(left) < 2:
        return None if gone else version
    return compose_shards(
        registry, version.name, left, dataset_name=version.dataset_name, dataset_digest=version.dataset_digest, actor=actor
    )


def retrain_shards(
    name: str | AdapterVersion,
    without: Collection[str] = frozenset(),
    *,
    replaced: Replaced | None = None,
    recipes: Mapping[str, Recipe] | None = None,
    base: Base | None = None,
) -> Iterator[Made]:
    """Train the shards that hold rows of some subjects (their keys) again without these, and compose them with the others.

    Yields the whole dataset as it is now, what training yields, and last the next version of the composition. What each shard becomes is
    what training it from the start without the rows makes, to the byte. A shard that was trained on these very rows by this very recipe
    is not trained again, so that this can be repeated after a crash. `replaced` says where datasets have gone that were rewritten before,
    `recipes`, by the runs' ids, what the recipes were where their folders are gone.

    Raises:
        UsageError: if the version is not sharded.
        TrainingError: if fewer than two shards would have rows, or training cannot go on.
        NotFoundError: if a dataset is gone and nothing is said to have replaced it.
        ConfigError: if a shard's recipe is gone and not given.
    """
    registry = Registry(open_database())
    check_role(registry.engine, current_actor(), "register")
    version = registry.resolve(name) if isinstance(name, str) else name
    shards = shards_of(registry, version)
    # 1) what is left of the rows: a dataset that held none of them keeps its digest
    whole = _left(version.dataset_digest, without, replaced or {})
    left = [(shard, _left(shard.dataset_digest, without, replaced or {})) for shard in shards]
    filled = [(shard, dataset) for shard, dataset in left if dataset is not None]
    if whole is None or len(filled) < 2:
        raise TrainingError(
            f"{version.id} cannot be composed again: {len(filled)} of its {len(shards)} shards would have rows, at least 2 are needed; "
            "train a recipe without `privacy: sharded`"
        )
    yield whole
    # 2) train those that changed
    kept, pack = list[AdapterVersion](), list[tuple[Recipe, Dataset]]()
    for shard, dataset in filled:
        if dataset.digest == shard.dataset_digest:
            kept.append(shard)
            continue
        recipe = (recipes or {}).get(shard.run_id) or _recipe_of(shard)
        if (again := _find_trained(registry, shard, dataset, recipe)) is not None:
            kept.append(again)
        else:
            pack.append((recipe, dataset))
    if not pack:
        yield compose_shards(registry, version.name, kept, dataset_name=whole.name, dataset_digest=whole.digest)
        return
    if base is None:
        base = load_base(pack[0][0].base, quantisation=pack[0][0].quantise)
        yield base
    runs = yield from open_runs(pack, base)
    ids = [shard.id for shard in kept]
    note_shards(runs, name=version.name, dataset_name=whole.name, dataset_digest=whole.digest, kept=ids)
    yield from train_and_register(runs, base, "strict")
    yield from compose_trained(runs)


def _left(digest: str, without: Collection[str], replaced: Replaced) -> Dataset | None:
    now = replaced.get(digest, digest)
    return None if now is None else write_without(read_dataset(now), without)


def _holds(dataset: Dataset, subjects: Collection[str]) -> bool:
    return any(holds(rows, subjects) for rows in (dataset.train, dataset.validation))


def _recipe_of(shard: AdapterVersion) -> Recipe:
    return read_recipe(run_folder(shard.run_id) / "recipe.yaml")


def _find_trained(registry: Registry, shard: AdapterVersion, dataset: Dataset, recipe: Recipe) -> AdapterVersion | None:
    """A version of this shard that learned from exactly these rows by this recipe on this base."""
    for version in registry.history(shard.name):
        is_same = (version.dataset_digest, version.base_digest) == (dataset.digest, shard.base_digest)
        if is_same and not version.parts and (run_folder(version.run_id) / "recipe.yaml").is_file() and _recipe_of(version) == recipe:
            return version
    return None
