"""Events are chained by digests, lane by lane, with an anchor where the purge has cut.

Short locks: two new tables. What was written before is chained by the job, a part at a time.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the tables; batches are append-only as events are."""
    op.create_table(
        "audit_batches",
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("first", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("ids", sa.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("digests", sa.LargeBinary(), nullable=False),
        sa.Column("upto", sa.BigInteger(), nullable=False),
        sa.Column("newest", INSTANT, nullable=False),
        sa.Column("made_at", INSTANT, nullable=False),
        sa.CheckConstraint(
            "cardinality(ids) = last - first + 1"
            " AND octet_length(digests) = 32 * (last - first + 1)",
            name=op.f("ck_audit_batches_digests"),
        ),
        sa.PrimaryKeyConstraint("lane", "first", name=op.f("pk_audit_batches")),
        schema="assignment",
    )
    # Digests do not compress, and the last of a batch is read alone.
    op.execute("ALTER TABLE assignment.audit_batches ALTER COLUMN digests SET STORAGE EXTERNAL")
    op.create_index(op.f("ix_audit_batches_upto"), "audit_batches", ["upto"], schema="assignment")
    op.create_table(
        "audit_anchors",
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("purged_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("lane", name=op.f("pk_audit_anchors")),
        schema="assignment",
    )
    op.execute(_refuse("assignment.%", ", TG_TABLE_NAME"))
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE"
        " ON assignment.audit_batches"
        " FOR EACH STATEMENT EXECUTE FUNCTION assignment.refuse_event_change()"
    )


def downgrade() -> None:
    """Take them away: what was exported can still be checked by itself."""
    op.drop_table("audit_anchors", schema="assignment")
    op.drop_table("audit_batches", schema="assignment")
    op.execute(_refuse("assignment.events", ""))


def _refuse(table: str, argument: str) -> str:
    return f"""
CREATE OR REPLACE FUNCTION assignment.refuse_event_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND (current_user = 'assignment_purge' OR (
        current_setting('assignment.purge', true) = 'on' AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_roles WHERE rolname = 'assignment_purge'
            AND pg_catalog.has_table_privilege(oid, 'assignment.events', 'DELETE')))) THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION '{table} is append-only: % is refused'{argument}, TG_OP
        USING ERRCODE = 'insufficient_privilege',
            HINT = 'The purge alone deletes events, after their retention.';
END $$
"""
