"""What operators do by HTTP and by command is kept too; there a reason may be left out."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let `assignment.operator_actions.why` be null. No row is read."""
    op.execute("ALTER TABLE assignment.operator_actions ALTER COLUMN why DROP NOT NULL")


def downgrade() -> None:
    """Ask for a reason again; what was done without one says so."""
    op.execute("UPDATE assignment.operator_actions SET why = 'not given' WHERE why IS NULL")
    op.execute("ALTER TABLE assignment.operator_actions ALTER COLUMN why SET NOT NULL")
