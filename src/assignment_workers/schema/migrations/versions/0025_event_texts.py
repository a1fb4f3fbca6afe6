"""Events are append-only, what people typed stands in `event_texts`, and forgotten ids are kept.

Short locks: new events are parted by a trigger from the first statement on, old ones 5,000 at a
time, each batch in a transaction of its own; append-only comes last.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from assignment_workers.schema import online

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

TYPED = "ARRAY['why', 'phone', 'error', 'by']"
"""Details that may hold what somebody typed; `reason` goes with `by` where it was typed."""


def upgrade() -> None:
    """Add the tables and the triggers; move the texts of the events that are there."""
    op.create_table(
        "event_texts",
        sa.Column("event_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("texts", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_event_texts")),
        schema="assignment",
    )
    op.create_index(op.f("ix_event_texts_at"), "event_texts", ["at"], schema="assignment")
    op.create_table(
        "forgotten",
        sa.Column("user_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_forgotten")),
        schema="assignment",
    )
    op.execute(_TEXTS_OF)
    op.execute(_PART)
    op.execute(
        f"CREATE TRIGGER part_texts BEFORE INSERT ON assignment.events FOR EACH ROW"
        f" WHEN (NEW.details ?| {TYPED} AND NEW.kind <> 'renewed')"
        " EXECUTE FUNCTION assignment.part_event_texts()"
    )
    with online.alone():
        op.execute(_MOVE)
    op.execute(_REFUSE)
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON assignment.events"
        " FOR EACH STATEMENT EXECUTE FUNCTION assignment.refuse_event_change()"
    )


def downgrade() -> None:
    """Put the texts back into the events; forgotten ids stay suppressed."""
    op.execute("DROP TRIGGER append_only ON assignment.events")
    op.execute("DROP TRIGGER part_texts ON assignment.events")
    op.execute(
        "UPDATE assignment.events e SET details = e.details || t.texts"
        " FROM assignment.event_texts t WHERE t.event_id = e.id"
    )
    for function in ("refuse_event_change()", "part_event_texts()", "texts_of(text, jsonb)"):
        op.execute(f"DROP FUNCTION assignment.{function}")
    op.drop_table("forgotten", schema="assignment")
    op.drop_table("event_texts", schema="assignment")


_TEXTS_OF = """
CREATE FUNCTION assignment.texts_of(kind text, details jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM jsonb_each(details)
    WHERE value <> 'null' AND (key IN ('why', 'phone', 'error')
        OR key = 'reason' AND kind = 'suppressed' AND details->>'kind' = 'do_not_contact'
        OR key = 'by' AND details->>'by'
            !~ '^(agent [0-9]+|token [0-9a-f]+|uid [0-9]+|[a-z]+([._][a-z]+)*)$')
$$
"""
_PART = """
CREATE FUNCTION assignment.part_event_texts() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE texts jsonb := assignment.texts_of(NEW.kind, NEW.details);
BEGIN
    IF texts <> '{}' THEN
        INSERT INTO assignment.event_texts (event_id, at, texts) VALUES (NEW.id, NEW.at, texts);
        NEW.details := NEW.details - ARRAY(SELECT jsonb_object_keys(texts));
    END IF;
    RETURN NEW;
END $$
"""
_MOVE = f"""
DO $move$
DECLARE reached bigint; newest bigint;
BEGIN
    SELECT min(id) - 1, max(id) INTO reached, newest FROM assignment.events;
    WHILE reached < newest LOOP
        WITH parted AS (
            SELECT id, at, assignment.texts_of(kind, details) AS texts FROM assignment.events
            WHERE id > reached AND id <= reached + {online.BATCH} AND details ?| {TYPED}
        ), kept AS (
            INSERT INTO assignment.event_texts (event_id, at, texts)
            SELECT id, at, texts FROM parted WHERE texts <> '{{}}' ON CONFLICT DO NOTHING
        )
        UPDATE assignment.events e
        SET details = e.details - ARRAY(SELECT jsonb_object_keys(p.texts))
        FROM parted p WHERE p.id = e.id AND p.texts <> '{{}}';
        COMMIT;
        reached := reached + {online.BATCH};
    END LOOP;
END $move$
"""  # noqa: S608
# Where the role of the purge may delete, it alone does; a stack with one role says that it purges.
_REFUSE = """
CREATE FUNCTION assignment.refuse_event_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND (current_user = 'assignment_purge' OR (
        current_setting('assignment.purge', true) = 'on' AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_roles WHERE rolname = 'assignment_purge'
            AND pg_catalog.has_table_privilege(oid, 'assignment.events', 'DELETE')))) THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'assignment.events is append-only: % is refused', TG_OP
        USING ERRCODE = 'insufficient_privilege',
            HINT = 'The purge alone deletes events, after their retention.';
END $$
"""
