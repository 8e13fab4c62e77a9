"""Erasure: the requests and how far they are, what was erased and must not come back, routes that are held meanwhile, legal holds."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the tables."""
    time, name, own_id = sa.String(32), sa.String(63), sa.String(12)
    op.create_table(
        "erasures",
        sa.Column("id", own_id, primary_key=True),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("requested_at", time, nullable=False),
        sa.Column("requested_by", sa.Text, nullable=False),
        sa.Column("due_at", time, nullable=False),
        sa.Column("approved_at", time),
        sa.Column("approved_by", sa.Text),
        sa.Column("finished_at", time),
        sa.Column("document", sa.JSON, nullable=False),
        sa.Column("receipt", sa.JSON),
    )
    op.create_table(
        "tombstones",
        sa.Column("kind", sa.String(12), primary_key=True),
        sa.Column("value", sa.String(64), primary_key=True),
        sa.Column("erasure", own_id, nullable=False),
        sa.Column("buried_at", time, nullable=False),
    )
    op.create_table(
        "held_routes",
        sa.Column("adapter_name", name, primary_key=True),
        sa.Column("alias", name, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("erasure", own_id, nullable=False),
    )
    op.create_table(
        "legal_holds",
        sa.Column("key", sa.CHAR(32), primary_key=True),
        sa.Column("placed_at", time, nullable=False),
        sa.Column("placed_by", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
