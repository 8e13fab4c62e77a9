"""From the `model` of a request to what answers: the base, one registered version made for it, or several with a scale each.

It opens no files. A client's text is only ever compared with names and looked up in the registry; paths that come out are the registry's.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path

from lorimer.errors import ErasedError, NotFoundError, UsageError
from lorimer.inference.composition import MAX_PARTS, Composition, Part
from lorimer.inference.routing import RoutingDecision
from lorimer.model.shipped import SHIPPED
from lorimer.registry.compositions import parse_named, parts_of, spell
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import CHAMPION, NAME_PATTERN, Registry, folder_of
from lorimer.serving.generation import NamedAdapter
from lorimer.serving.refusals import ApiError, shown
from lorimer.serving.replies import ModelCard

BASE_ALIAS, AUTO = "base", "auto"
DEFAULT_BASE = "gemma3-270m"
OWNER = "lorimer"
VERSION_PATTERN = re.compile(r"v\d+|sha256:.*")
REFERENCE_PATTERN = re.compile(rf"{NAME_PATTERN}(@[A-Za-z0-9_:-]{{1,80}})?")
MAX_NEAR = 3


Route = Callable[[tuple[int, ...], Collection[str]], RoutingDecision]
"""Decides for a prompt's ids, among adapters of these digests. It may take as long as a prefill: it is not called in the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPart:
    """One adapter of those that answer."""

    id: str
    """`sql@v3`"""
    digest: str
    folder: Path
    """Its files."""
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a request runs on; named by what cannot change, whatever name it was asked by."""

    id: str
    """`helpdesk@v3`, `sql@v3*0.7+tone@v1`, or the base's name."""
    parts: tuple[TargetPart, ...] = ()
    """The adapters; none for the base alone."""
    route: RoutingDecision | None = None
    """Where the request left it to us."""
    merged_digest: str | None = None
    """Of the version that is part of the base here; then there are no parts."""

    @property
    def composition(self) -> Composition:
        """What the engine is asked for; the order in which a client names adapters makes no difference."""
        return Composition(tuple(Part(digest=part.digest, scale=part.scale) for part in sorted(self.parts, key=lambda part: part.digest)))

    @property
    def digest(self) -> str | None:
        """The adapter's, or that of the composition; None for the base."""
        return self.composition.digest or self.merged_digest

    @property
    def is_composed(self) -> bool:
        """Whether the request put it together: several adapters, or one with a scale, that have no name of their own."""
        return bool(self.parts) and not REFERENCE_PATTERN.fullmatch(self.id)

    @property
    def folder(self) -> Path | None:
        """The adapter's files, where it is one."""
        return self.parts[0].folder if len(self.parts) == 1 else None

    @property
    def folders(self) -> Mapping[str, Path]:
        """Every adapter's files, by digest."""
        return {part.digest: part.folder for part in self.parts}


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
    return registry.find(model).base_name


