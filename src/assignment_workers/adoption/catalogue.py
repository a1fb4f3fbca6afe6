"""The dialer's tables in PostgreSQL's catalogue, and the revision of our schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from assignment_workers.adoption.shapes import (
    DEPLOYED,
    OTHERS,
    Column,
    Shape,
)
from assignment_workers.schema.dialer import Agent
from assignment_workers.schema.migrate import FIRST_TABLE, VERSION_TABLE

Found = Mapping[str, Any]
"""A table or view in PostgreSQL's catalogue, with the keys `kind`, `comment`, `shape`, `readable`.

`kind` is the letter in `pg_class.relkind`. `shape` is the `Shape` with the columns, constraints and
indexes. `readable` is True if the role of the connection has the right to read the table or view.
"""


def relations_of(connection: Connection) -> dict[str, dict[str, Any]]:
    """Read the dialer's tables and views in `public` from PostgreSQL's catalogue, by name.

    Each value is a mapping with the keys that the type `Found` describes, such as `kind` (table or
    view) and `shape` (the structure).
    """
    names = [*DEPLOYED, *(table.name for table in Agent.metadata.sorted_tables), *OTHERS]
    found: dict[str, dict[str, Any]] = {}
    for row in connection.execute(_RELATIONS, {"names": names}):
        found[row.name] = {
            "kind": row.kind,
            "comment": row.comment,
            "readable": row.readable,
            "columns": {},
            "unique": set(),
            "foreign_keys": set(),
            "indexes": set(),
        }
    for row in connection.execute(_COLUMNS, {"names": names}):
        found[row.name]["columns"][row.column] = Column(
            row.type, null=not row.required, default=plain_default(row.default)
        )
    for row in connection.execute(_INDEXES, {"names": names}):
        if row.is_primary:
            continue
        found[row.name]["unique" if row.is_unique else "indexes"].add(tuple(row.columns))
    for row in connection.execute(_KEYS, {"names": names}):
        found[row.name]["foreign_keys"].update((column, row.target) for column in row.columns)
    for each in found.values():
        each["shape"] = Shape(
            each["columns"],
            frozenset(each["unique"]),
            frozenset(each["foreign_keys"]),
            frozenset(each["indexes"]),
        )
    return found


def plain_default(expression: str | None) -> str | None:
    """Normalise the SQL of a column default: no casts; `now()` in place of CURRENT_TIMESTAMP."""
    if expression is None:
        return None
    plain = re.sub(r"::[a-z ]+(\(\d+\))?(\[\])?", "", expression)
    return "now()" if plain.upper().startswith("CURRENT_TIMESTAMP") else plain


def revision_of(connection: Connection) -> str | None:
    """Return the revision of the schema `assignment`.

    None if there is no such schema, or if the role has no right to read the revision.
    """
    for table in connection.execute(_REVISIONS, {"tables": [VERSION_TABLE, FIRST_TABLE]}).scalars():
        return str(
            connection.execute(text(f"SELECT version_num FROM assignment.{table}")).scalar_one()
        )
    return None


_OF_INTEREST = (
    "c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'public') "
    "AND c.relname = ANY(:names)"
)


_RELATIONS = text(f"""
    SELECT c.relname AS name, c.relkind::text AS kind,
           obj_description(c.oid, 'pg_class') AS comment,
           has_schema_privilege(c.relnamespace, 'USAGE')
           AND has_table_privilege(c.oid, 'SELECT') AS readable
    FROM pg_class c WHERE {_OF_INTEREST} AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
""")


_COLUMNS = text(f"""
    SELECT c.relname AS name, a.attname AS column, a.attnotnull AS required,
           format_type(a.atttypid, a.atttypmod) AS type, pg_get_expr(d.adbin, d.adrelid) AS default
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    AND NOT a.attisdropped LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE {_OF_INTEREST} AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
""")


_INDEXES = text(f"""
    SELECT c.relname AS name, i.indisunique AS is_unique, i.indisprimary AS is_primary,
           ARRAY(SELECT coalesce(a.attname::text, '(expression)')
                 FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS key(number, place)
                 LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = key.number
                 ORDER BY place) AS columns
    FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid
    WHERE {_OF_INTEREST} AND i.indisvalid AND (i.indpred IS NULL OR NOT i.indisunique)
""")


_KEYS = text(f"""
    SELECT c.relname AS name, t.relname AS target,
           ARRAY(SELECT a.attname::text FROM pg_attribute a
                 WHERE a.attrelid = c.oid AND a.attnum = ANY(k.conkey)) AS columns
    FROM pg_class c JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'f'
    JOIN pg_class t ON t.oid = k.confrelid WHERE {_OF_INTEREST}
""")


_REVISIONS = text("""
    SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'assignment' AND c.relname = ANY(:tables)
    AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
    ORDER BY array_position(:tables, c.relname::text)
""")
