"""The dialer by which a lane was last led: a digest of each part of its file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, null: the next leader of each lane fills it."""
    op.add_column("sequencer", sa.Column("dialer", JSONB()), schema="assignment")


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("sequencer", "dialer", schema="assignment")
