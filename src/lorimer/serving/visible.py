"""What is served, as one caller sees it: what a key may not use is not there. Hence nothing can name it, not even a refusal's hint."""

import copy

from lorimer.registry.records import AdapterVersion, Alias
from lorimer.registry.registry import Registry
from lorimer.serving.grants import Grant
from lorimer.serving.resolve import Models


class VisibleRegistry(Registry):
    """A registry without the versions that a grant does not allow, and without the aliases that point at them."""

    def __init__(self, registry: Registry, grant: Grant) -> None:
        super().__init__(registry.engine)
        self.grant = grant

    def list_versions(self) -> tuple[AdapterVersion, ...]:
        """See `Registry`."""
        return tuple(version for version in super().list_versions() if self.grant.allows(version.name, version.version))

    def history(self, name: str) -> tuple[AdapterVersion, ...]:
        """See `Registry`."""
        return tuple(version for version in super().history(name) if self.grant.allows(version.name, version.version))

    def aliases(self, name: str | None = None) -> tuple[Alias, ...]:
        """See `Registry`."""
        return tuple(alias for alias in super().aliases(name) if self.grant.allows(alias.adapter_name, alias.version))


def models_for(models: Models, grant: Grant) -> Models:
    """The part of `models` that a grant allows."""
    if grant.allows_all:
        return models
    seen = copy.copy(models)
    seen.registry, seen.may_use_base = VisibleRegistry(models.registry, grant), grant.may_use_base
    seen.max_len = min(models.max_len, grant.max_context or models.max_len)
    return seen
