"""A dead letter can be dismissed, says whether it can be sent again, and never becomes two."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

TABLE = "dead_letters"


def upgrade() -> None:
    """Add the columns; each with a constant default, so no row is written."""
    op.add_column(
        TABLE,
        sa.Column("replayable", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        schema="assignment",
    )
    op.add_column(
        TABLE,
        sa.Column("attempts", sa.Integer(), server_default=sa.text("1"), nullable=False),
        schema="assignment",
    )
    op.add_column(
        TABLE,
        sa.Column("dismissed_at", sa.DateTime(timezone=True), nullable=True),
        schema="assignment",
    )
    for name in ("dismissed_by", "dismissed_why"):
        op.add_column(TABLE, sa.Column(name, sa.Text(), nullable=True), schema="assignment")
    op.execute(
        "UPDATE assignment.dead_letters SET replayable = false"
        " WHERE task IS NULL OR error LIKE 'refused: %'"
    )


def downgrade() -> None:
    """Take them away; who dismissed what stays in the operators' records."""
    for name in ("dismissed_why", "dismissed_by", "dismissed_at", "attempts", "replayable"):
        op.drop_column(TABLE, name, schema="assignment")
