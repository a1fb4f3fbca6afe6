"""How a transaction sees the CRM's facts, wherever the CRM is.

The rules stay one SQL expression each: the facts are brought to them. In the schema `crm` of our
own database a statement reads them where they are. From a CRM elsewhere they are read for a claim
by the ids of its users, travel as parameters, and stand in the very same statement where the CRM's
tables would; for work on whole pools they are mirrored (`mirror`). Where the CRM is, is an option
of the engine, so every operation finds it by the connection it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

from assignment_workers.assignment.crm import Crm
from assignment_workers.assignment.facts import Facts, parameter
from assignment_workers.errors import CrmUnavailable
from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.bulk import rows
from assignment_workers.schema.crm import FACTS, MIRROR_SCHEMA
from assignment_workers.schema.tables import CrmRead
from assignment_workers.schema.trips import Ask, Rows

ELSEWHERE = "crm"
"""The option of an engine whose CRM is elsewhere: its `Crm`."""

_MIRRORED = {"crm": MIRROR_SCHEMA}


class Sight:
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
    ) -> None:
        """`run`: how a turn runs the few statements that it asks again and again."""
        self._connection = connection
        self._run_in_turn = run
        self._patience = patience
        self._crm = crm_of(connection)
        self.waited = 0.0
        self.unknown: set[int] = set()
        """Users of the rows that `judge` gave of whom nothing is known: what it says is not so."""
        self.failure: CrmUnavailable | None = None

    @property
    def is_spent(self) -> bool:
        """Whether so long was waited that this transaction should read nothing more."""
        return self._crm is not None and self.waited >= (self._patience or self._crm.timeout)

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
        if self._crm is None:
            return self._run(statement, parameters)
        asked = users if isinstance(users, Sequence) else self._ids(users, parameters)
        facts = self._facts(self._crm, asked)
        found = self._run_over_facts(given(statement), {**parameters, **facts.parameters})
        rows = {row.user_id for row in found if hasattr(row, "user_id")}
        self.unknown |= rows - set(asked) | facts.unreadable
        return found

    def judge_or_recall(
        self,
        statement: Select[*tuple[Any, ...]],
        parameters: Mapping[str, Any],
        *,
        users: Select[*tuple[Any, ...]] | Sequence[int],
    ) -> tuple[Sequence[Row[*tuple[Any, ...]]], bool]:
        """The same, and whether the facts are fresh.

        While the CRM cannot be read they are those of the mirror, where that is young enough for
        the grace that is set: nobody may be removed by such facts, nor said to be ineligible.
        """
        try:
            return self.judge(statement, parameters, users=users), True
        except CrmUnavailable:
            if not self._may_recall():
                raise
        return self._connection.execute(statement, parameters).all(), False

    def _run(self, statement: Select[*tuple[Any, ...]], parameters: Mapping[str, Any]) -> Rows:
        if self._run_in_turn is None:
            return self._connection.execute(statement, parameters).all()
        (found,) = self._run_in_turn(Ask(statement, parameters))
        return found

    def _run_over_facts(
        self, statement: Select[*tuple[Any, ...]], parameters: Mapping[str, Any]
    ) -> Rows:
        """Turns probe indexes alone, and parameters have none: here they may be joined at once."""
        if self._run_in_turn is None:
            return self._run(statement, parameters)
        _, found, _ = self._run_in_turn(_JOIN, Ask(statement, parameters), _PROBE)
        return found

    def _facts(self, crm: Crm, asked: Sequence[int]) -> Facts:
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


def _joins(setting: str) -> Ask:
    ways = ("enable_hashjoin", "enable_mergejoin")
    return Ask(select(*(func.set_config(way, setting, True) for way in ways)))


_JOIN, _PROBE = _joins("on"), _joins("off")


@cache
def given(statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """The statement over facts that are its parameters, in the place of the CRM's tables."""
    tables = {model.__tablename__: _table(model) for model in FACTS}

    def replaced(element: object, **_: object) -> ColumnElement[Any] | FromClause | None:
        if isinstance(element, Column) and _is_of_crm(element.table):
            return tables[element.table.name].c[element.name]
        return tables[element.name] if _is_of_crm(element) else None

    return cast("Select[*tuple[Any, ...]]", replacement_traverse(statement, {}, replaced))


def _is_of_crm(element: object) -> TypeGuard[Table]:
    return isinstance(element, Table) and element.schema == CrmBase.metadata.schema


def _table(model: type[CrmBase]) -> CTE:
    of = model.__table__
    source = rows(parameter(model), **{name: of.c[name].type for name in FACTS[model]})
    made = select(*source.c).cte(f"crm_{model.__tablename__}")
    return made.prefix_with("MATERIALIZED")
