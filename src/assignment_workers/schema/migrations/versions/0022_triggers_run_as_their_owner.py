"""The triggers on the dialer's tables run as their owner, whoever writes to the tables."""

from __future__ import annotations

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

FUNCTIONS = ("one_promise", "one_follow_up")


def upgrade() -> None:
    """Set both functions to run as their owner, with a fixed search path.

    The dialer's own role has no rights in the schema `assignment`.
    """
    for name in FUNCTIONS:
        op.execute(
            f"ALTER FUNCTION assignment.{name}() SECURITY DEFINER"
            " SET search_path = pg_catalog, pg_temp"
        )


def downgrade() -> None:
    """Let them run as the role that writes."""
    for name in FUNCTIONS:
        op.execute(f"ALTER FUNCTION assignment.{name}() SECURITY INVOKER RESET search_path")
