"""Missed calls are handed out: found by when they were missed, one follow-up for each call."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add `missed_calls.available_from` and the indexes of pending missed calls.

    Of several pending rows of one inbound call, which retried webhooks left, the first stays; the
    others become cancelled. No row goes.
    """
    op.execute(
        "ALTER TABLE public.missed_calls ADD COLUMN IF NOT EXISTS available_from timestamp(3)"
    )
    op.execute(
        """
        UPDATE public.missed_calls m SET status = 'cancelled', updated_at = timezone('UTC', now())
        WHERE m.status = 'pending' AND EXISTS (
            SELECT 1 FROM public.missed_calls o
            WHERE o.twilio_call_sid = m.twilio_call_sid AND o.status = 'pending'
                AND (o.created_at, o.id) < (m.created_at, m.id)
        )
        """
    )
    op.execute(
        "CREATE UNIQUE INDEX IF NOT EXISTS uq_missed_calls_pending_call"
        " ON public.missed_calls (twilio_call_sid) WHERE status = 'pending'"
    )
    op.execute(
        "CREATE INDEX IF NOT EXISTS ix_missed_calls_pending"
        " ON public.missed_calls (missed_at, id) WHERE status = 'pending'"
    )
    op.execute(
        "CREATE INDEX IF NOT EXISTS ix_missed_calls_pending_user"
        " ON public.missed_calls (user_id) WHERE status = 'pending'"
    )
    op.execute(
        "CREATE INDEX IF NOT EXISTS ix_missed_calls_twilio_call_sid"
        " ON public.missed_calls (twilio_call_sid)"
    )


def downgrade() -> None:
    """Take them away; what was cancelled stays so."""
    for name in (
        "ix_missed_calls_twilio_call_sid",
        "ix_missed_calls_pending_user",
        "ix_missed_calls_pending",
        "uq_missed_calls_pending_call",
    ):
        op.execute(f"DROP INDEX public.{name}")
    op.execute("ALTER TABLE public.missed_calls DROP COLUMN available_from")
