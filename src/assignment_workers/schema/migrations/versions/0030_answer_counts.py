"""Answers as callers get them, counted by hour and minute."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None

KINDS = (
    *("assigned", "empty", "paused", "ruled", "too_late", "unavailable", "left", "failed"),
    *("mistake", "dropped"),
)


def upgrade() -> None:
    """Create `assignment.answer_counts`."""
    op.create_table(
        "answer_counts",
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("by_minute", ARRAY(sa.Integer()), nullable=False),
        sa.CheckConstraint(
            f"kind IN ({', '.join(repr(each) for each in KINDS)})",
            name=op.f("ck_answer_counts_kind"),
        ),
        sa.CheckConstraint("cardinality(by_minute) = 60", name=op.f("ck_answer_counts_minutes")),
        sa.PrimaryKeyConstraint("hour", "kind", name=op.f("pk_answer_counts")),
        schema="assignment",
    )


def downgrade() -> None:
    """Drop it: the success rate is of the answered requests alone again."""
    op.drop_table("answer_counts", schema="assignment")
