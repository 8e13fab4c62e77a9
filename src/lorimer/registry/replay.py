"""What was erased is erased again: after a restore, and in homes that share a database with the one that erased."""

from collections.abc import Collection

from sqlalchemy import Engine, select

from lorimer.config import home
from lorimer.database import begin_write
from lorimer.registry.audit import current_actor, record
from lorimer.registry.erasures import list_erasures, note
from lorimer.registry.fence import fence
from lorimer.registry.registry import Registry, folder_of
from lorimer.registry.schema import aliases, subjects
from lorimer.registry.scope import Scope, find_scope
from lorimer.registry.takeout import Taken, take_out
from lorimer.registry.tombstones import list_buried


def replay_tombstones(engine: Engine) -> Taken | None:
    """Take out again all that belongs to subjects whose rows were erased; None if nothing of theirs is here.

    Raises:
        IntegrityError: if words of the rows are still somewhere.
        StorageError: if something cannot be deleted.
    """
    keys = list_buried(engine, "subject")
    if not keys:
        return None
    registry, buried = Registry(engine), list_buried(engine, "dataset")
    fenced = [version for version in registry.list_versions() if version.erasure is not None]
    scope = find_scope(registry, keys, buried=buried, also=fenced)
    if not _is_here(engine, scope, keys):
        return None
    erasure = sorted(keys.values())[-1]
    with begin_write(engine) as connection:
        actor = current_actor()
        routes = fence(connection, registry, scope, keys, erasure=erasure, actor=actor)
        details = {"num_records": len(scope.records), "datasets": sorted(one.digest for one in scope.datasets), "num_routes": len(routes)}
        record(connection, actor=actor, action="replay_tombstones", subject="database", details=details)

    def replaced(old: str, new: str | None) -> None:
        for one in list_erasures(registry, open_only=True):  # which goes on from what took its dataset's place
            if old in one.document.get("datasets", {}):
                note(registry, one, datasets={**one.document["datasets"], old: new})

    return take_out(registry, scope, keys, erasure="replay", on_replaced=replaced, known=dict.fromkeys(buried))


def _is_here(engine: Engine, scope: Scope, keys: Collection[str]) -> bool:
    """Whether anything of it has come back."""
    gone = {(version.name, version.version) for version in scope.radius.affected}
    with engine.connect() as connection:
        has_key = connection.execute(select(subjects.c.key).where(subjects.c.key.in_(keys))).first() is not None
        pointing = {(row.adapter_name, row.version) for row in connection.execute(select(aliases))}
    has_files = any(folder_of(digest).is_dir() for digest in scope.adapters)
    return bool(scope.datasets) or has_files or has_key or bool(gone & pointing) or (home() / "erasures" / "replay" / "rows").is_dir()
