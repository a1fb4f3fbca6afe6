"""Read the CRM's facts in a transaction, from our own database or from an external CRM.

If the CRM is the schema `crm` of our own database, statements read its tables directly. With an
external CRM, a claim first reads the facts of the users whom it judges, by id. It then passes these
facts to its statement as SQL parameters, which replace the CRM's tables. Therefore, each rule is
one SQL expression in both cases. Jobs that judge all users read the mirror (`mirror`), our copy of
the external CRM.

A function that needs the CRM has a parameter for the external CRM; None means that the CRM is in
our own database. Statements name the CRM's tables in the schema `crm`. With an external CRM,
SQLAlchemy replaces this schema by that of the mirror. If the CRM is in our own database and the
dialer needs views of its tables, SQLAlchemy replaces the schema by that of the views
(`fact_views`). Otherwise, the statements read the schema `crm` itself. See `use_fact_schema`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from time import monotonic
from typing import Any, TypeGuard, cast

from sqlalchemy import (
    CTE,
    Column,
    ColumnClause,
    ColumnElement,
    Connection,
    Engine,
    FromClause,
    Row,
    Select,
    Table,
    func,
    literal,
    select,
)
from sqlalchemy.sql.visitors import replacement_traverse

from assignment_workers.assignment import phones, user_ids
from assignment_workers.assignment.crm import fact_views
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.crm.facts import USERS, CrmFacts, parameter
from assignment_workers.errors import CrmUnavailable
from assignment_workers.identity import UserId
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.facts import ExternalFacts, FactSource, stored_type
from assignment_workers.policy.queues import Policy
from assignment_workers.policy.rules import NUMBER_UNREAD
from assignment_workers.schema.base import Base, CrmBase
from assignment_workers.schema.bulk import rows
from assignment_workers.schema.crm import MIRROR_SCHEMA
from assignment_workers.schema.pipeline import Rows, Statement, expression_cache
from assignment_workers.schema.tables import FACT_SCHEMA, CrmRead, Phone

_MIRRORED = {"crm": MIRROR_SCHEMA}


class CrmReader:
    """The access of one transaction to the CRM, with a limit on the total time of its reads.

    `waited`: the seconds that reads of the external CRM have taken so far. Once they reach the
    limit, no further read begins. A single read has the same limit, so a transaction waits for the
    external CRM at most twice the limit. The limit is the CRM's timeout. For a job that blocks no
    requests, it is `patience`, in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        dialer: Dialer,
        crm: Crm | None,
        *,
        patience: float | None = None,
        run: Callable[..., list[Rows]] | None = None,
        stores: bool = True,
    ) -> None:
        """Prepare the reader of a transaction.

        `crm`: the external CRM; None if the CRM is in our own database. `patience`: the limit in
        seconds on the time of each read of the external CRM. Once all reads of the transaction
        together have taken this time, no further read begins. None: the limit is the CRM's timeout,
        as for a claim. `run`: the function with which a sequencer's transaction runs statements;
        None: the connection runs them. `stores`: False for a reader that must not write; it does
        not store the phone numbers that it parses.
        """
        self._connection = connection
        self._run_in_turn = run
        self._patience = patience
        self._stores = stores
        self._dialer = dialer
        self._crm = crm
        self._zones: frozenset[str] | None = None
        self.waited = 0.0
        self.readable = phones.READ_IN_A_TURN
        """Number of users whose changed phone numbers this transaction may still parse."""
        self.unknown: set[int] = set()
        """Ids of users without usable CRM facts; ignore the verdicts on these users."""
        self.failure: CrmUnavailable | None = None

    @property
    def is_spent(self) -> bool:
        """True if this transaction must not wait for the external CRM any longer."""
        return self._crm is not None and self.waited >= (self._patience or self._crm.timeout)

    @property
    def zones(self) -> frozenset[str]:
        """All time zones that were ever found for any user, in this or another transaction.

        A zone remains among them when no user is in the zone any more. The zones are read once per
        transaction.
        """
        if self._zones is None:
            self._zones = frozenset(row.zone for row in self._run(phones.ZONES, {}))
        return self._zones

    def judge(
        self,
        statement: Select[*tuple[Any, ...]],
        parameters: Mapping[str, Any],
        *,
        users: Select[*tuple[Any, ...]] | Sequence[int],
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """Run a query that judges users by CRM facts; return its rows.

        `statement`: the query, which names the CRM's tables. `parameters`: its SQL parameters.
        `users`: the ids of the users, or a query with the same parameters that selects the ids.
        With an external CRM, the facts of these users are read first, and replace the CRM's tables
        in the query. Users whose facts were not read or cannot be used are added to `unknown`.
        Raises `CrmUnavailable` if the external CRM cannot be read.
        """
        return self._judge(statement, parameters, self._facts_for(users, parameters))

    def judge_for_claim(
        self,
        statement: Select[*tuple[Any, ...]],
        parameters: Mapping[str, Any],
        *,
        users: Select[*tuple[Any, ...]] | Sequence[int],
        policy: Policy,
        now: datetime,
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """Run a query that judges users by `policy` at `now`, before a claim assigns them.

        `statement`: the query, which names the CRM's tables. `parameters`: its SQL parameters.
        `users`: the ids of the users, or a query with the same parameters that selects the ids.
        `policy`: the rules of a dialer queue. Returns the query's rows. Users whose facts were not
        read or cannot be used are added to `unknown`. Raises `CrmUnavailable` if the external CRM
        cannot be read.

        A phone number that has changed in the CRM is parsed and stored before its user is judged.
        One transaction parses the phone numbers of only a limited number of users, in the order of
        the rows; `self.readable` is the number of users whose numbers it may still parse. A user
        whose phone number remains unparsed counts as ineligible for now: the column `broken`, the
        name of the broken rule, is `number_unread`.

        Exception: a reader that must not write (made with `stores=False`) has no such limit. It
        parses the phone numbers of all these users before they are judged, and stores none.
        """
        facts = self._facts_for(users, parameters)
        if not self._stores:
            asked = users if isinstance(users, Sequence) else self._ids(users, parameters)
            stored = phones.identified(self._said(policy, asked, facts), policy.numbers, now)
            self._zones = self.zones | {each["zone"] for each in stored["zones"]}
            given_phones = {**parameters, **self._at(policy, now), **stored}
            return self._judge(over_phones(statement), given_phones, facts)
        found = self._judge(statement, {**parameters, **self._at(policy, now)}, facts)
        waiting = [row.user_id for row in found if row.broken == NUMBER_UNREAD][: self.readable]
        if waiting:
            self.readable -= len(waiting)
            stored = phones.identified(self._said(policy, waiting, facts), policy.numbers, now)
            self._store(stored)
            found = self._judge(statement, {**parameters, **self._at(policy, now)}, facts)
        return found

    def judge_or_recall(
        self,
        statement: Select[*tuple[Any, ...]],
        parameters: Mapping[str, Any],
        *,
        users: Select[*tuple[Any, ...]] | Sequence[int],
        policy: Policy,
        now: datetime,
    ) -> tuple[Sequence[Row[*tuple[Any, ...]]], bool]:
        """Run a query that judges users by `policy`; read the mirror if the CRM is unavailable.

        The mirror is our copy of the CRM. It is used only if it is younger than the setting
        `crm_grace`. `statement`: the query, which names the CRM's tables. `parameters`: its SQL
        parameters. `users`: the ids of the users, or a query with the same SQL parameters that
        selects the ids. `policy`: the rules of a dialer queue. `now`: the time for which the users
        are judged. While the CRM is available, phone numbers are parsed as in `judge_for_claim`.

        Returns the query's rows, and True if the users were judged by facts of the CRM itself, or
        False if by facts of the mirror. If False, the caller must not remove a user, or report one
        as ineligible. Raises `CrmUnavailable` if the CRM cannot be read and the mirror cannot be
        used.
        """
        try:
            found = self.judge_for_claim(statement, parameters, users=users, policy=policy, now=now)
            return found, True
        except CrmUnavailable:
            if not self._may_recall():
                raise
        recalled = {**parameters, **self._at(policy, now)}
        return self._connection.execute(statement, recalled).all(), False

    def _at(self, policy: Policy, now: datetime) -> dict[str, Any]:
        zones = self.zones if policy.hours is not None else ()
        return {**policy.at(now, zones), "reading": True}

    def _facts_for(
        self, users: Select[*tuple[Any, ...]] | Sequence[int], parameters: Mapping[str, Any]
    ) -> tuple[Sequence[int], CrmFacts] | None:
        """Return the ids of `users` and their facts; None if the CRM is in our own database.

        `users`: the ids, or a query with these parameters that selects them.
        """
        if self._crm is None:
            return None
        asked = users if isinstance(users, Sequence) else self._ids(users, parameters)
        return asked, self._facts(self._crm, asked)

    def _judge(
        self,
        statement: Select[*tuple[Any, ...]],
        parameters: Mapping[str, Any],
        known: tuple[Sequence[int], CrmFacts] | None,
    ) -> Rows:
        if known is None:
            return self._run(statement, parameters)
        asked, facts = known
        declared = cast("Crm", self._crm).declared
        given = {**parameters, **facts.parameters}
        found = self._run_over_facts(over_facts(statement, declared), given)
        rows = {row.user_id for row in found if hasattr(row, "user_id")}
        self.unknown |= rows - set(asked) | facts.unreadable
        return found

    def _said(
        self, policy: Policy, users: Sequence[int], known: tuple[Sequence[int], CrmFacts] | None
    ) -> list[dict[str, Any]]:
        """Return the CRM values of these users from which their phone numbers are parsed.

        `known`: facts that were read from an external CRM; None: the CRM is in our own database,
        and the values are read from it now.
        """
        if known is None:
            statement, parameters = phones.said_of(policy.numbers, users)
            return [row._asdict() for row in self._run(statement, parameters)]
        wanted = set(users)
        found = known[1].parameters[parameter(USERS)]
        return [dict(each) for each in found if each["id"] in wanted]

    def _store(self, stored: Mapping[str, Any]) -> None:
        if self._zones is not None:
            self._zones |= {each["zone"] for each in stored["zones"]}
        if self._run_in_turn is None:
            phones.store(self._connection, stored)
        else:
            self._run_in_turn(
                Statement(phones.STORE_ZONES, stored), Statement(phones.STORE, stored)
            )

    def _run(self, statement: Select[*tuple[Any, ...]], parameters: Mapping[str, Any]) -> Rows:
        if self._run_in_turn is None:
            return self._connection.execute(statement, parameters).all()
        (found,) = self._run_in_turn(Statement(statement, parameters))
        return found

    def _run_over_facts(
        self, statement: Select[*tuple[Any, ...]], parameters: Mapping[str, Any]
    ) -> Rows:
        """Run a query that reads CRM facts from its parameters; return its rows.

        A sequencer's connection has hash and merge joins switched off, so that statements look up
        rows by an index. Rows that come from a parameter have no index. Therefore, in a sequencer's
        transaction, these joins are switched on for this query only.
        """
        if self._run_in_turn is None:
            return self._run(statement, parameters)
        _, found, _ = self._run_in_turn(_JOIN, Statement(statement, parameters), _PROBE)
        return found

    def _facts(self, crm: Crm, asked: Sequence[int]) -> CrmFacts:
        if self.failure is not None:
            raise self.failure
        began = monotonic()
        try:
            if self.is_spent:
                raise CrmUnavailable(
                    f"it took {self.waited:.1f} s for a part of what was asked", retry_after=2.0
                )
            return crm.facts(own_ids(self._dialer, self._connection, asked), seconds=self._patience)
        except CrmUnavailable as error:
            self.failure = error
            raise
        finally:
            self.waited += monotonic() - began

    def _ids(self, users: Select[*tuple[Any, ...]], parameters: Mapping[str, Any]) -> list[int]:
        return list(self._connection.execute(users, parameters).scalars())

    def _may_recall(self) -> bool:
        grace = self._crm.grace if self._crm else None
        if grace is None:
            return False
        young = select(CrmRead.read_at > func.clock_timestamp() - literal(grace))
        return bool(self._connection.execute(young).scalar())


def own_ids(dialer: Dialer, connection: Connection, users: Sequence[int]) -> dict[int, UserId]:
    """Return a mapping from the internal integer id of each user to the CRM's id of the user.

    The internal ids are those of `assignment.user_ids`. Users without a CRM id are left out. If the
    CRM's ids are integers, they are the internal ids.
    """
    found = user_ids.own(dialer, connection, users)
    if dialer.numbered is None:
        return found
    return {number: each for number, each in found.items() if isinstance(each, str)}


def use_fact_schema(engine: Engine, dialer: Dialer, crm: Crm | None) -> None:
    """Set the schema from which the statements of `engine` read the CRM's facts.

    With an external CRM, this is the schema of the mirror, our copy of that CRM. With a CRM in our
    own database, this is the CRM's own schema, or the schema of the views if the dialer needs
    views.
    """
    if crm is not None:
        engine.update_execution_options(schema_translate_map=_MIRRORED)
    elif fact_views.are_needed(dialer):
        engine.update_execution_options(schema_translate_map=fact_views.TRANSLATED)


def facts_schema(connection: Connection) -> str:
    """Return the schema in which a CRM in our own database is read.

    This is the schema of the CRM's own tables or, if statements read views of these tables, the
    schema of the views.
    """
    translated = connection.get_execution_options().get("schema_translate_map")
    return FACT_SCHEMA if translated == fact_views.TRANSLATED else str(CrmBase.metadata.schema)


def _joins(setting: str) -> Statement:
    ways = ("enable_hashjoin", "enable_mergejoin")
    return Statement(select(*(func.set_config(way, setting, True) for way in ways)))


_JOIN, _PROBE = _joins("on"), _joins("off")


@expression_cache
def over_facts(
    statement: Select[*tuple[Any, ...]], declared: ExternalFacts
) -> Select[*tuple[Any, ...]]:
    """Rewrite a query to read CRM facts from SQL parameters in place of the CRM's tables.

    The query can then be run with facts that were read from an external CRM. `declared`: the CRM's
    tables and columns.
    """
    tables = {each.name: _table(each) for each in declared.sources}

    def replaced(element: object, **_: object) -> ColumnElement[Any] | FromClause | None:
        if isinstance(element, ColumnClause) and _is_of_crm(element.table):
            return tables[element.table.name].c[element.name]
        return tables[element.name] if _is_of_crm(element) else None

    return cast("Select[*tuple[Any, ...]]", replacement_traverse(statement, {}, replaced))


@expression_cache
def over_phones(statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """Rewrite a query to read users' phone numbers from the SQL parameter `phones`.

    The parameter replaces our table of parsed phone numbers (in E.164 form). A caller that must not
    write to this table can then run the query with numbers that it has parsed itself.
    """
    of = Phone.__table__
    source = rows("phones", **{each.name: each.type for each in of.c})
    made = select(*source.c).cte("given_phones").prefix_with("MATERIALIZED")

    def is_of_phones(element: object) -> bool:
        return isinstance(element, Table) and (element.schema, element.name) == (
            Base.metadata.schema,
            Phone.__tablename__,
        )

    def replaced(element: object, **_: object) -> ColumnElement[Any] | FromClause | None:
        if isinstance(element, Column) and is_of_phones(element.table):
            return made.c[element.name]
        return made if is_of_phones(element) else None

    return cast("Select[*tuple[Any, ...]]", replacement_traverse(statement, {}, replaced))


def _is_of_crm(element: object) -> TypeGuard[Table]:
    return isinstance(element, Table) and element.schema == CrmBase.metadata.schema


def _table(source: FactSource) -> CTE:
    types = {name: stored_type(type_) for name, type_ in source.types.items()}
    given = rows(parameter(source.name), **types)
    return select(*given.c).cte(f"crm_{source.name}").prefix_with("MATERIALIZED")
