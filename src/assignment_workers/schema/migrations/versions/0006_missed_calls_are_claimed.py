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
    others become cancelled. No row goes. A trigger keeps to the same rule from then on, so that no
    webhook fails.
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
    op.execute(_ONE_FOLLOW_UP)
    op.execute(
        "CREATE OR REPLACE TRIGGER one_follow_up BEFORE INSERT OR UPDATE OF status, twilio_call_sid"
        " ON public.missed_calls FOR EACH ROW"
        " WHEN (NEW.status = 'pending' AND NEW.twilio_call_sid IS NOT NULL)"
        " EXECUTE FUNCTION assignment.one_follow_up()"
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
    op.execute("DROP TRIGGER one_follow_up ON public.missed_calls")
    op.execute("DROP FUNCTION assignment.one_follow_up()")
    for name in (
        "ix_missed_calls_twilio_call_sid",
        "ix_missed_calls_pending_user",
        "ix_missed_calls_pending",
        "uq_missed_calls_pending_call",
    ):
        op.execute(f"DROP INDEX public.{name}")
    op.execute("ALTER TABLE public.missed_calls DROP COLUMN available_from")


# The lock lets two webhooks of the same call in after each other.
_ONE_FOLLOW_UP = """
CREATE OR REPLACE FUNCTION assignment.one_follow_up() RETURNS trigger LANGUAGE plpgsql AS $follow$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('missed call ' || NEW.twilio_call_sid, 0));
    IF EXISTS (SELECT FROM public.missed_calls WHERE twilio_call_sid = NEW.twilio_call_sid
               AND status = 'pending' AND id <> NEW.id) THEN
        NEW.status := 'cancelled';
    END IF;
    RETURN NEW;
END $follow$
"""
