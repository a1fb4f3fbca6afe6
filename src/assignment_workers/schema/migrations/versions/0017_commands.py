"""The inbox of commands: the answer of each message that is no request, and their order."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and its sequence: nothing that is there is locked."""
    op.execute(sa.schema.CreateSequence(sa.Sequence("command_positions", schema="assignment")))
    op.create_table(
        "commands",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("answer", JSONB(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("length(id) BETWEEN 1 AND 200", name=op.f("ck_commands_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commands")),
        schema="assignment",
    )
    op.create_index(
        "ix_commands_order",
        "commands",
        ["subject", "position"],
        schema="assignment",
        postgresql_where=sa.text("subject IS NOT NULL"),
    )
    op.create_index(
        op.f("ix_commands_answered_at"), "commands", ["answered_at"], schema="assignment"
    )


def downgrade() -> None:
    """Drop both."""
    op.drop_table("commands", schema="assignment")
    op.execute(sa.schema.DropSequence(sa.Sequence("command_positions", schema="assignment")))
