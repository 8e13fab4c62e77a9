"""Taking a person's rows back, on one page: scope -> approve -> quarantine -> erase -> retrain -> gate -> release -> certify.

Each step is done in whole, writes its state in the transaction of what it changed, and may be done again: whoever is interrupted resumes.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, text

from lorimer.config import Recipe, home, read_recipe
from lorimer.data.dataset import read_dataset
from lorimer.data.subjects import find_key, subject_keys
from lorimer.database import begin_write
from lorimer.errors import (
    AwaitingApprovalError,
    GateFailedError,
    InconclusiveError,
    IntegrityError,
    LorimerError,
    NotFoundError,
    TrainingError,
)
from lorimer.judging import judge_version
from lorimer.model.base import Base, load_base
from lorimer.pipeline import Made, resume, train_on
from lorimer.registry.audit import current_actor, now, open_trusted_signer
from lorimer.registry.erasures import ENDED, Erasure, change, find_erasure, note, receive
from lorimer.registry.fence import fence
from lorimer.registry.promotion import promote
from lorimer.registry.receipt import make_receipt
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.registry.schema import held_routes
from lorimer.registry.scope import Scope, count_requests, find_scope, recipe_of
from lorimer.registry.takeout import take_out, work_folder
from lorimer.sharding import is_sharded, retrain_shards
from lorimer.storage import digest_of, hold_lock, write_bytes, write_text
from lorimer.training.runs import list_runs, run_folder

ERASURE_LOCK = 5_046_185  # a PostgreSQL advisory lock: any number, the same in every process
STOP_SECONDS = 20.0
"""A run that learns from the rows is waited for so long, once it was asked to stop."""
DEAD_SECONDS = 600.0
"""A run that wrote nothing for so long has ended without saying so."""

Step = Callable[[Registry, Erasure], Iterator[Made | Erasure]]


def find_keys(registry: Registry, subjects: Sequence[str]) -> list[str]:
    """The keys of persons, by their own ids.

    Raises:
        NotFoundError: if nothing here is known of one of them.
    """
    found = {subject: find_key(registry.engine, subject) for subject in dict.fromkeys(subjects)}
    logged = [subject for subject, key in found.items() if key is None and _is_logged(subject)]
    found |= subject_keys(registry.engine, logged)  # only the request log names them: they get a key for as long as this takes
    if unknown := [subject for subject, key in found.items() if key is None]:
        raise NotFoundError(
            f"nothing here is known of {', '.join(map(repr, unknown))}: no row carries a key of theirs and no request names them; "
            "rows carry one if they were curated with `--subject-column`"
        )
    return [key for key in found.values() if key is not None]


def preview(registry: Registry, subjects: Sequence[str]) -> Scope:
    """The blast radius of erasing some persons; nothing is changed.

    Raises:
        NotFoundError: if nothing here is known of one of them.
    """
    known = [subject for subject in subjects if find_key(registry.engine, subject) is not None or not _is_logged(subject)]
    return replace(find_scope(registry, find_keys(registry, known)), num_request_lines=count_requests(subjects))


def request(registry: Registry, subjects: Sequence[str], *, reason: str = "") -> Erasure:
    """Receive a request and find out how far the rows have gone.

    Raises:
        NotFoundError: if nothing here is known of one of the persons.
        AccessError: if the actor may not ask for it.
    """
    erasure = receive(registry, find_keys(registry, subjects), reason=reason)
    return scope(registry, erasure) if erasure.state == "received" else erasure


def scope(registry: Registry, erasure: Erasure) -> Erasure:
    """Write down the blast radius: digests and counts."""
    found = find_scope(registry, erasure.keys).to_json()
    counts = {"num_records": found["num_records"], "num_datasets": len(found["datasets"]), "num_versions": len(found["versions"])}
    return change(registry, erasure, "scoped", "scope_erasure", details=counts, also=lambda connection: {"scope": found})


def carry_out(registry: Registry, erasure_id: str, *, accepts_fallback: bool = False) -> Iterator[Made | Erasure]:
    """Go on with an approved erasure to its end, from wherever it is; yields what is made and the erasure after each step.

    Raises:
        AwaitingApprovalError: if it is not approved yet, or a protected alias has to be released by a second person.
        GateFailedError, InconclusiveError: if what was trained anew does not pass; its routes stay where they fell back to.
        IntegrityError: if words of the rows are still somewhere.
        LorimerError: if another process carries out an erasure here.
    """
    with exclusively(registry):
        erasure = find_erasure(registry, erasure_id)
        if erasure.state == "received":
            erasure = scope(registry, erasure)
            yield erasure
        if erasure.state == "scoped":
            raise AwaitingApprovalError(
                f"erasure {erasure.id}, by {erasure.requested_by!r}, waits for a second person until {erasure.due_at[:10]}: "
                f"`lorimer erasures approve {erasure.id}`"
            )
        while erasure.state not in ENDED:
            if erasure.state == "gated":
                erasure = _release(registry, erasure, accepts_fallback)
                yield erasure
                continue
            for made in STEPS[erasure.state](registry, erasure):
                yield made
                if isinstance(made, Erasure):
                    erasure = made


@contextlib.contextmanager
def exclusively(registry: Registry) -> Iterator[None]:
    """One process at a time carries out erasures: of this home, and of all that share a PostgreSQL.

    Raises:
        LorimerError: if another one does.
    """
    busy = LorimerError("another process carries out an erasure here: look at `lorimer erasures list`, and resume when it is done")
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(hold_lock(home() / "erasures" / "lock")):
            raise busy
        if registry.engine.dialect.name == "postgresql":
            connection = stack.enter_context(registry.engine.connect().execution_options(isolation_level="AUTOCOMMIT"))
            if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": ERASURE_LOCK}).scalar():
                raise busy
            stack.callback(_unlock, connection)
        yield


def _unlock(connection: Connection) -> None:
    with contextlib.suppress(Exception):  # the connection may be what was lost: then the lock is free as well
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ERASURE_LOCK})


def _quarantine(registry: Registry, erasure: Erasure) -> Iterator[Erasure]:
    """Fence off all that learned from the rows; routes fall back. From here on nothing of it answers."""
    found = find_scope(registry, erasure.keys, buried=erasure.document.get("datasets", {}))
    recipes = _keep_recipes(erasure, found)
    actor = current_actor()

    def also(connection: Connection) -> dict[str, Any]:
        routes = fence(connection, registry, found, erasure.keys, erasure=erasure.id, actor=actor)
        datasets = dict.fromkeys(found.radius.datasets)
        retrain = _choose(found, routes, recipes)
        named = {"scope": found.to_json(), "datasets": datasets, "adapters": list(found.adapters), "routes": routes}
        return {**named, "retrain": retrain, "not_retrained": _others(found, retrain)}

    details = {"datasets": sorted(found.radius.datasets), "adapters": list(found.adapters)}
    yield change(registry, erasure, "quarantined", "quarantine", actor=actor, details=details, also=also)


def _erase(registry: Registry, erasure: Erasure) -> Iterator[Erasure]:
    """Delete rows, everything made of them, and the key; see that no byte of the rows is left."""
    known = erasure.document["datasets"]
    fenced = [version for version in registry.list_versions() if version.digest in erasure.document["adapters"]]
    found = find_scope(registry, erasure.keys, buried=known, also=fenced)
    _stop_runs(found.radius.datasets)
    datasets = dict(known)

    def replaced(old: str, new: str | None) -> None:
        datasets[old] = new
        note(registry, erasure, datasets=datasets)

    taken = take_out(registry, found, erasure.keys, erasure=erasure.id, on_replaced=replaced, known=known)
    details = {"datasets": {old: new or "" for old, new in datasets.items()}, "num_texts_searched": taken.absence.num_texts}
    yield change(registry, erasure, "erased", "erase", details=details, also=lambda connection: {"taken": taken.to_json()})


def _begin_retraining(registry: Registry, erasure: Erasure) -> Iterator[Erasure]:
    details = {"versions": [one["version"] for one in erasure.document["retrain"]]}
    yield change(registry, erasure, "retraining", "begin_retraining", details=details)


def _retrain(registry: Registry, erasure: Erasure) -> Iterator[Made | Erasure]:
    """The same recipes on the datasets without the rows, each with its own gate; those done before an interruption stay."""
    bases: dict[tuple[str, str | None], Base] = {}
    for one in erasure.document["retrain"]:
        if one["digest"] in erasure.document.get("retrained", {}):
            continue
        digest = erasure.document["datasets"].get(one["dataset_digest"], one["dataset_digest"])
        new: dict[str, Any] = {"id": None, "digest": None, "verdict": "ERROR", "why": "no row is left to learn from", "dataset": None}
        if digest is not None:
            recipe = _renewed_recipe(_kept_recipe(erasure, one["run_id"]), one["name"], digest, erasure)
            key = (recipe.base, recipe.quantise)
            base = bases[key] = bases.get(key) or load_base(recipe.base, quantisation=recipe.quantise)
            version = None
            try:
                for made in _train_shards(registry, erasure, one, base) if one["shards"] else _train(registry, recipe, digest, base):
                    yield made
                    version = made if isinstance(made, AdapterVersion) else version
            except TrainingError as exc:
                if not one["shards"]:
                    raise
                new["why"] = str(exc)  # too few shards have rows left: nothing takes its place
            else:
                if version is None:
                    raise TrainingError(
                        f"{one['version']} was not trained anew: `lorimer runs list` says why; then `lorimer erasures resume`"
                    )
                why = yield from _judge(version, base)
                verdict = registry.find(version.id).gate_verdict or "ERROR"
                new = {"id": version.id, "digest": version.digest, "verdict": verdict, "why": why, "dataset": version.dataset_digest}
        erasure = note(registry, erasure, retrained={**erasure.document.get("retrained", {}), one["digest"]: new})
        yield erasure
    retrained = erasure.document.get("retrained", {})
    details = {"verdicts": {one["id"]: one["verdict"] for one in retrained.values() if one["id"]}}
    yield change(registry, erasure, "gated", "gate_erasure", details=details)


def _train(registry: Registry, recipe: Recipe, digest: str, base: Base) -> Iterator[Made]:
    """What an interrupted attempt has trained; else go on with the run that the interruption ended; else begin one."""
    own = [run for run in list_runs() if (run["dataset_digest"], run["adapter_name"]) == (digest, recipe.name)]
    ended = {run["id"] for run in own if run["state"] == "succeeded"}
    assert recipe.name is not None, "`_renewed_recipe` names it"
    if trained := [version for version in registry.history(recipe.name) if version.run_id in ended and version.dataset_digest == digest]:
        yield trained[0]
        return
    for run in own:
        if run["state"] in ("running", "interrupted"):
            try:
                yield from resume(run["id"])
                return
            except TrainingError:  # it cannot: it is trained from its beginning
                shutil.rmtree(run_folder(run["id"]), ignore_errors=True)
    yield from train_on(recipe, read_dataset(digest), base)


def _train_shards(registry: Registry, erasure: Erasure, one: dict[str, Any], base: Base) -> Iterator[Made]:
    """Of a sharded version the shards that held the rows; the others stay as they are, to the byte."""
    recipes = {run_id: read_recipe(_kept_recipe(erasure, run_id)) for run_id in one["shards"]}
    yield from retrain_shards(registry.find(one["version"]), replaced=erasure.document["datasets"], recipes=recipes, base=base)


def _judge(version: AdapterVersion, base: Base) -> Generator[Made, None, str]:
    """Put the new version to its recipe's gate; returns why that could not be done, if so."""
    try:
        yield from judge_version(version, base)
    except IntegrityError:
        raise
    except LorimerError as exc:
        return str(exc)
    return ""


