"""A term has a random id beside its number, and its signs of life stand in a table of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two columns to `sequencer`, a row a lane, and the table: it takes a moment.

    The columns that release 0.1 leaves its signs in stay, and a standby goes by the later sign.
    """
    op.add_column(
        "sequencer",
        sa.Column(
            "term_id",
            sa.Uuid(),
            server_default="00000000-0000-0000-0000-000000000000",
            nullable=False,
        ),
        schema="assignment",
    )
    op.add_column(
        "sequencer",
        sa.Column("marks", sa.ARRAY(sa.Text()), server_default="{}", nullable=False),
        schema="assignment",
    )
    op.create_table(
        "sequencer_signs",
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("last_turn_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_probe_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_probe_seconds", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("lane", name=op.f("pk_sequencer_signs")),
        schema="assignment",
    )


def downgrade() -> None:
    """Take them away."""
    op.drop_table("sequencer_signs", schema="assignment")
    op.drop_column("sequencer", "marks", schema="assignment")
    op.drop_column("sequencer", "term_id", schema="assignment")
