"""How a transaction sees the CRM's facts, wherever the CRM is.

The rules stay one SQL expression each: the facts are brought to them. In the schema `crm` of our
own database a statement reads them where they are. From a CRM elsewhere they are read for a claim
by the ids of its users, travel as parameters, and stand in the very same statement where the CRM's
tables would; for work on whole pools they are mirrored (`mirror`). Where the CRM is, is an option
of the engine, so every operation finds it by the connection it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from time import monotonic
from typing import Any, TypeGuard, cast

from sqlalchemy import (
    CTE,
    Column,
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

from assignment_workers.assignment import phones
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.crm.facts import CrmFacts, parameter
from assignment_workers.errors import CrmUnavailable
from assignment_workers.policy.queues import Policy
from assignment_workers.policy.rules import NUMBER_UNREAD
from assignment_workers.schema.base import Base, CrmBase
from assignment_workers.schema.bulk import rows
from assignment_workers.schema.crm import FACTS, MIRROR_SCHEMA, CrmUser
from assignment_workers.schema.pipeline import Rows, Statement
from assignment_workers.schema.tables import CrmRead, Phone

ELSEWHERE = "crm"
"""The option of an engine whose CRM is elsewhere: its `Crm`."""

_MIRRORED = {"crm": MIRROR_SCHEMA}


class CrmReader:
    """How one transaction sees the CRM. It is asked for facts, and waits no longer than it may.

    `waited` is what its reads took; beyond the timeout nothing more is read, so that a transaction
    waits for a CRM elsewhere at most twice as long: up to the timeout in reads that were answered,
    then one that is not. A job off the assignment queue gives its `patience` in the timeout's
    place.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        patience: float | None = None,
        run: Callable[..., list[Rows]] | None = None,
        stores: bool = True,
    ) -> None:
        """`run`: how a turn runs the few statements that it asks again and again.

        `stores`: whether phone numbers that are read are stored. A reader that may not write reads
        those of the few users whom it asks about each time.
        """
        self._connection = connection
        self._run_in_turn = run
        self._patience = patience
        self._stores = stores
        self._crm = crm_of(connection)
        self._zones: frozenset[str] | None = None
        self.waited = 0.0
        self.readable = phones.READ_IN_A_TURN
        """Phone numbers that this transaction may still read."""
        self.unknown: set[int] = set()
        """Users of the rows that `judge` gave of whom nothing is known: what it says is not so."""
        self.failure: CrmUnavailable | None = None

    @property
    def is_spent(self) -> bool:
        """Whether so long was waited that this transaction should read nothing more."""
        return self._crm is not None and self.waited >= (self._patience or self._crm.timeout)

    @property
    def zones(self) -> frozenset[str]:
        """The time zones in which users are: those stored when this transaction first asks."""
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
        """The rows of a statement over the CRM's tables, by facts read for it.

        `users`: whom it asks about, or the statement that says so by the same parameters; it is run
        for a CRM elsewhere alone. Whose row it gives besides, or whose facts make no sense, is in
        `unknown`. Raises `CrmUnavailable`.
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
        """The same by the rules of `policy` at `now`, which is to hand out who breaks none.

        A user whose phone number has changed has it read and stored in this transaction before they
        are judged, in the order of the rows, as many as `readable`; the rows of all others name the
        rule `NUMBER_UNREAD` as `broken`.
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
        """The same, and whether the facts are fresh.

        While the CRM cannot be read they are those of the mirror, where that is young enough for
        the grace that is set: nobody may be removed by such facts, nor said to be ineligible.
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
        """Whom it is about and their facts; None: the CRM is in our own database."""
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
        found = self._run_over_facts(over_facts(statement), {**parameters, **facts.parameters})
        rows = {row.user_id for row in found if hasattr(row, "user_id")}
        self.unknown |= rows - set(asked) | facts.unreadable
        return found

    def _said(
        self, policy: Policy, users: Sequence[int], known: tuple[Sequence[int], CrmFacts] | None
    ) -> list[dict[str, Any]]:
        """What the CRM says of these users that phone identities are made of."""
        if known is None:
            statement, parameters = phones.said_of(policy.numbers, users)
            return [row._asdict() for row in self._run(statement, parameters)]
        wanted = set(users)
        found = known[1].parameters[parameter(CrmUser)]
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
        """Turns probe indexes alone, and parameters have none: here they may be joined at once."""
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
            return crm.facts(asked, seconds=self._patience)
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


def crm_of(connection: Connection | Engine) -> Crm | None:
    """The CRM elsewhere, if it is; None: it is in the schema `crm`."""
    return cast("Crm | None", connection.get_execution_options().get(ELSEWHERE))


def attach(engine: Engine, crm: Crm | None) -> None:
    """Let every connection of `engine` find the CRM; statements over pools read the mirror."""
    if crm is not None:
        engine.update_execution_options(**{ELSEWHERE: crm, "schema_translate_map": _MIRRORED})


def _joins(setting: str) -> Statement:
    ways = ("enable_hashjoin", "enable_mergejoin")
    return Statement(select(*(func.set_config(way, setting, True) for way in ways)))


_JOIN, _PROBE = _joins("on"), _joins("off")


@cache
def over_facts(statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """The statement over facts that are its parameters, in the place of the CRM's tables."""
    tables = {model.__tablename__: _table(model) for model in FACTS}

    def replaced(element: object, **_: object) -> ColumnElement[Any] | FromClause | None:
        if isinstance(element, Column) and _is_of_crm(element.table):
            return tables[element.table.name].c[element.name]
        return tables[element.name] if _is_of_crm(element) else None

    return cast("Select[*tuple[Any, ...]]", replacement_traverse(statement, {}, replaced))


@cache
def over_phones(statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """The statement over phone identities that are its parameter `phones`."""
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


def _table(model: type[CrmBase]) -> CTE:
    of = model.__table__
    source = rows(parameter(model), **{name: of.c[name].type for name in FACTS[model]})
    made = select(*source.c).cte(f"crm_{model.__tablename__}")
    return made.prefix_with("MATERIALIZED")
