"""Whoever listens is told when events were committed."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Notify `assignment_events` once for each transaction that leaves events."""
    # Once, because the same words on the same channel are sent once a transaction. A trigger,
    # because then no writer can forget it.
    op.execute(
        """
        CREATE FUNCTION assignment.announce_events() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_catalog.pg_notify('assignment_events', '');
            RETURN NULL;
        END
        $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER announce AFTER INSERT ON assignment.events
            FOR EACH STATEMENT EXECUTE FUNCTION assignment.announce_events()
        """
    )


def downgrade() -> None:
    """Tell nobody."""
    op.execute("DROP TRIGGER announce ON assignment.events")
    op.execute("DROP FUNCTION assignment.announce_events()")
