"""A lane's row says which dialer queues it has, and which its latest terms were."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add `queues` and `terms` to `sequencer`: a row a lane, so it takes a moment."""
    op.add_column(
        "sequencer", sa.Column("queues", sa.ARRAY(sa.Text()), nullable=True), schema="assignment"
    )
    op.add_column(
        "sequencer",
        sa.Column("terms", sa.ARRAY(sa.BigInteger()), server_default="{}", nullable=False),
        schema="assignment",
    )
    op.execute(
        "UPDATE assignment.sequencer SET terms = ARRAY("
        "SELECT n FROM generate_series(term, greatest(term - 20, 1), -1) AS n)"
    )


def downgrade() -> None:
    """Take them away, and every lane but the default one."""
    op.execute("DELETE FROM assignment.sequencer WHERE lane <> 'default'")
    op.drop_column("sequencer", "terms", schema="assignment")
    op.drop_column("sequencer", "queues", schema="assignment")
