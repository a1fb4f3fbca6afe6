"""A user's stay in a dialer queue ends in one conversion at most."""

from __future__ import annotations

from alembic import op

from assignment_workers.schema import online

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add `conversions.episode` and its unique index. Rows that are there have none, and stay."""
    with online.alone():
        op.execute("ALTER TABLE public.conversions ADD COLUMN IF NOT EXISTS episode integer")
        online.index(
            "uq_conversions_episode",
            "conversions",
            "user_id, previous_queue_type, episode",
            unique=True,
        )


def downgrade() -> None:
    """Take them away."""
    op.execute("DROP INDEX public.uq_conversions_episode")
    op.execute("ALTER TABLE public.conversions DROP COLUMN episode")
