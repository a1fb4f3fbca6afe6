"""Tokens that expire, when each was last used, and who came in or was refused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

KINDS = (
    "token_created",
    "token_revoked",
    "signed_in",
    "signed_out",
    "sign_in_failed",
    "unauthenticated",
    "forbidden",
)


def upgrade() -> None:
    """Add two columns to `api_tokens`, and create `assignment.access_log`."""
    for name in ("expires_at", "last_used_at"):
        op.add_column(
            "api_tokens",
            sa.Column(name, sa.DateTime(timezone=True), nullable=True),
            schema="assignment",
        )
    op.create_table(
        "access_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("count", sa.Integer(), server_default="1", nullable=False),
        sa.CheckConstraint(
            f"what IN ({', '.join(repr(each) for each in KINDS)})", name=op.f("ck_access_log_what")
        ),
        sa.CheckConstraint("count > 0", name=op.f("ck_access_log_count")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_log")),
        schema="assignment",
    )
    op.create_index(op.f("ix_access_log_at"), "access_log", ["at"], schema="assignment")


def downgrade() -> None:
    """Take them away: a token that has expired is in force again."""
    op.drop_table("access_log", schema="assignment")
    for name in ("last_used_at", "expires_at"):
        op.drop_column("api_tokens", name, schema="assignment")
