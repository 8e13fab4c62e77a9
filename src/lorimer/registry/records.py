"""What the registry keeps: adapter versions, the aliases that point at them, and who did what."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lorimer.evaluation.gates import Verdict
from lorimer.registry.seal import Origin

Action = Literal[
    "register", "import", "record_gate", "compose", "merge", "export", "restore", "seal",
    "promote", "override_gate", "rollback", "request_promotion", "approve", "reject", "protect_alias", "unprotect_alias",
    "request_erasure", "scope_erasure", "approve_erasure", "reject_erasure", "merge_erasures", "quarantine", "erase", "begin_retraining",
    "gate_erasure", "release", "certify_erasure", "replay_tombstones", "hold_subject", "lift_hold",
    "grant_role", "revoke_role", "trust_key", "distrust_key", "create_key", "revoke_key", "limit_tenant",
]  # fmt: skip
"""What can be done; who may do it is in roles.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """An adapter to register: where its files are and where it comes from."""

    name: str
    source: Path
    """A folder with `adapter_model.safetensors` and `adapter_config.json`; it is copied, and no longer needed then."""
    base_name: str
    base_digest: str
    dataset_name: str
    dataset_digest: str
    run_id: str
    rank: int
    """The highest of any layer; as alpha and the number of parameters, what `adapter_config.json` and the weights beside it say."""
    alpha: float
    num_parameters: int
    template_digest: str
    companions: Mapping[str, bytes] = field(default_factory=dict)
    """Files to keep beside those, by name, that are no part of what it is: `fingerprint.json`, what it answered when it was registered."""
    origin: Origin = "registered"
    parents: tuple[str, ...] = ()
    """Of a merge: the digests of the adapters it was made of."""
    recipe_digest: str = ""
    """Of the recipe whose gate it will be held to; empty: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPart:
    """One adapter of a composition."""

    id: str
    """What it was called when the composition was made: `sql@v3`."""
    digest: str
    scale: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """As the database keeps it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterVersion:
    """One registered adapter: its bytes by digest, its lineage, and its newest gate verdict. Or a composition, which is its parts."""

    name: str
    version: int
    digest: str
    base_name: str
    base_digest: str
    dataset_name: str
    dataset_digest: str
    run_id: str
    rank: int
    """As its files have it, and alpha too: not always what the recipe asked for."""
    alpha: float
    num_parameters: int
    num_bytes: int
    path: Path
    """Its files; a composition has none, and names its first part's."""
    template_digest: str
    parts: tuple[VersionPart, ...] = ()
    """Of a composition: the adapters it is the sum of, by digest."""
    parents: tuple[str, ...] = ()
    """Of a merge: the digests of the adapters it was made of."""
    report_digest: str | None
    gate_digest: str | None
    gate_verdict: Verdict | None
    created_at: str
    created_by: str
    erasure: str | None = None
    """Of one that somebody's data was in: the erasure that has fenced it off."""

    @property
    def id(self) -> str:
        """How it is named everywhere: `helpdesk@v3`."""
        return f"{self.name}@v{self.version}"

    def to_json(self) -> dict[str, Any]:
        """The JSON value that `--json` prints."""
        return {"id": self.id, **asdict(self), "path": str(self.path)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A name that moves from version to version, as `champion`."""

    adapter_name: str
    alias: str
    version: int
    moved_at: str
    moved_by: str

    @property
    def id(self) -> str:
        """`helpdesk@champion`"""
        return f"{self.adapter_name}@{self.alias}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One thing that was done; entries are only ever added."""

    id: int
    at: str
    actor: str
    action: Action
    subject: str
    """A version or an alias, as `helpdesk@v3`; of keys, the tenant."""
    reason: str
    details: dict[str, Any]
    """Digests, versions and verdicts; never content."""
    previous: str
    """The digest of the entry before."""
    digest: str
    """SHA-256 over all of the above."""

    def to_json(self) -> dict[str, Any]:
        """The JSON value that `--json` prints."""
        return asdict(self)


AliasAction = Literal["promote", "rollback", "quarantine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMove:
    """One time that an alias was pointed at a version."""

    adapter_name: str
    alias: str
    version: int
    version_before: int | None
    action: AliasAction
    at: str
    actor: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The JSON value that `--json` prints."""
        return asdict(self)


RequestState = Literal["waiting", "approved", "rejected", "expired", "void"]
"""`void`: what was asked for is no longer what would happen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionRequest:
    """A promotion that waits for a second person, or has been decided; bound to these bytes and this gate result."""

    id: str
    adapter_name: str
    alias: str
    version: int
    digest: str
    gate_digest: str | None
    overrides_gate: bool
    reason: str
    requested_at: str
    requested_by: str
    expires_at: str
    state: RequestState
    decided_at: str | None = None
    decided_by: str | None = None
    decision_reason: str | None = None

    @property
    def target(self) -> str:
        """The alias as it is named everywhere: `helpdesk@champion`."""
        return f"{self.adapter_name}@{self.alias}"

    @property
    def version_id(self) -> str:
        """`helpdesk@v3`"""
        return f"{self.adapter_name}@v{self.version}"

    def to_json(self) -> dict[str, Any]:
        """The JSON value that `--json` prints."""
        return {**asdict(self), "adapter": self.version_id}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectedAlias:
    """An alias that moves only with a second person's approval."""

    adapter_name: str
    """Empty: of every adapter."""
    alias: str
    days: int
    """A request waits so long."""
    protected_at: str
    protected_by: str

    @property
    def id(self) -> str:
        """`helpdesk@champion`, or `champion` alone: every adapter's."""
        return f"{self.adapter_name}@{self.alias}" if self.adapter_name else self.alias
