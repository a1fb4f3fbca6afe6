"""Build the queries to an external CRM, and convert its rows to the facts that rules read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    Integer,
    Row,
    Select,
    Table,
    TableClause,
    and_,
    bindparam,
    column,
    literal_column,
    null,
    or_,
    select,
    table,
    true,
    union_all,
)
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.visitors import replacement_traverse

from assignment_workers.assignment.crm.values import (
    RowReader,
    Unreadable,
    instant,
    reader_of_ids,
)
from assignment_workers.identity import UserId
from assignment_workers.policy.facts import (
    ExpressionOfColumn,
    ExternalFacts,
    FactSource,
    Link,
    News,
)
from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.crm import CrmUser

USERS = CrmUser.__tablename__
Key = int | str
Position = tuple[datetime, Key | None]
"""The position of a reader in a CRM table: `created_at` and id of the last row that was read.

The table is read in the order of `created_at` and id. If the id is None, the position is before all
rows with that `created_at`.
"""


@dataclass(frozen=True)
class NewCrmRow:
    """A new row of a CRM table: its creation time, its id (`key`), and the user whom it is about.

    `user_id`: with an external CRM, the CRM's id of the user. With a CRM in our own database, the
    internal integer id of the user, from `assignment.user_ids`.
    """

    created_at: datetime
    key: Key
    user_id: UserId


@dataclass(frozen=True)
class CrmFacts:
    """CRM facts of some users, in the form of SQL parameters.

    `unreadable`: users whose facts in the CRM cannot be converted, so that no facts are known.
    """

    parameters: Mapping[str, Sequence[Mapping[str, Any]]]
    unreadable: frozenset[int]


def parameter(table: str) -> str:
    """Return the name of the SQL parameter that passes the rows of this CRM table to a query.

    The query reads these rows, which were read from an external CRM, in place of the table.
    """
    return f"crm_{table}"


def split_name(of: str) -> tuple[str | None, str]:
    """Split the CRM's name of a table, such as `sales.deals`, into the schema and the table's name.

    The schema is None if the name has none.
    """
    schema, dot, name = of.rpartition(".")
    return (schema if dot else None), name


class Queries:
    """The queries to an external CRM, in that CRM's table and column names.

    Methods convert the rows of these queries to the names and types that rules use.
    """

    def __init__(self, declared: ExternalFacts, *, folds: bool) -> None:
        self.declared = declared
        self.readers = {
            each.name: RowReader(each, numbered=declared.numbered, folds=folds)
            for each in declared.sources
        }
        self._tables = {each.name: _table(each) for each in declared.sources}
        self._columns = {
            each.name: {
                name: self._tables[each.name].c[each.columns[name]]
                if name in each.columns
                else null().label(name)
                for name in each.types
            }
            for each in declared.sources
        }
        user = self._columns[USERS]["id"]
        every = [
            of.label(f"{place}_{name}")
            for place, each in enumerate(declared.sources)
            for name, of in self._columns[each.name].items()
        ]
        self.facts = (
            select(*every)
            .select_from(self._joined())
            .where(user.in_(bindparam("users", expanding=True)))
        )
        """Query for all rows about some users, from all tables of the CRM, as of one instant.

        SQL parameter: `users`, the CRM's ids of the users.
        """
        self.probe = select(user).limit(1)
        self.everything = {
            each.name: select(*self._columns[each.name].values()) for each in declared.sources
        }
        self._since: dict[tuple[str, bool], Select[*tuple[Any, ...]]] = {}
        self._read_id = reader_of_ids(declared.numbered)

    def _joined(self) -> FromClause:
        """Build the FROM clause that joins the table of persons with all tables about persons.

        The links between the tables form chains that begin at the persons. For example, deals refer
        to persons, and items refer to deals: this is one chain. Notes refer to persons: this is
        another chain. A plain join would combine each note of a person with each deal of that
        person. Therefore, if there are several chains, the query has a copy of each person's row
        for each chain. These copies exist only in the query. The copy for a chain is joined to the
        tables of that chain. The columns of all other tables are null in the rows of that copy. In
        the example, one copy is joined to the person's deals and their items, and the other copy to
        the person's notes.
        """
        linked = [(each, each.link) for each in self.declared.sources if each.link is not None]
        ways: dict[str, list[int]] = {each.name: [] for each, _ in linked}
        parents = {link.table for _, link in linked}
        leaves = [each.name for each, _ in linked if each.name not in parents]
        above = {each.name: link.table for each, link in linked}
        for number, leaf in enumerate(leaves):
            name = leaf
            while name != USERS:
                ways[name].append(number)
                name = above[name]
        joined: FromClause = self._tables[USERS]
        number_of_way: ColumnElement[Any] | None = None
        if len(leaves) > 1:
            numbers: Iterator[Select[*tuple[Any, ...]]] = (
                select(literal_column(str(number)).label("number")) for number in range(len(leaves))
            )
            way = union_all(*numbers).subquery("way")
            number_of_way = way.c.number
            joined = joined.join(way, true())
        for each, link in linked:
            on: ColumnElement[bool] = self._on(each, link)
            if number_of_way is not None:
                ours = (number_of_way == literal_column(str(number)) for number in ways[each.name])
                on = and_(on, or_(*ours))
            joined = joined.outerjoin(self._tables[each.name], on)
        return joined

    def _on(self, source: FactSource, link: Link) -> ColumnElement[bool]:
        found: ColumnElement[bool] = (
            self._columns[source.name][link.column] == self._columns[link.table][link.target]
        )
        return found

    def since(self, news: News, *, goes_on: bool) -> Select[*tuple[Any, ...]]:
        """Return the query for the rows of a CRM table in the order of `created_at` and id.

        `news`: the table. The query has the SQL parameters `at`, `most` and, with `goes_on`, `key`.
        It reads at most `most` rows that were created at the time `at` or later. With `goes_on`, a
        row that was created exactly at that time is read only if its id is greater than `key`.
        """
        if (news.name, goes_on) not in self._since:
            self._since[news.name, goes_on] = self._made(news, goes_on=goes_on)
        return self._since[news.name, goes_on]

    def _made(self, news: News, *, goes_on: bool) -> Select[*tuple[Any, ...]]:
        at, key, user = map(self._own, (news.created_at, news.key, news.person))
        after = at >= bindparam("at")
        if goes_on:
            after = or_(at > bindparam("at"), (at == bindparam("at")) & (key > bindparam("key")))
        source = self._tables[news.table] if news.joined is None else self._translated(news.joined)
        return (
            select(at.label("created_at"), key.label("key"), user.label("user"))
            .select_from(source)
            .where(after, user.is_not(None))
            .order_by(at, key)
            .limit(bindparam("most", type_=Integer))
        )

    def _own(self, given: ExpressionOfColumn) -> ColumnElement[Any]:
        found = given.expression if isinstance(given, InstrumentedAttribute) else given
        return self._columns[str(getattr(found.table, "name", ""))][str(found.name)]

    def _translated(self, joined: FromClause) -> FromClause:
        """Return a copy of the SQL join `joined` that names the tables and columns as the CRM does.

        The tables and columns in `joined` have the names that the dialer declares for them, and
        that the dialer's rules use. The CRM may have other names for the same tables and columns.
        In the copy, each declared name is replaced by the CRM's name.
        """

        def replaced(element: object, **_: object) -> ColumnElement[Any] | FromClause | None:
            if isinstance(element, Column) and _is_of_crm(element.table):
                return self._columns[element.table.name][element.name]
            if isinstance(element, Table) and _is_of_crm(element):
                return self._tables[element.name]
            return None

        return cast("FromClause", replacement_traverse(joined, {}, replaced))

    def new_row(self, row: Row[*tuple[Any, ...]]) -> NewCrmRow:
        """Convert a row of the query `since`; raise `Unreadable` if a value cannot be converted."""
        at = instant(row.created_at)
        if at is None:
            raise Unreadable("a row was made at no time")
        key = row.key if isinstance(row.key, int) else str(row.key)
        return NewCrmRow(at.replace(tzinfo=UTC), key, self._read_id(row.user))

    def facts_of(
        self, found: Sequence[Row[*tuple[Any, ...]]], numbers: Mapping[UserId, int]
    ) -> CrmFacts:
        """Convert the result of the query `facts` to CRM facts.

        `found`: the rows of the result. Each result row has the columns of the persons and of all
        other CRM tables. For some of these tables, a result row may have no data; then all columns
        of that table are null in it. The same row of a CRM table may be in several result rows; it
        is converted once.

        `numbers`: the integer id of each user, from `assignment.user_ids`, by the CRM's id.
        """
        plan = []
        begin = 0
        targets = {link.table: link.target for link in self._links()}
        for each in self.declared.sources:
            reader = self.readers[each.name]
            present = begin + reader.columns.index(each.link.column if each.link else "id")
            # A row to which others lead comes with each of them.
            target = targets.get(each.name) or (each.key[0] if len(each.key) == 1 else None)
            once = None if target is None else begin + reader.columns.index(target)
            end = begin + len(reader.columns)
            plan.append((reader, begin, end, present, once, list[dict[str, Any]](), set[object]()))
            begin = end
        unreadable: set[int | None] = set()
        for row in found:
            for reader, begin, end, present, once, kept, seen in plan:
                if row[present] is None:
                    continue
                if once is not None:
                    if row[once] in seen:
                        continue
                    seen.add(row[once])
                values = reader.read(row[begin:end])
                if values is None:
                    unreadable.add(self._number(row[0], numbers))
                    continue
                if self.declared.numbered is not None:
                    values = reader.with_numbers(values, numbers)
                if values is not None:
                    kept.append(dict(zip(reader.columns, values, strict=True)))
        names = (each.name for each in self.declared.sources)
        facts = {parameter(name): part[5] for name, part in zip(names, plan, strict=True)}
        return CrmFacts(facts, frozenset(each for each in unreadable if each is not None))

    def _links(self) -> list[Link]:
        return [each.link for each in self.declared.sources if each.link is not None]

    def _number(self, user: object, numbers: Mapping[UserId, int]) -> int | None:
        try:
            return numbers.get(self._read_id(user))
        except Unreadable:
            return None


def _table(source: FactSource) -> TableClause:
    schema, name = split_name(source.of)
    columns = dict.fromkeys(source.columns.values())
    return table(name, *(column(each) for each in columns), schema=schema)


def _is_of_crm(element: object) -> bool:
    return isinstance(element, Table) and element.schema == CrmBase.metadata.schema
