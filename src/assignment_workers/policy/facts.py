"""Declarations of the CRM's tables that a dialer reads: the persons, and tables about persons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnClause,
    Date,
    Double,
    FromClause,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    Uuid,
    true,
)
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql import ClauseElement, visitors
from sqlalchemy.types import TypeEngine

from assignment_workers.schema.base import CrmBase, Instant, NaiveInstant
from assignment_workers.schema.crm import CrmUser, PersonId

ExpressionOfColumn = ColumnClause[Any] | InstrumentedAttribute[Any]


@dataclass(frozen=True, eq=False)
class Persons:
    """The CRM's table of persons: its name, the type of its ids, and the names of its columns."""

    of: str = CrmUser.__tablename__
    """The name of the table in the CRM, with its schema unless that is the default.

    The default schema is `crm` in our own database, and the connection's schema in another
    database.
    """
    id_type: TypeEngine[Any] = field(default_factory=BigInteger)
    """The type of a person's id in the CRM: an integer, `Uuid()` or `Text()`.

    If it is no integer, this project assigns an integer to each id and stores that integer in its
    tables. Every interface still accepts and shows the CRM's id.
    """
    names: Mapping[str, str] = field(default_factory=dict)
    """Maps the dialer's name for a column to the CRM's, such as `{"phone_number": "mobile"}`.

    A column that is left out has the same name in both.
    """

    @property
    def numbered(self) -> str | None:
        """The type of the CRM's ids of persons, `uuid` or `text`; None if they are integers.

        Our tables need integer ids. If the CRM's ids are no integers, this project assigns an
        integer to each of them and stores that integer instead.
        """
        if isinstance(self.id_type, Uuid):
            return "uuid"
        return "text" if isinstance(self.id_type, String) else None

    @property
    def is_usable(self) -> bool:
        """True if this project supports the type of the persons' ids."""
        return self.numbered is not None or isinstance(self.id_type, Integer)


NEEDED = ("id", "phone_number", "created_at")
"""The columns of persons that are read for every dialer."""
_OF, _NAMES = "of", "names"


@dataclass(frozen=True, eq=False)
class Names:
    """The names of a table and its columns in a CRM in another database."""

    of: str
    """The name of the table in the CRM, with its schema unless that is the connection's schema."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Maps the dialer's name for a column to the CRM's name.

    A column that is left out has the CRM name that the dialer declares for it.
    """


@dataclass(frozen=True)
class Link:
    """A reference by which a row of a fact table leads to its person.

    The fact table's `column` refers to the column `target` of the table `table`. The
    referenced table is that of persons, or another fact table that has a link of its own.
    """

    column: str
    table: str
    target: str


@dataclass(frozen=True, eq=False)
class FactSource:
    """A table of the CRM, with the columns that a dialer reads."""

    name: str
    """The name by which rules refer to the table. `of` is the CRM's own name of it."""
    of: str
    """The name of the table in the CRM, with its schema unless that is the default.

    The default schema is `crm` in our own database, and the connection's schema in another
    database.
    """
    columns: Mapping[str, str]
    """Maps the dialer's name for each column to the CRM's name.

    Only the columns that are read are listed.
    """
    types: Mapping[str, TypeEngine[Any]]
    """The types of the table's columns, by the dialer's name for the column.

    Every column that the dialer may use is here, and so is every column in `columns`. A column that
    is only here does not exist in this CRM; its value is null.
    """
    person_columns: frozenset[str]
    """The dialer's names of the columns that contain a person's id. They are keys of `columns`."""
    key: tuple[str, ...]
    """The columns of the declared primary key; empty if none is declared."""
    link: Link | None
    """The reference from a row of this table to its person.

    None for the table of persons itself, and for a table that declares no such reference.
    """

    def named(self, names: Names | None) -> FactSource:
        """Return a copy of this declaration for a CRM with other names of the table and columns.

        `names`: the names in that CRM. For a column that `names` leaves out, the copy has the same
        CRM name as this declaration. If `names` is None, this declaration itself is returned.
        """
        if names is None:
            return self
        columns = {ours: names.names.get(ours, theirs) for ours, theirs in self.columns.items()}
        return replace(self, of=names.of, columns=columns)


@dataclass(frozen=True, eq=False)
class ExternalFacts:
    """The tables that a dialer reads from a CRM in another database.

    The table of persons is the first in `sources`. A row of a table may refer to its person by way
    of a row in another table (`FactSource.link`). That other table comes earlier in `sources`.
    """

    sources: tuple[FactSource, ...]
    numbered: str | None
    """The type of the CRM's ids of persons, `uuid` or `text`; None if they are integers.

    Our tables need integer ids. If the CRM's ids are no integers, this project assigns an integer
    to each of them and stores that integer instead.
    """

    def source(self, name: str) -> FactSource:
        """Return the table to which rules refer by this name."""
        return next(each for each in self.sources if each.name == name)


