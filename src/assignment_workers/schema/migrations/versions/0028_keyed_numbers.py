"""A forgotten number is suppressed by its keyed hash: users' numbers have theirs beside them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; it is filled as numbers are read, where a key is set."""
    op.add_column(
        "phones",
        sa.Column("keyed", sa.ARRAY(sa.Text()), server_default="{}", nullable=False),
        schema="assignment",
    )


def downgrade() -> None:
    """Take it away. Forgotten numbers cannot be told from their hashes: their entries match nobody.

    Their users stay suppressed by id.
    """
    op.drop_column("phones", "keyed", schema="assignment")
