"""Suites: which adapters each version of a suite has judged."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "suite_attempts",
        sa.Column("suite_digest", sa.String(64), primary_key=True),
        sa.Column("adapter_digest", sa.String(64), primary_key=True),
        sa.Column("suite", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("attempted_at", sa.String(32), nullable=False),
        sa.Column("attempted_by", sa.Text, nullable=False),
    )
