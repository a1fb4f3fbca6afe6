"""The facts that a dialer declares beside the columns that every CRM has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnClause, FromClause, MetaData, Table
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.types import TypeEngine

from assignment_workers.policy.loaded import Loaded
from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.crm import CrmUser

ExpressionOfColumn = ColumnClause[Any] | InstrumentedAttribute[Any]


@dataclass(frozen=True, eq=False)
class News:
    """A CRM table whose new rows may give a person a dialer queue, or another one.

    The rows are read in the order of `created_at` and `key`, from where the last run stopped.
    """

    name: str
    """The word under which the progress is stored: small letters, digits and underscores."""
    created_at: ExpressionOfColumn
    """The time at which the row was made; an index on it, with `key`, serves the read."""
    key: ExpressionOfColumn
    """The primary key of the table."""
    person: ExpressionOfColumn
    """The id of the row's person, of this table or of a joined one."""
    joined: FromClause | None = None
    """The table joined with the one that has `person`; None: the table has it itself."""

    @property
    def table(self) -> str:
        """The name of the CRM table."""
        key = self.key.expression if isinstance(self.key, InstrumentedAttribute) else self.key
        return str(getattr(key.table, "name", key.table))


NEWS = Loaded[News]()
"""The tables whose new rows the loaded dialer looks at, by name; `users` is one of every dialer."""

NEW_PERSONS = News("users", CrmUser.created_at, CrmUser.id, CrmUser.id)


def person_column(name: str, type_: TypeEngine[Any]) -> ColumnClause[Any]:
    """Return a further column of the CRM's table `users`, for the rules and the order.

    The CRM has to be the schema `crm` of our own database.
    """
    return ColumnClause(name, type_, _selectable=CrmUser.__table__)


def fact_table(name: str, *columns: Column[Any]) -> Table:
    """Return a table of the CRM whose rows belong to a person; a column has the person's id.

    A rule reads it inside of `exists(…)`, by an index on that column. The CRM has to be the schema
    `crm` of our own database.
    """
    return Table(name, MetaData(schema=CrmBase.metadata.schema), *columns)
