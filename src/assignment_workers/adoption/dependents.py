"""Report other programs' views, rules and triggers on the queue tables; redirect the views.

A migration renames each queue table of the dialer, and gives the table's name to a view of our
data. The views of other programs are recreated, so that they read our view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import psycopg
from sqlalchemy import Connection, text


def notes(connection: Connection, tables: Sequence[str]) -> Iterator[str]:
    """Yield notes for the operator on the views, rules, triggers and publications of `tables`.

    `tables` are the queue tables, which the migration replaces by views.
    """
    for row in connection.execute(_VIEWS, {"names": list(tables)}):
        what = f"{row.schema}.{row.name}"
        if row.kind == "v" and row.may_change:
            yield f"the view {what} reads {row.table}: it follows to the view of that name"
        elif row.kind == "v":
            yield (
                f"the view {what} reads {row.table} and belongs to {row.owner}: it goes on reading"
                " the old table, which no longer changes, until it is created again"
            )
        else:
            yield (
                f"the materialized view {what} reads {row.table}: it goes on reading the old table,"
                " which no longer changes, until it is created again"
            )
    for row in connection.execute(_HANGING, {"names": list(tables)}):
        yield f"the {row.kind} {row.name} on {row.table} stays there, and no longer fires"
    for row in connection.execute(_PUBLISHED, {"names": list(tables)}):
        yield f"the publication {row.name} has {row.table}: the old table, which no longer changes"


def definitions(connection: Connection, table: str) -> list[tuple[str, str]]:
    """Return the name and the SQL of each view that reads `table` and that we may change.

    Our own views, in the schema `assignment`, and materialized views are left out. The SQL refers
    to the table by name, not by oid. So a view that is recreated from this SQL reads the relation
    that has the name at that time.
    """
    rows = connection.execute(_VIEWS, {"names": [table]})
    return [(f"{row.quoted}", row.definition) for row in rows if row.kind == "v" and row.may_change]


def follow(connection: Connection, found: Sequence[tuple[str, str]]) -> None:
    """Recreate other programs' views of a renamed queue table, so that they read our view.

    The migration has renamed a queue table of the dialer, and has given the table's old name to a
    view of our data. PostgreSQL binds a view to its table, also when the table is renamed. So the
    views of other programs still read the renamed table. Each of these views is recreated from its
    SQL. The SQL contains the old name, so the recreated view reads our view. `found`: the names and
    the SQL of the other programs' views, which `definitions` returned before the renaming. The
    grants and owners of these views are not changed.
    """
    # Psycopg's own cursor, which does not replace the name `public` in the SQL of others.
    plain = psycopg.Cursor(cast("psycopg.Connection[Any]", connection.connection.driver_connection))
    for name, definition in found:
        plain.execute(f"CREATE OR REPLACE VIEW {name} AS {definition}".encode())


_VIEWS = text("""
    SELECT DISTINCT c.relname AS table, n.nspname AS schema, v.relname AS name,
           v.relkind::text AS kind, pg_get_userbyid(v.relowner) AS owner,
           quote_ident(n.nspname) || '.' || quote_ident(v.relname) AS quoted,
           pg_has_role(current_user, v.relowner, 'USAGE')
           AND has_schema_privilege(n.oid, 'CREATE') AS may_change,
           pg_get_viewdef(v.oid) AS definition
    FROM pg_class c
    JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
    AND d.classid = 'pg_rewrite'::regclass
    JOIN pg_rewrite r ON r.oid = d.objid AND r.ev_type = '1' AND r.ev_class <> c.oid
    JOIN pg_class v ON v.oid = r.ev_class
    JOIN pg_namespace n ON n.oid = v.relnamespace
    WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY(:names)
    AND n.nspname <> 'assignment' ORDER BY 2, 3
""")
_HANGING = text("""
    SELECT c.relname AS table, 'trigger' AS kind, t.tgname AS name
    FROM pg_class c JOIN pg_trigger t ON t.tgrelid = c.oid AND NOT t.tgisinternal
    JOIN pg_proc p ON p.oid = t.tgfoid
    AND p.pronamespace IS DISTINCT FROM to_regnamespace('assignment')
    WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY(:names)
    UNION ALL
    SELECT c.relname, 'rule', r.rulename FROM pg_class c JOIN pg_rewrite r ON r.ev_class = c.oid
    AND r.rulename <> '_RETURN'
    WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY(:names) ORDER BY 1, 3
""")
_PUBLISHED = text("""
    SELECT p.pubname AS name, c.relname AS table FROM pg_publication p
    JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY(:names) ORDER BY 1, 2
""")
