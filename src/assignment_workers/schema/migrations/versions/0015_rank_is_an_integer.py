"""The rank of an entry is an integer, so that the old reader's view shows it as it is stored."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

# A column that a view shows keeps its type: the views of the old reader go, and come again in the
# same transaction with their comment, their triggers, their owner and whoever may use them.
SET_ASIDE = """
    CREATE TEMPORARY TABLE set_aside ON COMMIT DROP AS
    SELECT c.oid::regclass::text AS name, pg_get_viewdef(c.oid) AS query, c.relacl AS may,
           pg_get_userbyid(c.relowner) AS owner, obj_description(c.oid, 'pg_class') AS comment,
           ARRAY(SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t
                 WHERE t.tgrelid = c.oid AND NOT t.tgisinternal) AS triggers
    FROM pg_class c WHERE c.relkind = 'v'
    AND obj_description(c.oid, 'pg_class') = 'assignment-workers: a view for the old reader'
"""
DROP = """
    DO $drop$ DECLARE each record; BEGIN
        FOR each IN SELECT * FROM set_aside LOOP
            EXECUTE format('DROP VIEW %s', each.name);
        END LOOP;
    END $drop$
"""
MAKE_AGAIN = """
    DO $make$ DECLARE each record; made text; given record; BEGIN
        FOR each IN SELECT * FROM set_aside LOOP
            EXECUTE format('CREATE VIEW %s AS %s', each.name, each.query);
            EXECUTE format('COMMENT ON VIEW %s IS %L', each.name, each.comment);
            EXECUTE format('ALTER VIEW %s OWNER TO %I', each.name, each.owner);
            FOREACH made IN ARRAY each.triggers LOOP EXECUTE made; END LOOP;
            FOR given IN SELECT * FROM aclexplode(each.may) LOOP
                EXECUTE format('GRANT %s ON %s TO %s', given.privilege_type, each.name,
                    CASE given.grantee WHEN 0 THEN 'PUBLIC'
                    ELSE quote_ident(pg_get_userbyid(given.grantee)) END);
            END LOOP;
        END LOOP;
        DROP TABLE set_aside;
    END $make$
"""
# One that is being filled is no partition yet, and could not become one with the other type.
UNATTACHED = """
    DO $unattached$ DECLARE each regclass; BEGIN
        FOR each IN SELECT c.oid FROM pg_class c
            WHERE c.relnamespace = 'assignment'::regnamespace AND c.relkind = 'r'
            AND c.relname ~ '^entries_[0-9]+$' AND NOT c.relispartition
        LOOP
            EXECUTE format('ALTER TABLE %s ALTER COLUMN rank TYPE integer', each);
        END LOOP;
    END $unattached$
"""


def upgrade() -> None:
    """Write the entries of every generation anew: some seconds for a million, and claims wait."""
    for sql in (SET_ASIDE, DROP):
        op.execute(sql)
    op.alter_column("entries", "rank", type_=sa.Integer(), schema="assignment")
    for sql in (UNATTACHED, MAKE_AGAIN):
        op.execute(sql)


def downgrade() -> None:
    """Leave them: the version before reads and writes an integer as well."""
