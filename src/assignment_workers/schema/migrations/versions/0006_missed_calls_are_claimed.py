"""Missed calls are handed out: found by when they were missed, one follow-up for each call."""

from __future__ import annotations

from alembic import op

from assignment_workers.schema import online

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add `missed_calls.available_from` and the indexes of pending missed calls.

    Of several pending rows of one inbound call, which retried webhooks left, the first stays; the
    others become cancelled. No row goes. A trigger keeps to the same rule from before that on, so
    that no webhook fails.
    """
    with online.alone():
        op.execute(
            "ALTER TABLE public.missed_calls ADD COLUMN IF NOT EXISTS available_from timestamp(3)"
        )
        op.execute(_ONE_FOLLOW_UP)
        op.execute(
            "CREATE OR REPLACE TRIGGER one_follow_up"
            " BEFORE INSERT OR UPDATE OF status, twilio_call_sid"
            " ON public.missed_calls FOR EACH ROW"
            " WHEN (NEW.status = 'pending' AND NEW.twilio_call_sid IS NOT NULL)"
            " EXECUTE FUNCTION assignment.one_follow_up()"
        )
        online.cancel("missed_calls", _TOLD_TWICE)
        pending = "status = 'pending'"
        online.index(
            "uq_missed_calls_pending_call",
            "missed_calls",
            "twilio_call_sid",
            unique=True,
            where=pending,
        )
        online.index("ix_missed_calls_pending", "missed_calls", "missed_at, id", where=pending)
        online.index("ix_missed_calls_pending_user", "missed_calls", "user_id", where=pending)
        online.index("ix_missed_calls_twilio_call_sid", "missed_calls", "twilio_call_sid")


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


_TOLD_TWICE = """
    SELECT id FROM (
        SELECT id, row_number() OVER (PARTITION BY twilio_call_sid ORDER BY created_at, id) AS n
        FROM public.missed_calls WHERE status = 'pending' AND twilio_call_sid IS NOT NULL
    ) AS told WHERE n > 1
"""

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