def _release(registry: Registry, erasure: Erasure, accepts_fallback: bool) -> Erasure:
    """Routes go back past their gates; those whose new version did not pass stay where they fell back to."""
    retrained, refused, waiting = erasure.document.get("retrained", {}), list[str](), list[AwaitingApprovalError]()
    inconclusive = True
    routes = []
    for route in erasure.document["routes"]:
        old = registry.find(f"{route['name']}@v{route['version']}")
        new = retrained.get(old.digest) or {}
        released = _is_released(registry, route, new)
        if not released and new.get("verdict") == "PASS":
            try:
                promote(
                    registry,
                    registry.resolve(new["id"]),
                    alias=route["alias"],
                    reason=f"erasure {erasure.id}: trained anew without the rows",
                )
                released = True
            except AwaitingApprovalError as exc:
                waiting.append(exc)
        elif not released and new.get("id"):
            refused.append(f"{route['name']}@{route['alias']} ({new['id']}: {new['verdict']})")
            inconclusive = inconclusive and new["verdict"] == "INCONCLUSIVE"
        routes.append({**route, "released": new.get("id") if released else None})
    if not accepts_fallback and waiting:
        raise waiting[0]
    if not accepts_fallback and refused:
        error = InconclusiveError if inconclusive else GateFailedError
        raise error(
            f"erasure {erasure.id}: the rows are gone, but what was trained anew did not pass its gate: {', '.join(refused)} "
            "stay where they fell back to: promote another version, or leave it so with "
            f"`lorimer erasures resume {erasure.id} --accept-fallback`"
        )

    def also(connection: Connection) -> dict[str, Any]:
        for route in routes:
            if route["released"]:
                own = held_routes.c.adapter_name == route["name"], held_routes.c.alias == route["alias"]
                connection.execute(delete(held_routes).where(*own))
        return {"routes": routes}

    details = {"released": [route["released"] for route in routes if route["released"]], "held": len(refused) + len(waiting)}
    return change(registry, erasure, "released", "release", details=details, also=also)


