"""The tables of the registry and of those who may ask, as queries name them.

They are made by `migrations/versions`, and a test holds the two equal.
"""

from sqlalchemy import (
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
    Index("ix_audit_subject", "subject"),
    sqlite_autoincrement=True,
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
