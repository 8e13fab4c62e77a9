"""What a caller may ask for and how much of it, and how that is put into words. Who holds which, `keys.py` knows."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from lorimer.registry.registry import NAME_PATTERN

ALL_ADAPTERS = "*"
ADAPTER_PATTERN = re.compile(rf"{NAME_PATTERN}(@v[1-9][0-9]{{0,8}})?")
MAX_QUOTA = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a tenant may take, by all its keys together; None is without limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and answers."""
    concurrency: int | None = None
    """Requests at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one key may ask for."""

    adapters: tuple[str, ...] = (ALL_ADAPTERS,)
    """Names (`helpdesk`: every version of it), versions (`sql@v3`), or `*`."""
    may_use_base: bool = True
    is_admin: bool = False
    """May load and unload adapters and read the metrics, beside asking."""
    max_context: int | None = None
    """Tokens of prompt and answer together; by default what the base takes."""
    max_body_bytes: int | None = None

    def allows(self, name: str, version: int) -> bool:
        """Whether an adapter's version may be used."""
        return not {ALL_ADAPTERS, name, f"{name}@v{version}"}.isdisjoint(self.adapters)

    @property
    def allows_all(self) -> bool:
        """Whether everything that is served may be used, as it is."""
        return ALL_ADAPTERS in self.adapters and self.may_use_base and self.max_context is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks. Where no keys are in force everybody is the same nameless caller."""

    tenant: str = ""
    key_prefix: str = ""
    grant: Grant = field(default_factory=Grant)
    quota: Quota = field(default_factory=Quota)


def describe_quota(quota: Quota) -> str:
    """`60 requests/min, 20,000 tokens/min, 4 at once`"""
    units = {"requests_per_minute": "requests/min", "tokens_per_minute": "tokens/min", "concurrency": "at once"}
    return ", ".join(f"{value:,} {units[name]}" for name, value in asdict(quota).items() if value is not None) or "no limits"


def check_grant(grant: Grant) -> Iterator[str]:
    """What is wrong with a grant, a sentence each."""
    if not grant.adapters and not grant.may_use_base and not grant.is_admin:
        yield "the key may use nothing: name adapters, '*' for all, or allow the base"
    for adapter in grant.adapters:
        if adapter == "base":
            yield "'base' is not an adapter: `--base` allows the base"
        elif adapter != ALL_ADAPTERS and not ADAPTER_PATTERN.fullmatch(adapter):
            yield f"{adapter!r} does not name adapters: give a name ('helpdesk'), a version ('sql@v3'), or '*' for all"
    for name, value in (("max_context", grant.max_context), ("max_body_bytes", grant.max_body_bytes)):
        if value is not None and not 1 <= value <= MAX_QUOTA:
            yield f"{name} is {value}: give 1 to {MAX_QUOTA}"


def check_quota(quota: Quota) -> list[str]:
    """What is wrong with a quota, a sentence each."""
    given = {name: value for name, value in asdict(quota).items() if value is not None}
    return [f"{name} is {value}: give 1 to {MAX_QUOTA}" for name, value in given.items() if not 1 <= value <= MAX_QUOTA]
