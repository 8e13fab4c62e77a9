"""From the `model` of a request to what answers: the base, or one registered version made for it. It opens no files.

A client's text is only ever compared with names and looked up in the registry; the one path that comes out is the registry's.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path

from lorimer.errors import NotFoundError, UsageError
from lorimer.model.shipped import SHIPPED
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import CHAMPION, NAME_PATTERN, Registry
from lorimer.serving.refusals import ApiError, shown
from lorimer.serving.replies import ModelCard

BASE_ALIAS = "base"
DEFAULT_BASE = "gemma3-270m"
OWNER = "lorimer"
REFERENCE_PATTERN = re.compile(rf"{NAME_PATTERN}(@[A-Za-z0-9_:-]{{1,80}})?")
MAX_NEAR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a request runs on; named by what cannot change, whatever name it was asked by."""

    id: str
    """`helpdesk@v3`, or the base's name."""
    digest: str | None = None
    """The adapter's; None for the base alone."""
    folder: Path | None = None
    """The adapter's files."""


def base_for(registry: Registry, model: str | None = None) -> str:
    """The name of the base to load: the one a registered adapter was made for (by default the newest), or `model` itself if it is a base.

    Raises:
        NotFoundError: if there is no such adapter and no such base.
    """
    versions = registry.list_versions()
    if model is None or model == BASE_ALIAS:
        return max(versions, key=lambda version: version.created_at).base_name if versions else DEFAULT_BASE
    if model in SHIPPED or "/" in model or Path(model).is_dir():
        return model
    return registry.resolve(model).base_name


class Models:
    """What may be asked for here: the base, and the registered adapters made for it."""

    def __init__(self, registry: Registry, *, base_name: str, base_digest: str, max_len: int) -> None:
        self.registry = registry
        self.base_name, self.base_digest, self.max_len = base_name, base_digest, max_len
        self._started_at = int(datetime.now().timestamp())

    def resolve(self, model: str) -> Target:
        """Find what a client means.

        Raises:
            ApiError: 404 if there is nothing of that name, 400 if it was made for another base or is ambiguous.
        """
        if model in (self.base_name, BASE_ALIAS):
            return Target(id=self.base_name)
        if not REFERENCE_PATTERN.fullmatch(model):
            raise self._not_found(model)
        try:
            version = self.registry.resolve(model)
        except NotFoundError as exc:
            raise self._not_found(model) from exc
        except UsageError as exc:
            raise ApiError(400, str(exc), param="model", code="invalid_model") from exc
        if version.base_digest != self.base_digest:
            raise ApiError(
                400,
                f"adapter {version.id!r} was made for base {version.base_name!r} ({version.base_digest[:12]}), "
                f"this server runs {self.base_name!r} ({self.base_digest[:12]}): ask a server of its own base",
                param="model",
                code="wrong_base",
            )
        return Target(id=version.id, digest=version.digest, folder=version.path)

    def card(self, model: str) -> ModelCard:
        """The card of one name.

        Raises:
            ApiError: as `resolve`.
        """
        target = self.resolve(model)
        if target.digest is None:
            return self._base_card()
        return self._adapter_card(model, self.registry.resolve(target.id))

    def cards(self) -> list[ModelCard]:
        """Every name that `resolve` finds, but for digests: the base; each adapter by name, alias and version."""
        aliases = self.registry.aliases()  # before the versions: what an alias points at is among them then
        versions = self.registry.list_versions()
        names = {version.id: version for version in versions}
        names |= {version.name: version for version in reversed(versions)}  # by a bare name the newest answers,
        for alias in aliases:
            names[alias.id] = target = names[f"{alias.adapter_name}@v{alias.version}"]
            if alias.alias == CHAMPION:
                names[alias.adapter_name] = target  # unless there is a champion
        own = (name for name in sorted(names) if names[name].base_digest == self.base_digest and name not in (self.base_name, BASE_ALIAS))
        return [self._base_card(), *(self._adapter_card(name, names[name]) for name in own)]

    def _base_card(self) -> ModelCard:
        return ModelCard(
            id=self.base_name,
            object="model",
            created=self._started_at,
            owned_by=OWNER,
            root=self.base_digest,
            parent=None,
            max_model_len=self.max_len,
        )

    def _adapter_card(self, name: str, version: AdapterVersion) -> ModelCard:
        return ModelCard(
            id=name,
            object="model",
            created=int(datetime.fromisoformat(version.created_at).timestamp()),
            owned_by=OWNER,
            root=version.digest,
            parent=self.base_name,
            max_model_len=self.max_len,
        )

    def _not_found(self, model: str) -> ApiError:
        near = get_close_matches(model[:200], [BASE_ALIAS, *(card.id for card in self.cards())], n=MAX_NEAR)
        hint = f"did you mean {' or '.join(repr(name) for name in near)}?" if near else "GET /v1/models lists what there is"
        return ApiError(404, f"the model {shown(model)!r} does not exist: {hint}", param="model", code="model_not_found")
