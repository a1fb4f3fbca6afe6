"""Browsers that have signed in to the dashboard."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create `assignment.dashboard_sessions`."""
    op.create_table(
        "dashboard_sessions",
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("token_id", sa.Text(), nullable=True),
        sa.Column("stack", sa.Text(), nullable=True),
        sa.Column("link", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("octet_length(hash) = 32", name=op.f("ck_dashboard_sessions_hash")),
        sa.CheckConstraint(
            "(token_id IS NULL) <> (stack IS NULL)", name=op.f("ck_dashboard_sessions_opened_by")
        ),
        sa.ForeignKeyConstraint(
            ["token_id"],
            ["assignment.api_tokens.id"],
            name=op.f("fk_dashboard_sessions_token_id_api_tokens"),
        ),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_dashboard_sessions")),
        sa.UniqueConstraint("link", name=op.f("uq_dashboard_sessions_link")),
        schema="assignment",
    )


def downgrade() -> None:
    """Take it away: every browser has to sign in again."""
    op.drop_table("dashboard_sessions", schema="assignment")
