"""The dialer's queue tables, which a migration renames and replaces by views with the old names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, TextClause, text

from assignment_workers.adoption.shapes import AGENT_COLUMNS, QUEUE_TABLES
from assignment_workers.schema.migrate import OUR_VIEW


@dataclass(frozen=True)
class SourceTable:
    """A queue table of the dialer, with the types of its columns in their order."""

    queue: str
    table: str
    types: dict[str, str]

    @property
    def agent(self) -> str:
        """The SQL expression for a row's agent, in a query that gives the table the alias `q`."""
        return agent_expression(self.types, "q")


def score(alias: str) -> str:
    """Return the SQL expression for a row's score, in a query that gives the table this `alias`.

    A null score, which only an altered column can have, counts as 0, the dialer's default.
    """
    return narrowed(f"coalesce({alias}.priority_score, 0)")


def agent_expression(columns: Iterable[str], alias: str) -> str:
    """Return the SQL expression for a row's agent, in a query that gives the table this `alias`.

    A queue table has one or two columns for the agent. `columns` are all columns of the table.
    """
    names = [f"{alias}.{name}" for name in AGENT_COLUMNS if name in set(columns)]
    return f"coalesce({', '.join(names)})"


def narrowed(number: str) -> str:
    """Return SQL that converts the value of the SQL expression `number` to the type `integer`.

    The dialer's column may have a wider type, such as `bigint`. A value above the range of
    `integer` becomes the greatest integer, and a value below the range the least. `number` must not
    be null, because null would become the greatest integer.
    """
    return f"greatest(least({number}, 2147483647), -2147483648)::integer"


def found_sources(connection: Connection) -> list[SourceTable]:
    """Return the dialer's queue tables that no migration has taken over yet."""
    return _described(connection, _SOURCES)


def shown_sources(connection: Connection) -> list[SourceTable]:
    """Return the dialer's queue tables that a migration has replaced by views."""
    return _described(connection, _VIEWS.bindparams(comment=OUR_VIEW))


def _described(connection: Connection, which: TextClause) -> list[SourceTable]:
    found = connection.execute(which, {"names": list(QUEUE_TABLES.values())})
    types: dict[str, dict[str, str]] = {}
    for row in found:
        types.setdefault(row.name, {})[row.column] = row.type
    return [
        SourceTable(queue, table, types[table])
        for queue, table in QUEUE_TABLES.items()
        if table in types
    ]


_COLUMNS = """
    SELECT c.relname AS name, a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    AND NOT a.attisdropped
    WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY(:names)
"""
_SOURCES = text(f"{_COLUMNS} AND c.relkind IN ('r', 'p') ORDER BY a.attnum")
_VIEWS = text(
    f"{_COLUMNS} AND c.relkind = 'v' AND obj_description(c.oid, 'pg_class') = :comment"
    " ORDER BY a.attnum"
)
