"""The tables of the registry, of those who decide in it and of those who may ask, as queries name them.

They are made by `migrations/versions`, and a test holds the two equal.
"""

from sqlalchemy import (
    CHAR,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()
DIGEST = String(64)  # SHA-256, hex
TIME = String(32)  # UTC, ISO 8601: sorts as it reads, on every database
NAME = String(63)

adapter_versions = Table(
    "adapter_versions",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", DIGEST, nullable=False),
    Column("base_name", Text, nullable=False),
    Column("base_digest", DIGEST, nullable=False),
    Column("dataset_name", Text, nullable=False),
    Column("dataset_digest", DIGEST, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("alpha", Float, nullable=False),
    Column("num_parameters", BigInteger, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("path", Text, nullable=False),  # below the home folder, which may move
    Column("template_digest", DIGEST, nullable=False),
    Column("parts", JSON(none_as_null=True)),  # of a composition: the adapters it is the sum of; null for those with files of their own
    Column("parents", JSON(none_as_null=True)),  # of a merge: the digests of the adapters it was made of
    Column("created_at", TIME, nullable=False),
    Column("created_by", Text, nullable=False),
    UniqueConstraint("name", "digest", name="uq_adapter_versions_name_digest"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("adapter_name", NAME, primary_key=True),
    Column("alias", NAME, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("moved_at", TIME, nullable=False),
    Column("moved_by", Text, nullable=False),
    ForeignKeyConstraint(
        ["adapter_name", "version"], ["adapter_versions.name", "adapter_versions.version"], name="fk_aliases_adapter_versions"
    ),
)

gate_results = Table(
    "gate_results",
    metadata,
    Column("id", Integer, primary_key=True),  # the highest of an adapter on its base is the newest
    Column("digest", DIGEST, nullable=False),
    Column("adapter_digest", DIGEST, nullable=False),
    Column("base_digest", DIGEST, nullable=False),
    Column("report_digest", DIGEST, nullable=False),
    Column("verdict", String(12), nullable=False),
    Column("document", JSON, nullable=False),
    Column("recorded_at", TIME, nullable=False),
    UniqueConstraint("digest", name="uq_gate_results_digest"),
    Index("ix_gate_results_adapter_digest", "adapter_digest"),
    sqlite_autoincrement=True,
)

exports = Table(
    "exports",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter_digest", DIGEST, nullable=False),
    Column("adapter", Text, nullable=False),  # what it was called: `helpdesk@v3`
    Column("target", String(16), nullable=False),
    Column("place", Text, nullable=False),
    Column("content_digest", DIGEST, nullable=False),
    Column("left_platform", Boolean, nullable=False),
    Column("exported_at", TIME, nullable=False),
    Column("exported_by", Text, nullable=False),
    Index("ix_exports_adapter_digest", "adapter_digest"),
    sqlite_autoincrement=True,
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", TIME, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", String(32), nullable=False),
    Column("subject", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("details", JSON, nullable=False),
    Column("previous", DIGEST, nullable=False, server_default=text("''")),  # the digest of the entry before
    Column("digest", DIGEST, nullable=False, server_default=text("''")),  # of all of the entry, `previous` too
    Index("ix_audit_subject", "subject"),
    sqlite_autoincrement=True,
)

audit_heads = Table(
    "audit_heads",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1: there is one
    Column("sequence", Integer, nullable=False),  # the newest entry's id
    Column("digest", DIGEST, nullable=False),
    Column("key_id", DIGEST, nullable=False),  # empty, as the signature, where an upgrade has computed the chain
    Column("signature", Text, nullable=False),
)

trusted_keys = Table(
    "trusted_keys",
    metadata,
    Column("key_id", DIGEST, primary_key=True),  # SHA-256 of the public key
    Column("public_key", Text, nullable=False),  # 32 bytes, base64
    Column("name", Text, nullable=False),
    Column("added_at", TIME, nullable=False),
    Column("added_by", Text, nullable=False),
    Column("removed_at", TIME),
)

seals = Table(
    "seals",
    metadata,
    Column("id", Integer, primary_key=True),  # the highest of an adapter is the newest
    Column("adapter_digest", DIGEST, nullable=False),
    Column("manifest_digest", DIGEST, nullable=False),  # of the signed statement: which files, with which SHA-256
    Column("key_id", DIGEST, nullable=False),
    Column("origin", String(32), nullable=False),
    Column("sealed_at", TIME, nullable=False),
    Column("sealed_by", Text, nullable=False),
    UniqueConstraint("adapter_digest", "manifest_digest", "key_id", name="uq_seals_manifest"),
    sqlite_autoincrement=True,
)

roles = Table(
    "roles",
    metadata,
    Column("actor", String(200), primary_key=True),
    Column("role", String(12), nullable=False),
    Column("granted_at", TIME, nullable=False),
    Column("granted_by", Text, nullable=False),
)

protected_aliases = Table(
    "protected_aliases",
    metadata,
    Column("adapter_name", NAME, primary_key=True),  # empty: of every adapter
    Column("alias", NAME, primary_key=True),
    Column("days", Integer, nullable=False),  # a request waits so long
    Column("protected_at", TIME, nullable=False),
    Column("protected_by", Text, nullable=False),
)

promotion_requests = Table(
    "promotion_requests",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("adapter_name", NAME, nullable=False),
    Column("alias", NAME, nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", DIGEST, nullable=False),  # what is asked for is these bytes,
    Column("gate_digest", String(64)),  # past this gate result; null where there was none, which only an override passes
    Column("overrides_gate", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("requested_at", TIME, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("expires_at", TIME, nullable=False),
    Column("state", String(12), nullable=False),
    Column("decided_at", TIME),
    Column("decided_by", Text),
    Column("decision_reason", Text),
    ForeignKeyConstraint(
        ["adapter_name", "version"], ["adapter_versions.name", "adapter_versions.version"], name="fk_promotion_requests_adapter_versions"
    ),
)

alias_history = Table(
    "alias_history",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter_name", NAME, nullable=False),
    Column("alias", NAME, nullable=False),
    Column("version", Integer, nullable=False),
    Column("version_before", Integer),
    Column("action", String(32), nullable=False),
    Column("at", TIME, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Index("ix_alias_history_alias", "adapter_name", "alias"),
    sqlite_autoincrement=True,
)

subjects = Table(
    "subjects",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("key", CHAR(32), nullable=False),  # random: what rows carry in the person's stead; destroyed with the row
    Column("created_at", TIME, nullable=False),
    UniqueConstraint("key", name="uq_subjects_key"),
)

erasures = Table(
    "erasures",
    metadata,
    Column("id", String(12), primary_key=True),  # random: the audit chain names it, and nothing else of the person
    Column("state", String(12), nullable=False),
    Column("requested_at", TIME, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("due_at", TIME, nullable=False),
    Column("approved_at", TIME),
    Column("approved_by", Text),
    Column("finished_at", TIME),
    Column("document", JSON, nullable=False),  # keys, digests and counts; never content, nor the subject's own id
    Column("receipt", JSON(none_as_null=True)),  # a signed envelope
)

tombstones = Table(
    "tombstones",
    metadata,
    Column("kind", String(12), primary_key=True),  # `subject` (its key, which leads to nobody any more), `dataset`, `adapter`
    Column("value", DIGEST, primary_key=True),
    Column("erasure", String(12), nullable=False),
    Column("buried_at", TIME, nullable=False),
)

held_routes = Table(
    "held_routes",
    metadata,
    Column("adapter_name", NAME, primary_key=True),
    Column("alias", NAME, primary_key=True),
    Column("version", Integer, nullable=False),  # what it pointed at
    Column("erasure", String(12), nullable=False),
)

legal_holds = Table(
    "legal_holds",
    metadata,
    Column("key", CHAR(32), primary_key=True),  # of the subject
    Column("placed_at", TIME, nullable=False),
    Column("placed_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("requests_per_minute", Integer),  # null: without limit, as in the two below
    Column("tokens_per_minute", BigInteger),
    Column("concurrency", Integer),
    Column("created_at", TIME, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("prefix", String(12), primary_key=True),  # public: it names the key
    Column("digest", DIGEST, nullable=False),  # of the whole key, which is kept nowhere
    Column("name", NAME, nullable=False),
    Column("tenant", NAME, nullable=False),
    Column("adapters", JSON, nullable=False),
    Column("may_use_base", Boolean, nullable=False),
    Column("is_admin", Boolean, nullable=False),
    Column("max_context", Integer),  # tokens; null: what the base takes
    Column("max_body_bytes", Integer),
    Column("created_at", TIME, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at", TIME),
    Column("revoked_at", TIME),
    Column("last_used_at", TIME),  # to about a minute
    ForeignKeyConstraint(["tenant"], ["tenants.name"], name="fk_api_keys_tenants"),
)

suite_attempts = Table(
    "suite_attempts",
    metadata,
    Column("suite_digest", DIGEST, primary_key=True),  # of a suite with all its items
    Column("adapter_digest", DIGEST, primary_key=True),
    Column("suite", Text, nullable=False),  # what it was called: `safety@v3`
    Column("number", Integer, nullable=False),  # from 1, in the order they came
    Column("attempted_at", TIME, nullable=False),
    Column("attempted_by", Text, nullable=False),
)
