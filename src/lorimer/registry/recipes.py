"""By which recipe a version is judged: the one that was recorded when it was registered. Whoever edits its file afterwards changes nothing.

The audit chain has the recipe's digest. The file is that of the run which trained the version; of an adapter from elsewhere it is kept in
the home folder, where it was given at its import.
"""

from pathlib import Path

from lorimer.config import Recipe, home, read_recipe, recipe_yaml
from lorimer.errors import IntegrityError, UsageError
from lorimer.registry.audit import read_audit
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.storage import digest_of, write_text


def digest_of_recipe(recipe: Recipe) -> str:
    """SHA-256 of what a recipe asks for; what is left at its default makes no difference."""
    return digest_of(recipe.model_dump(exclude_defaults=True, mode="json"))


def keep_recipe(recipe: Recipe) -> None:
    """Keep the recipe that an adapter from elsewhere will be judged by."""
    write_text(_kept_path(digest_of_recipe(recipe)), recipe_yaml(recipe))


def recipe_of(registry: Registry, version: AdapterVersion) -> Recipe:
    """The recipe that a version is judged by; of a merge or composition, that of the first it is made of.

    Raises:
        UsageError: if none was given.
        IntegrityError: if its file is not the recipe that was recorded.
    """
    own = first_of(registry, version)
    path, digest = _recorded(registry, own)
    if path is None or not path.is_file():
        raise UsageError(
            f"nothing here says what {own.id} is held to: the recipe of its run is gone, or it was imported without one; import it with "
            "`--recipe FILE`, or ask suites of it (`lorimer evaluate --suite`), which promote nothing"
        )
    recipe = read_recipe(path)
    found = digest_of_recipe(recipe)
    if found != digest:
        recorded = f"{digest[:12]} was recorded" if digest else "none was recorded"
        raise IntegrityError(
            f"{str(path)!r} is not the recipe that {own.id} was registered with ({recorded}, this is {found[:12]}): nothing is judged by "
            "it; put the file back; for another gate train, or import, under another name"
        )
    return recipe


def has_recipe(registry: Registry, version: AdapterVersion) -> bool:
    """Whether there is a file that says how a version is judged, right or not."""
    path, _ = _recorded(registry, first_of(registry, version))
    return path is not None and path.is_file()


def first_of(registry: Registry, version: AdapterVersion) -> AdapterVersion:
    """A version itself; of a merge or composition, the first it is made of."""
    first = next(iter((*version.parents, *(part.digest for part in version.parts))), None)
    return version if first is None else first_of(registry, registry.find_digest(first))


def is_imported(registry: Registry, version: AdapterVersion) -> bool:
    """Whether a version came from elsewhere."""
    return any(entry.action == "import" for entry in read_audit(registry.engine, version.id))


def recorded_digest(registry: Registry, version: AdapterVersion) -> str:
    """The digest of the recipe that a version was registered with; empty if it has none."""
    return _recorded(registry, version)[1]


def _recorded(registry: Registry, version: AdapterVersion) -> tuple[Path | None, str]:
    """The file that holds a version's recipe, and the digest it must have."""
    entries = [entry for entry in read_audit(registry.engine, version.id) if entry.action in ("register", "import")]
    digest = str(entries[-1].details.get("recipe_digest", "")) if entries else ""
    if entries and entries[-1].action == "import":
        return (_kept_path(digest), digest) if digest else (None, "")
    return (home() / "runs" / version.run_id / "recipe.yaml" if version.run_id else None), digest


def _kept_path(digest: str) -> Path:
    return home() / "recipes" / f"{digest[:16]}.yaml"
