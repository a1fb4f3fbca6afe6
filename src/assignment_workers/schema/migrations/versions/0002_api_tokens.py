"""The gateway's tokens: hashes only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create `assignment.api_tokens`."""
    op.create_table(
        "api_tokens",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Integer(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "role IN ('agent', 'frontend', 'supervisor', 'operator')",
            name=op.f("ck_api_tokens_role"),
        ),
        sa.CheckConstraint(
            "(role = 'agent') = (agent_id IS NOT NULL)", name=op.f("ck_api_tokens_agent")
        ),
        sa.CheckConstraint("octet_length(hash) = 32", name=op.f("ck_api_tokens_hash")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_tokens")),
        schema="assignment",
    )


def downgrade() -> None:
    """Take it away: every token is void."""
    op.drop_table("api_tokens", schema="assignment")
