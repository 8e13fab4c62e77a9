"""What was made of adapters: the versions a merge comes from, and every export."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column, which only merges fill, and the table."""
    op.add_column("adapter_versions", sa.Column("parents", sa.JSON))
    op.create_table(
        "exports",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("adapter_digest", sa.String(64), nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("target", sa.String(16), nullable=False),
        sa.Column("place", sa.Text, nullable=False),
        sa.Column("content_digest", sa.String(64), nullable=False),
        sa.Column("left_platform", sa.Boolean, nullable=False),
        sa.Column("exported_at", sa.String(32), nullable=False),
        sa.Column("exported_by", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_exports_adapter_digest", "exports", ["adapter_digest"])