def _is_released(registry: Registry, route: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a route points at the new version already: somebody with the right to has moved it."""
    there = [f"{one.adapter_name}@v{one.version}" for one in registry.aliases(route["name"]) if one.alias == route["alias"]]
    return bool(new.get("id")) and there == [new["id"]]


def _certify(registry: Registry, erasure: Erasure) -> Iterator[Erasure]:
    """See once more that nothing came back meanwhile, and sign the receipt."""
    found = find_scope(registry, erasure.keys)
    if found.datasets:
        held = ", ".join(one.digest[:12] for one in found.datasets)
        raise IntegrityError(f"rows of erasure {erasure.id} came back in dataset {held}: `lorimer erasures replay`, then resume")
    actor, at = current_actor(), now()
    with begin_write(registry.engine) as connection:
        signer = open_trusted_signer(connection, actor, "certify_erasure")
    receipt = make_receipt(erasure, at=at, routes=erasure.document["routes"], signer=signer)
    details = {"receipt_digest": digest_of(receipt)}
    done = change(registry, erasure, "certified", "certify_erasure", actor=actor, details=details, finished_at=at, receipt=receipt)
    shutil.rmtree(work_folder(erasure.id), ignore_errors=True)
    yield done


STEPS: dict[str, Step] = {
    "approved": _quarantine,
    "quarantined": _erase,
    "erased": _begin_retraining,
    "retraining": _retrain,
    "released": _certify,
}


def _keep_recipes(erasure: Erasure, found: Scope) -> set[str]:
    """Recipes say nothing of rows; they outlive the runs' folders, to be followed again. Returns the runs they are of."""
    kept = set()
    for version in found.radius.versions:
        if path := recipe_of(version):
            write_bytes(_kept_recipe(erasure, version.run_id), path.read_bytes())
            kept.add(version.run_id)
    return kept


def _kept_recipe(erasure: Erasure, run_id: str) -> Path:
    return work_folder(erasure.id) / f"{run_id}.yaml"


def _choose(found: Scope, routes: Sequence[dict[str, Any]], recipes: set[str]) -> list[dict[str, Any]]:
    """What is trained anew: what routes pointed at, and of each name the newest; those that others are held against come first.

    The shards of a sharded version are trained for it.
    """
    routed = {(route["name"], route["version"]) for route in routes}
    sharded = [version for version in found.radius.compositions if is_sharded(version)]
    runs_of = {version.id: _runs_of(version, found, recipes) for version in sharded}
    shards = {part.id for version in sharded for part in version.parts}
    candidates = [version for version in found.radius.versions if version.run_id in recipes and version.id not in shards]
    candidates += [version for version in sharded if runs_of[version.id]]
    newest: dict[str, int] = {}
    for version in candidates:
        newest[version.name] = max(newest.get(version.name, 0), version.version)
    chosen = [v for v in candidates if (v.name, v.version) in routed or newest[v.name] == v.version]
    own = set(found.radius.datasets)
    described = [
        {
            "version": v.id,
            "name": v.name,
            "digest": v.digest,
            "run_id": v.run_id or runs_of[v.id][0],
            "dataset_digest": v.dataset_digest,
            "shards": runs_of.get(v.id, []),
        }
        for v in chosen
    ]
    return sorted(described, key=lambda one: (one["dataset_digest"] not in own, one["version"]))


def _runs_of(version: AdapterVersion, found: Scope, recipes: set[str]) -> list[str]:
    """The runs of those shards of a version that held the rows, if the recipes of all of them are known."""
    parts = {part.id for part in version.parts}
    runs = [shard.run_id for shard in found.radius.versions if shard.id in parts]
    return runs if all(run in recipes for run in runs) else []


def _others(found: Scope, retrain: Sequence[dict[str, Any]]) -> list[str]:
    """What goes and is not made again by this: older versions, merges, compositions, and what was trained elsewhere."""
    chosen = {one["version"] for one in retrain}
    return [version.id for version in found.radius.affected if version.id not in chosen]


def _renewed_recipe(path: Path, name: str, digest: str, erasure: Erasure) -> Recipe:
    """The same recipe on the new dataset; against the new version of what it was held against, if that went too."""
    recipe = read_recipe(path).model_copy(update={"name": name, "dataset": digest})
    if recipe.preference is None or recipe.preference.reference == "base":
        return recipe
    renewed = {one["version"]: erasure.document.get("retrained", {}).get(one["digest"], {}) for one in erasure.document["retrain"]}
    wanted, _, reference = recipe.preference.reference.partition("@")
    for old, new in renewed.items():
        if new.get("id") and (old == recipe.preference.reference or (old.partition("@")[0] == wanted and not reference.startswith("v"))):
            return recipe.model_copy(update={"preference": recipe.preference.model_copy(update={"reference": new["id"]})})
    return recipe


def _stop_runs(datasets: Sequence[str]) -> None:
    """Have runs that learn from the rows stop; what they would register is refused anyway.

    Raises:
        LorimerError: if one goes on.
    """
    deadline = time.monotonic() + STOP_SECONDS
    while running := [run["id"] for run in list_runs() if run["dataset_digest"] in datasets and _is_alive(run)]:
        for run_id in running:
            write_text(run_folder(run_id) / "cancel", "")
        if time.monotonic() > deadline:
            raise LorimerError(f"run {running[0]!r} is learning from the rows and was asked to stop: `lorimer erasures resume` when it has")
        time.sleep(0.2)


def _is_alive(run: dict[str, Any]) -> bool:
    if run["state"] != "running":
        return False
    files = [path.stat().st_mtime for path in run_folder(run["id"]).iterdir() if path.name != "cancel"]
    return time.time() - max(files, default=0.0) < DEAD_SECONDS


def _is_logged(subject: str) -> bool:
    """Whether the request log names somebody."""
    return count_requests([subject]) > 0
