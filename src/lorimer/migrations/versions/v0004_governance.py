"""Who may decide, what was signed, which version an alias named when; and the audit table as a chain, over the entries there are too."""

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

REFUSE = "BEGIN SELECT RAISE(ABORT, 'the audit table is append-only'); END"
ZERO = "0" * 64
FIELDS = ("id", "at", "actor", "action", "subject", "reason", "details", "previous")

audit = sa.table("audit", *(sa.column(name) for name in FIELDS if name != "details"), sa.column("details", sa.JSON), sa.column("digest"))
heads = sa.table("audit_heads", *(sa.column(name) for name in ("id", "sequence", "digest", "key_id", "signature")))
history = sa.table(
    "alias_history",
    *(sa.column(name) for name in ("adapter_name", "alias", "version", "version_before", "action", "at", "actor", "reason")),
)


def upgrade() -> None:
    """Make the tables, and chain what was recorded before."""
    _make_tables()
    op.add_column("audit", sa.Column("previous", sa.String(64), nullable=False, server_default=sa.text("''")))
    op.add_column("audit", sa.Column("digest", sa.String(64), nullable=False, server_default=sa.text("''")))
    if not op.get_context().as_sql:
        _with_open_table(_chain_entries)
        _keep_history()


def _make_tables() -> None:
    digest, time, name = sa.String(64), sa.String(32), sa.String(63)
    op.create_table(
        "audit_heads",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("digest", digest, nullable=False),
        sa.Column("key_id", digest, nullable=False),
        sa.Column("signature", sa.Text, nullable=False),
    )
    op.create_table(
        "trusted_keys",
        sa.Column("key_id", digest, primary_key=True),
        sa.Column("public_key", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("added_at", time, nullable=False),
        sa.Column("added_by", sa.Text, nullable=False),
        sa.Column("removed_at", time),
    )
    op.create_table(
        "seals",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("adapter_digest", digest, nullable=False),
        sa.Column("manifest_digest", digest, nullable=False),
        sa.Column("key_id", digest, nullable=False),
        sa.Column("origin", sa.String(32), nullable=False),
        sa.Column("sealed_at", time, nullable=False),
        sa.Column("sealed_by", sa.Text, nullable=False),
        sa.UniqueConstraint("adapter_digest", "manifest_digest", "key_id", name="uq_seals_manifest"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "roles",
        sa.Column("actor", sa.String(200), primary_key=True),
        sa.Column("role", sa.String(12), nullable=False),
        sa.Column("granted_at", time, nullable=False),
        sa.Column("granted_by", sa.Text, nullable=False),
    )
    op.create_table(
        "protected_aliases",
        sa.Column("adapter_name", name, primary_key=True),
        sa.Column("alias", name, primary_key=True),
        sa.Column("days", sa.Integer, nullable=False),
        sa.Column("protected_at", time, nullable=False),
        sa.Column("protected_by", sa.Text, nullable=False),
    )
    op.create_table(
        "promotion_requests",
        sa.Column("id", sa.String(12), primary_key=True),
        sa.Column("adapter_name", name, nullable=False),
        sa.Column("alias", name, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("digest", digest, nullable=False),
        sa.Column("gate_digest", digest),
        sa.Column("overrides_gate", sa.Boolean, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("requested_at", time, nullable=False),
        sa.Column("requested_by", sa.Text, nullable=False),
        sa.Column("expires_at", time, nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("decided_at", time),
        sa.Column("decided_by", sa.Text),
        sa.Column("decision_reason", sa.Text),
        sa.ForeignKeyConstraint(
            ["adapter_name", "version"],
            ["adapter_versions.name", "adapter_versions.version"],
            name="fk_promotion_requests_adapter_versions",
        ),
    )
    op.create_table(
        "alias_history",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("adapter_name", name, nullable=False),
        sa.Column("alias", name, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("version_before", sa.Integer),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("at", time, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_alias_history_alias", "alias_history", ["adapter_name", "alias"])
    op.create_table(
        "subjects",
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("key", sa.CHAR(32), nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.UniqueConstraint("key", name="uq_subjects_key"),
    )


def _with_open_table(change: Any) -> None:
    """Do what the triggers on the audit table refuse."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE audit DISABLE TRIGGER audit_append_only")
        change()
        op.execute("ALTER TABLE audit ENABLE TRIGGER audit_append_only")
    else:
        op.execute("DROP TRIGGER audit_no_update")
        change()
        op.execute(f"CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit {REFUSE}")


def _chain_entries() -> None:
    """Give each entry the digest of the one before and its own, and remember the last; nobody has signed that yet."""
    bind, previous, last = op.get_bind(), ZERO, None
    for row in bind.execute(sa.select(audit).order_by(audit.c.id)).mappings().all():
        entry = {**{name: row[name] for name in FIELDS}, "previous": previous}
        text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        bind.execute(sa.update(audit).where(audit.c.id == row["id"]).values(previous=previous, digest=digest))
        previous, last = digest, row["id"]
    if last is not None:
        bind.execute(sa.insert(heads).values(id=1, sequence=last, digest=previous, key_id="", signature=""))


def _keep_history() -> None:
    """Where aliases pointed before, as the audit table has it."""
    bind = op.get_bind()
    for row in bind.execute(sa.select(audit).where(audit.c.action == "promote").order_by(audit.c.id)).mappings().all():
        name, _, alias = row["subject"].partition("@")
        versions = {key: row["details"].get(key) for key in ("version", "version_before")}
        kept = {key: row[key] for key in ("action", "at", "actor", "reason")}
        bind.execute(sa.insert(history).values(adapter_name=name, alias=alias, **versions, **kept))
