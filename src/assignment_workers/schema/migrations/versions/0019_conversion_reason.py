"""The reason of a conversion has the dialer's own name: `conversion_reason`."""

from __future__ import annotations

from alembic import op

from assignment_workers.schema import online

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add `conversion_reason` beside the `reason` of version 0.1.0, which goes on writing that one.

    A trigger gives each of the two the other's value, until 0.3.0. In a new database the column is
    renamed. A table of the dialer's has `conversion_reason` already, and nothing changes.
    """
    op.execute(_ADD)
    with online.alone():
        op.execute(_FILL)


def downgrade() -> None:
    """Leave `reason` alone, or give the column its name in version 0.1.0 again."""
    op.execute("""
        DO $rename$ BEGIN
            DROP TRIGGER IF EXISTS both_reasons ON public.conversions;
            DROP FUNCTION IF EXISTS assignment.both_conversion_reasons();
            IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'public.conversions'::regclass
                       AND attname = 'reason' AND NOT attisdropped) THEN
                ALTER TABLE public.conversions DROP COLUMN conversion_reason;
            ELSE
                ALTER TABLE public.conversions RENAME COLUMN conversion_reason TO reason;
            END IF;
        END $rename$
    """)


_ADD = """
DO $add$ BEGIN
    IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'public.conversions'::regclass
               AND attname = 'conversion_reason' AND NOT attisdropped) THEN
        RETURN;
    ELSIF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'public.conversions'::regclass
                      AND attname = 'reason' AND NOT attisdropped) THEN
        ALTER TABLE public.conversions ADD COLUMN conversion_reason text;
    ELSIF to_regclass('assignment.alembic_version') IS NULL THEN
        ALTER TABLE public.conversions RENAME COLUMN reason TO conversion_reason;
    ELSE
        ALTER TABLE public.conversions ADD COLUMN conversion_reason text;
        CREATE FUNCTION assignment.both_conversion_reasons() RETURNS trigger LANGUAGE plpgsql
        SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $both$ BEGIN
            IF TG_OP = 'INSERT' THEN
                NEW.conversion_reason := coalesce(NEW.conversion_reason, NEW.reason);
                NEW.reason := NEW.conversion_reason;
            ELSIF NEW.reason IS NOT DISTINCT FROM OLD.reason THEN
                NEW.reason := NEW.conversion_reason;
            ELSE
                NEW.conversion_reason := NEW.reason;
            END IF;
            RETURN NEW;
        END $both$;
        CREATE TRIGGER both_reasons BEFORE INSERT OR UPDATE ON public.conversions
        FOR EACH ROW EXECUTE FUNCTION assignment.both_conversion_reasons();
    END IF;
END $add$
"""
_FILL = f"""
DO $fill$
DECLARE filled integer := 1;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'both_reasons'
                   AND tgrelid = 'public.conversions'::regclass) THEN
        RETURN;
    END IF;
    WHILE filled > 0 LOOP
        UPDATE public.conversions SET conversion_reason = reason WHERE id IN (
            SELECT id FROM public.conversions
            WHERE conversion_reason IS NULL AND reason IS NOT NULL LIMIT {online.BATCH});
        GET DIAGNOSTICS filled = ROW_COUNT;
        COMMIT;
    END LOOP;
END $fill$
"""  # noqa: S608
