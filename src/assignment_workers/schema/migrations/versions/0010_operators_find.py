"""Who is marked held, and who is quarantined, is found by an index on those alone.

Building the first reads each generation that is kept once, a second or so for ten million entries,
and claims wait for that.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create `ix_entries_held`, in each generation, and `ix_bars_quarantined`."""
    op.create_index(
        "ix_entries_held",
        "entries",
        ["generation_id", "user_id"],
        schema="assignment",
        postgresql_where=sa.text("state = 'held'"),
    )
    op.create_index(
        "ix_bars_quarantined",
        "bars",
        ["since"],
        schema="assignment",
        postgresql_where=sa.text("kind = 'quarantine' AND lifted_at IS NULL"),
    )


def downgrade() -> None:
    """Take them away: the doctor reads every entry."""
    op.drop_index("ix_bars_quarantined", table_name="bars", schema="assignment")
    op.drop_index("ix_entries_held", table_name="entries", schema="assignment")
