"""The reason of a conversion has the dialer's own name: `conversion_reason`."""

from __future__ import annotations

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rename `conversions.reason` where version 0.1.0 made it; add the column where there is none.

    A table of the dialer's has `conversion_reason` already, and nothing changes.
    """
    op.execute("""
        DO $rename$ BEGIN
            IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'public.conversions'::regclass
                       AND attname = 'conversion_reason' AND NOT attisdropped) THEN
                RETURN;
            ELSIF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'public.conversions'::regclass
                          AND attname = 'reason' AND NOT attisdropped) THEN
                ALTER TABLE public.conversions RENAME COLUMN reason TO conversion_reason;
            ELSE
                ALTER TABLE public.conversions ADD COLUMN conversion_reason text;
            END IF;
        END $rename$
    """)


def downgrade() -> None:
    """Give the column its name in version 0.1.0 again."""
    op.execute("ALTER TABLE public.conversions RENAME COLUMN conversion_reason TO reason")
