"""The facts that a dialer declares: its persons, and the tables that belong to a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnClause,
    FromClause,
    Integer,
    MetaData,
    String,
    Table,
    Uuid,
    true,
)
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql import ClauseElement, visitors
from sqlalchemy.types import TypeEngine

from assignment_workers.policy.loaded import Loaded
from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.crm import CrmUser

ExpressionOfColumn = ColumnClause[Any] | InstrumentedAttribute[Any]


class PersonId(BigInteger):
    """The type of a fact table's column that has a person's id.

    A rule compares it with `Person.id`. Where the CRM's ids are no integers, both are our numbers.
    """


@dataclass(frozen=True, eq=False)
class Persons:
    """The CRM's table of persons: its name, the type of its ids, and the CRM's names of columns."""

    of: str = CrmUser.__tablename__
    """The CRM's name of the table, with its schema unless that is `crm`."""
    id_type: TypeEngine[Any] = field(default_factory=BigInteger)
    """The type of a person's id: an integer, `Uuid()` or `Text()`.

    For an id that is no integer a number of ours is stored; every interface takes and shows the
    CRM's id.
    """
    names: Mapping[str, str] = field(default_factory=dict)
    """The CRM's names of columns, by our name, such as `{"phone_number": "mobile"}`."""

    @property
    def numbered(self) -> str | None:
        """The kind of id for which numbers of ours are stored, `uuid` or `text`; None: integers."""
        if isinstance(self.id_type, Uuid):
            return "uuid"
        return "text" if isinstance(self.id_type, String) else None

    @property
    def is_usable(self) -> bool:
        """True if the type of the ids is one that can be read."""
        return self.numbered is not None or isinstance(self.id_type, Integer)


NEEDED = ("id", "phone_number", "created_at")
"""The columns of persons that every dialer reads."""
_OF, _NAMES = "of", "names"


@dataclass(frozen=True, eq=False)
class FactSource:
    """A table of the CRM as a dialer reads it."""

    name: str
    """The name by which rules know the table."""
    of: str
    """The CRM's name of the table, with its schema unless that is `crm`."""
    columns: Mapping[str, str]
    """The CRM's name of each column that is read, by ours."""
    person_columns: frozenset[str]
    """The columns, by our names, that have a person's id."""


def sources(persons: Persons, read: Iterable[object], further: Iterable[str]) -> list[FactSource]:
    """Return the CRM's tables that these expressions read, the persons first.

    `further`: columns of persons that are read beside those of the expressions.
    """
    columns: dict[str, None] = dict.fromkeys((*NEEDED, *further))
    tables: dict[str, Table] = {}
    for table, column in crm_columns(read):
        if table.name == CrmUser.__tablename__:
            columns[column] = None
        else:
            tables[table.name] = table
    named = {name: persons.names.get(name, name) for name in columns}
    found = [FactSource(CrmUser.__tablename__, persons.of, named, frozenset({"id"}))]
    for name, table in sorted(tables.items()):
        names = table.info.get(_NAMES, {})
        found.append(
            FactSource(
                name,
                table.info.get(_OF, name),
                {each.name: names.get(each.name, each.name) for each in table.columns},
                frozenset(each.name for each in table.columns if isinstance(each.type, PersonId)),
            )
        )
    return found


def crm_columns(read: Iterable[object]) -> list[tuple[Table, str]]:
    """Return the CRM's tables and columns that these expressions read, within subqueries too."""
    return [
        (each.table, each.name)
        for one in read
        for each in visitors.iterate(_expression(one))
        if isinstance(each, ColumnClause)
        and isinstance(each.table, Table)
        and each.table.schema == CrmBase.metadata.schema
    ]


def _expression(given: object) -> ClauseElement:
    found = given.expression if isinstance(given, InstrumentedAttribute) else given
    return found if isinstance(found, ClauseElement) else true()


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
    """Return a further column of the CRM's table of persons, for the rules and the order.

    The CRM's name of the column is in the dialer's `Persons`, if it is another one. The CRM has to
    be in our own database.
    """
    return ColumnClause(name, type_, _selectable=CrmUser.__table__)


def fact_table(
    name: str, *columns: Column[Any], of: str | None = None, names: Mapping[str, str] | None = None
) -> Table:
    """Return a table of the CRM whose rows belong to a person; a `PersonId` column has their id.

    A rule reads it inside of `exists(…)`, by an index on that column. `of`: the CRM's name of the
    table, with its schema unless that is `crm`; `names`: the CRM's names of columns, by ours. The
    CRM has to be in our own database.
    """
    info = {_OF: of or name, _NAMES: dict(names or {})}
    return Table(name, MetaData(schema=CrmBase.metadata.schema), *columns, info=info)
