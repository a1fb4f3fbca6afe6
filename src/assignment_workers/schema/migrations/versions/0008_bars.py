"""Users and phone numbers that are not to be offered: by an operator, or set aside by the claim."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create `assignment.bars`."""
    op.create_table(
        "bars",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=True),
        sa.Column("phone", sa.Text(), nullable=True),
        sa.Column("phone_end", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("lifted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lifted_by", sa.Text(), nullable=True),
        sa.Column("lifted_why", sa.Text(), nullable=True),
        sa.CheckConstraint("kind IN ('do_not_contact', 'quarantine')", name=op.f("ck_bars_kind")),
        sa.CheckConstraint("(user_id IS NULL) <> (phone IS NULL)", name=op.f("ck_bars_whom")),
        sa.CheckConstraint("(phone IS NULL) = (phone_end IS NULL)", name=op.f("ck_bars_phone_end")),
        sa.CheckConstraint(
            "kind <> 'quarantine' OR phone IS NULL", name=op.f("ck_bars_quarantine")
        ),
        sa.CheckConstraint(
            "(lifted_at IS NULL) = (lifted_by IS NULL) AND"
            " (lifted_at IS NULL) = (lifted_why IS NULL)",
            name=op.f("ck_bars_lifted"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bars")),
        schema="assignment",
    )
    op.create_index(
        "uq_bars_user",
        "bars",
        ["user_id", "kind"],
        unique=True,
        schema="assignment",
        postgresql_where=sa.text("lifted_at IS NULL AND user_id IS NOT NULL"),
    )
    op.create_index(
        "uq_bars_phone",
        "bars",
        ["phone_end"],
        unique=True,
        schema="assignment",
        postgresql_where=sa.text("lifted_at IS NULL AND phone_end IS NOT NULL"),
    )


def downgrade() -> None:
    """Take it away: nobody is barred by it any more."""
    op.drop_table("bars", schema="assignment")
