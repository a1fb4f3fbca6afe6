"""Messages whose taking may have ended a process, while they are tried again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create `assignment.suspect_messages`."""
    op.create_table(
        "suspect_messages",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("celery_queue", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends", sa.Integer(), nullable=False),
        sa.Column("part", sa.Integer(), nullable=True),
        sa.Column(
            "parts", postgresql.ARRAY(sa.Integer()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column("buried", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_suspect_messages")),
        schema="assignment",
    )
    op.create_index(op.f("ix_suspect_messages_at"), "suspect_messages", ["at"], schema="assignment")


def downgrade() -> None:
    """Take it away: messages are counted no more."""
    op.drop_table("suspect_messages", schema="assignment")
