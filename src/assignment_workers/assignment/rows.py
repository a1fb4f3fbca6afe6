"""Rows of a SQL query as dictionaries, by the names of their columns."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

Row = dict[str, Any]


def rows_of(connection: Connection, query: str, **given: object) -> list[Row]:
    """Run a SQL query with the parameters `given`; return its rows as dictionaries, in order."""
    return [dict(row) for row in connection.execute(text(query), given).mappings()]
