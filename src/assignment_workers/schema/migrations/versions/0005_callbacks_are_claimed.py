"""Callbacks are handed out: one pending for a user, found by the time that was promised."""

from __future__ import annotations

from alembic import op

from assignment_workers.schema import online

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add `assignments.source_id`, `callbacks.available_from` and the indexes of pending callbacks.

    Of several callbacks that are pending for one user the one promised last stays, as the user said
    it last; the others become cancelled. No row goes. A trigger keeps to the same rule from before
    that on, so a dialer that promises a second time goes on doing so, and no write of its fails.
    """
    op.execute("ALTER TABLE assignment.assignments ADD COLUMN IF NOT EXISTS source_id uuid")
    op.execute(
        "ALTER TABLE assignment.assignments DROP CONSTRAINT IF EXISTS ck_assignments_source_id,"
        " ADD CONSTRAINT ck_assignments_source_id"
        " CHECK ((source = 'queue') = (source_id IS NULL))"
    )
    with online.alone():
        op.execute(
            "ALTER TABLE public.callbacks ADD COLUMN IF NOT EXISTS available_from timestamp(3)"
        )
        op.execute(_ONE_PROMISE)
        op.execute(
            "CREATE OR REPLACE TRIGGER one_promise BEFORE INSERT OR UPDATE OF status, user_id"
            " ON public.callbacks FOR EACH ROW WHEN (NEW.status = 'pending')"
            " EXECUTE FUNCTION assignment.one_promise()"
        )
        online.cancel("callbacks", _SUPERSEDED)
        online.index(
            "uq_callbacks_pending_user",
            "callbacks",
            "user_id",
            unique=True,
            where="status = 'pending'",
        )
        online.index(
            "ix_callbacks_pending",
            "callbacks",
            "scheduled_for, user_id",
            where="status = 'pending'",
        )


def downgrade() -> None:
    """Take them away; what was cancelled stays so."""
    op.execute("DROP TRIGGER one_promise ON public.callbacks")
    op.execute("DROP FUNCTION assignment.one_promise()")
    op.execute("DROP INDEX public.ix_callbacks_pending")
    op.execute("DROP INDEX public.uq_callbacks_pending_user")
    op.execute("ALTER TABLE public.callbacks DROP COLUMN available_from")
    op.execute("ALTER TABLE assignment.assignments DROP COLUMN source_id")


_SUPERSEDED = """
    SELECT id FROM (
        SELECT id, row_number() OVER (PARTITION BY user_id ORDER BY created_at DESC, id DESC) AS n
        FROM public.callbacks WHERE status = 'pending'
    ) AS promised WHERE n > 1
"""

# The lock lets two who promise the same user at once in after each other.
_ONE_PROMISE = """
CREATE OR REPLACE FUNCTION assignment.one_promise() RETURNS trigger LANGUAGE plpgsql AS $promise$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.status = 'pending' AND OLD.user_id = NEW.user_id THEN
        RETURN NEW;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('callback ' || NEW.user_id, 0));
    IF TG_OP = 'UPDATE' AND EXISTS (
        SELECT FROM public.callbacks WHERE user_id = NEW.user_id AND status = 'pending'
        AND id <> NEW.id AND (created_at, id) > (NEW.created_at, NEW.id)) THEN
        NEW.status := 'cancelled';
        RETURN NEW;
    END IF;
    WITH cancelled AS (
        UPDATE public.callbacks SET status = 'cancelled', updated_at = timezone('UTC', now())
        WHERE user_id = NEW.user_id AND status = 'pending' AND id <> NEW.id
        RETURNING id, user_id, queue_type)
    INSERT INTO assignment.events (at, kind, queue, user_id, details)
    SELECT clock_timestamp(), 'callback_superseded', queue_type, user_id,
           jsonb_build_object('callback_id', id)
    FROM cancelled;
    RETURN NEW;
END $promise$
"""
