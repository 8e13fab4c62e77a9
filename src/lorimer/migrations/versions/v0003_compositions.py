"""Versions that are several others at once: what they are made of."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; adapters with files of their own have nothing in it."""
    op.add_column("adapter_versions", sa.Column("parts", sa.JSON))
