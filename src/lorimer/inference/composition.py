"""What answers a request: the base, one adapter, or several with a weight each."""

from dataclasses import dataclass

from lorimer.storage import digest_of

MAX_PARTS, MAX_SCALE = 8, 10.0
"""Of one composition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One adapter of a composition."""

    digest: str
    """Of a resident adapter."""
    scale: float = 1.0
    """What its change is multiplied by, beside its own scale."""


@dataclass(frozen=True, slots=True)
class Composition:
    """The sum of the changes of some adapters; of none, the base. Its digest names the keys and values computed through it."""

    parts: tuple[Part, ...] = ()

    @property
    def digest(self) -> str:
        """An adapter's own digest where it stands alone and whole, empty for the base."""
        if not self.parts:
            return ""
        if len(self.parts) == 1 and self.parts[0].scale == 1.0:
            return self.parts[0].digest
        return digest_of([[part.digest, part.scale] for part in self.parts])

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the adapters in it."""
        return tuple(part.digest for part in self.parts)


BASE = Composition()


def alone(digest: str | None) -> Composition:
    """One adapter, or the base where there is none."""
    return BASE if digest is None else Composition((Part(digest=digest),))