def sources(persons: Persons, read: Iterable[object], further: Iterable[str]) -> list[FactSource]:
    """Return the CRM tables that the expressions in `read` use; the table of persons is the first.

    `read`: SQL expressions. Each table has the columns that the expressions use, its key, and the
    columns that lead to the person. `further`: additional columns of persons.
    """
    of_persons = CrmUser.__table__
    types: dict[str, TypeEngine[Any]] = {
        name: of_persons.c[name].type if name in of_persons.c else Text()
        for name in (*NEEDED, *further)
    }
    used: dict[str, dict[str, TypeEngine[Any]]] = {}
    tables: dict[str, Table] = {}
    for table, column in _crm_columns(read):
        if table.name == CrmUser.__tablename__:
            types[column.name] = column.type
        else:
            tables[table.name] = table
            used.setdefault(table.name, {})[column.name] = column.type
    links: dict[str, Link | None] = {}
    for name in sorted(tables):
        _follow(tables[name], tables, used, links)
    named = {name: persons.names.get(name, name) for name in types}
    own = frozenset({"id"})
    found = [FactSource(CrmUser.__tablename__, persons.of, named, types, own, ("id",), None)]
    for name, link in links.items():
        table = tables[name]
        names = table.info.get(_NAMES, {})
        found.append(
            FactSource(
                name,
                table.info.get(_OF, name),
                {column: names.get(column, column) for column in used[name]},
                used[name],
                frozenset(name for name in used[name] if isinstance(table.c[name].type, PersonId)),
                tuple(column.name for column in table.primary_key),
                link,
            )
        )
    return found


def _follow(
    table: Table,
    tables: dict[str, Table],
    used: dict[str, dict[str, TypeEngine[Any]]],
    links: dict[str, Link | None],
) -> None:
    """Find the column by which a row of `table` leads to its person, and add it to `links`.

    The column contains the person's id, or it is a foreign key to another table that leads to the
    person. In the second case, this function first adds the other table to `links`. For a table
    that leads to no person, `links` gets None. The columns that must be read to follow the
    references are added to `used`, by table. All tables found are added to `tables`.
    """
    if table.name in links:
        return
    links[table.name] = None  # for references in a circle
    columns = used.setdefault(table.name, {})
    persons = [each for each in table.columns if isinstance(each.type, PersonId)]
    for each in (*table.primary_key, *persons):
        columns[each.name] = each.type
    link = Link(persons[0].name, CrmUser.__tablename__, "id") if persons else None
    references = sorted(table.foreign_keys, key=lambda each: each.parent.name)
    for each in references if link is None else ():
        to = each.column.table
        columns[each.parent.name] = each.parent.type
        tables.setdefault(to.name, to)
        used.setdefault(to.name, {})[each.column.name] = each.column.type
        _follow(to, tables, used, links)
        if links.get(to.name) is not None:
            link = Link(each.parent.name, to.name, each.column.name)
            break
    del links[table.name]
    links[table.name] = link


KINDS = (bool, int, float, Decimal, datetime, date, UUID, str)
"""The Python types of the values that can be read from a CRM in another database."""


def kind_of(type_: TypeEngine[Any]) -> type[Any] | None:
    """Return the Python type of this column type's values; None if that type is not supported.

    The supported types are in `KINDS`.
    """
    try:
        kind = type_.python_type
    except NotImplementedError:
        return None
    return kind if kind in KINDS else None


def stored_type(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the column type by which a fact of an external CRM is stored in our database.

    `type_` is the declared type of the fact.
    """
    kind = kind_of(type_)
    if kind is datetime:
        return Instant if getattr(type_, "timezone", False) else NaiveInstant()
    return _STORED[kind]


_STORED: Mapping[type[Any] | None, TypeEngine[Any]] = {
    bool: Boolean(),
    int: BigInteger(),
    float: Double(),
    Decimal: Numeric(),
    date: Date(),
    UUID: Uuid(),
    str: Text(),
}


def _crm_columns(read: Iterable[object]) -> list[tuple[Table, ColumnClause[Any]]]:
    """Return the CRM's tables and columns that the SQL expressions use, also within subqueries."""
    return [
        (each.table, each)
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
    """A CRM table whose new rows may put a person into a dialer queue, or into a different queue.

    A job looks for new rows at intervals. It reads them in the order of `created_at` and `key`, and
    stores its position in that order for the next run.
    """

    name: str
    """The name of this declaration: small letters, digits and underscores.

    The job that reads the new rows stores its position under this name.
    """
    created_at: ExpressionOfColumn
    """The time at which the row was created. One index should cover this column and `key`."""
    key: ExpressionOfColumn
    """The primary key column of the table. It orders rows that were created at the same time."""
    person: ExpressionOfColumn
    """The column with the id of the person whom a new row concerns.

    The column is in the table of the new rows, or in the table that `joined` joins.
    """
    joined: FromClause | None = None
    """A SQL join of the table of new rows with the table that has the column `person`.

    None: the table of new rows itself has the column.
    """

    @property
    def table(self) -> str:
        """The name of the CRM table that is read for new rows."""
        key = self.key.expression if isinstance(self.key, InstrumentedAttribute) else self.key
        return str(getattr(key.table, "name", key.table))


NEW_PERSONS = News("users", CrmUser.created_at, CrmUser.id, CrmUser.id)


def person_column(name: str, type_: TypeEngine[Any]) -> ColumnClause[Any]:
    """Return a column of the CRM's table of persons, for use in rules and orders.

    `name` is the dialer's name for the column. If the CRM's name for the column is different, the
    dialer's `Persons.names` must map `name` to the CRM's name.
    """
    return ColumnClause(name, type_, _selectable=CrmUser.__table__)


def fact_table(
    name: str, *columns: Column[Any], of: str | None = None, names: Mapping[str, str] | None = None
) -> Table:
    """Declare a table of the CRM with facts about persons; return it for use in rules.

    The column of the type `PersonId` contains the person's id. A table without such a column needs
    a `ForeignKey` to another fact table, which leads to the person. A rule reads the table inside
    of `exists(…)`, so the column or the foreign key should have an index. `of`: the CRM's name of
    the table, if it is not `name`. `names` maps the name of a column in `columns` to the CRM's name
    of that column, if the two differ.
    """
    info = {_OF: of or name, _NAMES: dict(names or {})}
    return Table(name, MetaData(schema=CrmBase.metadata.schema), *columns, info=info)