class Models:
    """What may be asked for here: the base, and the registered adapters made for it."""

    def __init__(self, registry: Registry, *, base_name: str, base_digest: str, max_len: int, may_use_base: bool = True) -> None:
        self.registry = registry
        self.base_name, self.base_digest, self.max_len, self.may_use_base = base_name, base_digest, max_len, may_use_base
        self._started_at = int(datetime.now().timestamp())

    def resolve(
        self, model: str, *, adapters: Sequence[NamedAdapter] = (), prompt_ids: tuple[int, ...] = (), route: Route | None = None
    ) -> Target:
        """Find what a client means: by one name, by several adapters beside the base's, or by letting `route` decide about a prompt.

        Raises:
            ApiError: 404 if there is nothing of that name, 400 if it was made for another base, is ambiguous or cannot be composed.
        """
        if adapters:
            if model not in (self.base_name, BASE_ALIAS):
                message = f"`adapters` stand beside the base, found `model` {shown(model)!r}: set it to {BASE_ALIAS!r}"
                raise ApiError(400, message, param="adapters", code="invalid_value")
            return self._compose(adapters, param="adapters")
        if model == AUTO and route is not None:
            return self._routed(route, prompt_ids)
        if model in (self.base_name, BASE_ALIAS) and self.may_use_base:
            return Target(id=self.base_name)
        if "*" in model or "+" in model:
            return self._compose(self._spelled(model), param="model")
        try:
            found = self._find(model)
        except ApiError as refusal:
            if self.may_use_base and self._falls_back(model, refusal):
                return Target(id=self.base_name)
            raise
        return self._target([(found, 1.0)], param="model")

    def _falls_back(self, model: str, refusal: ApiError) -> bool:
        """Whether a route has nothing left to point at since somebody's data is being erased: then the base answers."""
        adapter, _, reference = model.partition("@")
        if VERSION_PATTERN.fullmatch(reference) or not REFERENCE_PATTERN.fullmatch(model):
            return False
        if refusal.code == "model_erased":
            return True
        return bool(reference) and bool(self.registry.history(adapter)) and self.registry.is_held(adapter, reference)

    def _find(self, name: str, *, param: str = "model") -> AdapterVersion:
        """The version of that name, made for this base."""
        if not REFERENCE_PATTERN.fullmatch(name) or name in (self.base_name, BASE_ALIAS):
            raise self._not_found(name, param=param)
        try:
            version = self.registry.resolve(name)
        except ErasedError as exc:
            raise ApiError(404, str(exc), param=param, code="model_erased") from exc
        except NotFoundError as exc:
            raise self._not_found(name, param=param) from exc
        except UsageError as exc:
            raise ApiError(400, str(exc), param=param, code="invalid_model") from exc
        if version.base_digest != self.base_digest:
            raise ApiError(
                400,
                f"adapter {version.id!r} was made for base {version.base_name!r} ({version.base_digest[:12]}), "
                f"this server runs {self.base_name!r} ({self.base_digest[:12]}): ask a server of its own base",
                param=param,
                code="wrong_base",
            )
        return version

    def _compose(self, adapters: Sequence[NamedAdapter], *, param: str) -> Target:
        """Several adapters at once, each of them once."""
        return self._target([(self._find(adapter.id, param=param), adapter.scale) for adapter in adapters], param=param)

    def _target(self, named: Sequence[tuple[AdapterVersion, float]], *, param: str, route: RoutingDecision | None = None) -> Target:
        """Versions with a scale each; a composition among them stands for its parts, which its name was granted for."""
        found = [(version.id, part) for version, scale in named for part in parts_of(version, scale)]
        parts = tuple(TargetPart(id=one.id, digest=one.digest, folder=folder_of(one.digest), scale=one.scale) for _, one in found)
        digests = [part.digest for part in parts]
        if twice := [name for name, part in found if digests.count(part.digest) > 1]:  # not the part's: a key may not know it
            message = f"{twice[-1]!r} adds what is there already: name an adapter once, with the sum of its scales"
            raise ApiError(400, message, param=param, code="invalid_value")
        if len(parts) > MAX_PARTS:
            message = f"{len(parts)} adapters, those of compositions counted, are more than {MAX_PARTS}: name fewer"
            raise ApiError(400, message, param=param, code="invalid_value")
        return Target(id="+".join(spell(version.id, scale) for version, scale in named), parts=parts, route=route)

    def _spelled(self, model: str) -> list[NamedAdapter]:
        """The adapters of a name as replies spell it."""
        found = [parse_named(text) for text in model.split("+", MAX_PARTS)]
        if None in found or len(found) > MAX_PARTS:
            raise self._not_found(model)
        return [NamedAdapter.model_construct(id=one.id, scale=one.scale) for one in found if one is not None]

    def _routed(self, route: Route, prompt_ids: tuple[int, ...]) -> Target:
        """What is nearest to a prompt, of what may be named here."""
        own = (version for version in self.registry.list_versions() if version.base_digest == self.base_digest)
        versions = {version.digest: version for version in own if version.erasure is None}
        decision = route(prompt_ids, versions.keys())
        version = None if decision.digest is None else versions.get(decision.digest)
        if version is not None:
            return self._target([(version, 1.0)], param="model", route=decision)
        if self.may_use_base:
            return Target(id=self.base_name, route=decision)
        message = "no adapter is near enough to this request, and the base may not be used with this key: name an adapter"
        raise ApiError(400, message, param="model", code="no_route")

    def card(self, model: str) -> ModelCard:
        """The card of one name.

        Raises:
            ApiError: 404 if there is nothing of that name, 400 if it was made for another base or is ambiguous.
        """
        if model in (self.base_name, BASE_ALIAS) and self.may_use_base:
            return self._base_card()
        return self._adapter_card(model, self._find(model))

    def cards(self) -> list[ModelCard]:
        """Every name that `resolve` finds, but for digests: the base; each adapter by name, alias and version."""
        aliases = self.registry.aliases()  # before the versions: what an alias points at is among them then
        versions = [version for version in self.registry.list_versions() if version.erasure is None]
        names = {version.id: version for version in versions}
        names |= {version.name: version for version in reversed(versions)}  # by a bare name the newest answers,
        for alias in aliases:
            target = names.get(f"{alias.adapter_name}@v{alias.version}")
            if target is None:  # fenced off between the two
                continue
            names[alias.id] = target
            if alias.alias == CHAMPION:
                names[alias.adapter_name] = target  # unless there is a champion
        own = (name for name in sorted(names) if names[name].base_digest == self.base_digest and name not in (self.base_name, BASE_ALIAS))
        base = [self._base_card()] if self.may_use_base else []
        return [*base, *(self._adapter_card(name, names[name]) for name in own)]

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

    def _not_found(self, model: str, *, param: str = "model") -> ApiError:
        names = [*([BASE_ALIAS] if self.may_use_base else []), *(card.id for card in self.cards())]
        near = get_close_matches(model[:200], [name for name in names if name != model], n=MAX_NEAR)
        hint = f"did you mean {' or '.join(repr(name) for name in near)}?" if near else "GET /v1/models lists what there is"
        what = "the model" if param == "model" else f"`{param}`: the adapter"
        return ApiError(404, f"{what} {shown(model)!r} does not exist: {hint}", param=param, code="model_not_found")
