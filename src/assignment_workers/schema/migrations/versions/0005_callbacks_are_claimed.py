"""Callbacks are handed out: one pending for a user, found by the time that was promised."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add `assignments.source_id`, `callbacks.available_from` and the indexes of pending callbacks.

    Of several callbacks that are pending for one user the one promised last stays, as the user said
    it last; the others become cancelled. No row goes.
    """
    op.execute("ALTER TABLE assignment.assignments ADD COLUMN source_id uuid")
    op.execute(
        "ALTER TABLE assignment.assignments ADD CONSTRAINT ck_assignments_source_id"
        " CHECK ((source = 'queue') = (source_id IS NULL))"
    )
    op.execute("ALTER TABLE public.callbacks ADD COLUMN IF NOT EXISTS available_from timestamp(3)")
    op.execute(
        """
        UPDATE public.callbacks c SET status = 'cancelled', updated_at = timezone('UTC', now())
        WHERE c.status = 'pending' AND EXISTS (
            SELECT 1 FROM public.callbacks o
            WHERE o.user_id = c.user_id AND o.status = 'pending'
                AND (o.created_at, o.id) > (c.created_at, c.id)
        )
        """
    )
    op.execute(
        "CREATE UNIQUE INDEX IF NOT EXISTS uq_callbacks_pending_user ON public.callbacks (user_id)"
        " WHERE status = 'pending'"
    )
    op.execute(
        "CREATE INDEX IF NOT EXISTS ix_callbacks_pending"
        " ON public.callbacks (scheduled_for, user_id) WHERE status = 'pending'"
    )


def downgrade() -> None:
    """Take them away; what was cancelled stays so."""
    op.execute("DROP INDEX public.ix_callbacks_pending")
    op.execute("DROP INDEX public.uq_callbacks_pending_user")
    op.execute("ALTER TABLE public.callbacks DROP COLUMN available_from")
    op.execute("ALTER TABLE assignment.assignments DROP COLUMN source_id")
