"""When a request's answer was last given again: then somebody knows of its hold."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add `requests.asked_again_at`: no row is rewritten."""
    op.add_column(
        "requests",
        sa.Column("asked_again_at", sa.DateTime(timezone=True), nullable=True),
        schema="assignment",
    )


def downgrade() -> None:
    """Take it away."""
    op.drop_column("requests", "asked_again_at", schema="assignment")
