"""Named compositions: a version whose change is the sum of other versions' changes, each with a scale. No weights are copied.

Parts are pinned by digest when the composition is made: what its parts' names stand for later makes no difference. A composition of
compositions is written down as the adapters that they come to.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lorimer.errors import UsageError
from lorimer.inference.composition import MAX_PARTS, MAX_SCALE, Composition, Part
from lorimer.registry.audit import now
from lorimer.registry.records import AdapterVersion, VersionPart
from lorimer.registry.registry import Registry, check_name

SPELLED_PATTERN = re.compile(r"(?P<id>[^*+]+)(\*(?P<scale>-?[0-9]{1,2}(\.[0-9]{1,12})?(e-[0-9]{2})?))?")
"""One adapter and its scale: `sql@v3*0.7`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """An adapter by any of its names, and what its change is multiplied by."""

    id: str
    scale: float = 1.0


def parse_named(text: str) -> Named | None:
    """`sql@v3*0.7`, read; None if it is not of that form, or its scale is out of range."""
    found = SPELLED_PATTERN.fullmatch(text)
    if found is None or abs(float(found["scale"] or 1)) > MAX_SCALE:
        return None
    return Named(id=found["id"], scale=float(found["scale"] or 1))


def spell(name: str, scale: float) -> str:
    """`sql@v3*0.7`, written."""
    return name if scale == 1 else f"{name}*{scale:.12g}"


def parts_of(version: AdapterVersion, scale: float = 1.0) -> tuple[VersionPart, ...]:
    """What a version comes to at a scale: itself, or what it is composed of."""
    own = version.parts or (VersionPart(id=version.id, digest=version.digest),)
    return tuple(VersionPart(id=part.id, digest=part.digest, scale=part.scale * scale) for part in own)


def composition_of(version: AdapterVersion) -> Composition:
    """What answers for a version: its adapter alone, or its parts together."""
    return Composition(tuple(Part(digest=part.digest, scale=part.scale) for part in parts_of(version)))


def compose_shards(
    registry: Registry, name: str, shards: Sequence[AdapterVersion], *, dataset_name: str, dataset_digest: str, actor: str | None = None
) -> AdapterVersion:
    """Make the next version of `name` of all shards of a dataset: their mean. It says which dataset's test rows it is judged by.

    Each has learned the task from its share of the rows, so their changes are alike and do not add up to more of it; why the mean and
    no other scale is measured in docs/sharding.md.

    Raises:
        As `compose`.
    """
    named = [spell(shard.id, 1 / len(shards)) for shard in shards]
    return compose(registry, name, named, dataset_name=dataset_name, dataset_digest=dataset_digest, actor=actor)


def compose(
    registry: Registry, name: str, named: Sequence[str], *, dataset_name: str = "", dataset_digest: str = "", actor: str | None = None
) -> AdapterVersion:
    """Make the next version of `name` of adapters spelled `sql@v3*0.7`. The same parts under the same name are one version.

    Raises:
        NotFoundError: if there is no adapter of one of the names.
        UsageError: if they do not go together; every reason is given.
    """
    check_name(name)
    wanted = [(text, parse_named(text)) for text in named]
    if unread := [text for text, one in wanted if one is None]:
        raise UsageError(f"{unread[0]!r} is not an adapter with a scale: write 'sql@v3' or 'sql@v3*0.7', scales from -10 to 10")
    versions = [(registry.resolve(one.id), one.scale) for _, one in wanted if one is not None]
    parts = tuple(sorted((part for version, scale in versions for part in parts_of(version, scale)), key=lambda part: part.digest))
    adapters = {part.digest: registry.find_digest(part.digest) for part in parts}
    if problems := list(dict.fromkeys(_problems(parts, adapters))):
        raise UsageError(f"{name!r} cannot be composed: {'; '.join(problems)}")
    first = adapters[parts[0].digest]
    draft = AdapterVersion(
        name=name,
        version=0,
        digest=Composition(tuple(Part(digest=part.digest, scale=part.scale) for part in parts)).digest,
        base_name=first.base_name,
        base_digest=first.base_digest,
        dataset_name=dataset_name,
        dataset_digest=dataset_digest,
        run_id="",
        rank=sum(adapter.rank for adapter in adapters.values()),
        alpha=0.0,
        num_parameters=sum(adapter.num_parameters for adapter in adapters.values()),
        num_bytes=0,
        path=first.path,
        template_digest=first.template_digest,
        parts=parts,
        report_digest=None,
        gate_digest=None,
        gate_verdict=None,
        created_at=now(),
        created_by="",
    )
    details = {"digest": draft.digest, "base_digest": draft.base_digest, "parts": [part.to_json() for part in parts]}
    return registry.keep(draft, action="compose", details=details, actor=actor)


def _problems(parts: Sequence[VersionPart], adapters: Mapping[str, AdapterVersion]) -> Iterator[str]:
    """Why they do not go together, a sentence each."""
    digests = [part.digest for part in parts]
    if len(parts) > MAX_PARTS:
        yield f"it has {len(parts)} parts, at most {MAX_PARTS} answer together"
    if len(parts) == 1 and parts[0].scale == 1:
        yield f"{parts[0].id!r} alone is itself: name several adapters, or give it a scale"
    for part in parts:
        if abs(part.scale) > MAX_SCALE:
            yield f"{spell(part.id, part.scale)!r} is beyond the largest scale, {MAX_SCALE:g}"
        if digests.count(part.digest) > 1:
            yield f"{part.id!r} is in it twice: name it once, with the sum of its scales"
        if is_dora(adapters[part.digest]):
            yield f"{part.id!r} is a DoRA adapter, which answers alone and whole: its magnitudes do not add to another's change"
    for what, values in (
        ("bases", {adapter.base_digest: adapter for adapter in adapters.values()}),
        ("chat templates", {adapter.template_digest: adapter for adapter in adapters.values()}),
    ):
        if len(values) > 1:
            yield f"parts were made for different {what}: " + ", ".join(f"{a.id} for {key[:12]}" for key, a in values.items())


def is_dora(version: AdapterVersion) -> bool:
    """Whether an adapter's files say that it is DoRA's."""
    try:
        return bool(json.loads((version.path / "adapter_config.json").read_text(encoding="utf-8")).get("use_dora"))
    except (OSError, ValueError, AttributeError) as exc:
        raise UsageError(f"the files of {version.id} cannot be read ({type(exc).__name__}): restore them before it is composed") from exc
