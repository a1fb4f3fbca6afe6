"""Operational settings are data: a table of versions, and the version by which each lane judges."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None

Instant = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the table, empty: the first sequencer that leads stores its environment's values."""
    op.create_table(
        "settings",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("changes", JSONB(), nullable=False),
        sa.Column("values", JSONB(), nullable=False),
        sa.CheckConstraint("version >= 1", name=op.f("ck_settings_version")),
        sa.CheckConstraint("length(why) BETWEEN 1 AND 500", name=op.f("ck_settings_why")),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_settings")),
        sa.UniqueConstraint("id", name=op.f("uq_settings_id")),
        schema="assignment",
    )
    op.add_column("sequencer", sa.Column("settings_id", sa.Uuid()), schema="assignment")
    op.add_column(
        "generations", sa.Column("settings_version", sa.BigInteger()), schema="assignment"
    )


def downgrade() -> None:
    """Drop them: the environment counts again."""
    op.drop_column("generations", "settings_version", schema="assignment")
    op.drop_column("sequencer", "settings_id", schema="assignment")
    op.drop_table("settings", schema="assignment")
