"""The statements of the busiest transactions: compiled once, prepared once, several in one trip.

They are SQLAlchemy's expressions, in a transaction that SQLAlchemy begins and ends; but what it and
the driver do for each execution costs more than what the database does for a claim. So they go over
the driver's connection as they are, and those that need not wait for one another's rows go
together, with the transaction's beginning or its end.
"""

from __future__ import annotations

import itertools
import os
import select
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from time import perf_counter
from types import SimpleNamespace
from typing import Any, cast

import psycopg
from psycopg import adapt
from psycopg.abc import Transformer
from psycopg.adapt import PyFormat
from psycopg.errors import FeatureNotSupported, error_from_result
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from pydantic_core import to_json
from sqlalchemy import BindParameter, ClauseElement, Connection, Interval, Row
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql.compiler import SQLCompiler

from assignment_workers.schema.deadline import BoundedConnection
from assignment_workers.schema.dialer_schema import in_schema, schema_of
from assignment_workers.schema.engine import POOLED

Rows = Sequence[Row[*tuple[Any, ...]]]
"""Named tuples, to whoever reads them the same as SQLAlchemy's rows."""


@dataclass(frozen=True)
class Statement:
    """One execution of a statement, which is one of few: what is made of it is kept for good."""

    statement: ClauseElement
    parameters: Mapping[str, Any] = field(default_factory=dict)


def run_statements(connection: Connection, *asks: Statement) -> list[Rows]:
    """The rows of each: they are carried out in their order, and go in one trip.

    After one that fails the others are not carried out. Errors are raised as `Connection.execute`
    raises them, that of a lost connection too; what was begun is to be rolled back then.
    """
    return _go(connection, asks, ends=False)


def commit(connection: Connection, *asks: Statement) -> None:
    """Carry these out in their order and commit, in one trip: all of it or nothing.

    SQLAlchemy's own commit, which is to follow, finds nothing left to do.
    """
    _go(connection, asks, ends=True)


def _go(connection: Connection, asks: Sequence[Statement], *, ends: bool) -> list[Rows]:
    schema = _known(connection).schema
    statements = [_compiled(each.statement, schema) for each in asks]
    told = _notify_listeners(connection, statements, asks)
    try:
        results, known = _exchange(connection, statements, asks, ends=ends)
    except psycopg.Error as error:
        if isinstance(error, FeatureNotSupported):
            # A prepared statement's table was changed since: a new connection prepares it anew.
            connection.invalidate(error)
        sql = "; ".join(each.sql for each in statements)
        # What SQLAlchemy does with every error of the driver: it has no public name.
        connection._handle_dbapi_exception(error, sql, None, None, None)  # noqa: SLF001
    except BaseException as error:
        # A signal's, say. What was sent is under way, and its results are nobody's.
        connection.invalidate(error)
        raise
    finally:
        for ended in told:
            ended()
    return [
        statement.rows(result, known) for statement, result in zip(statements, results, strict=True)
    ]


def _notify_listeners(
    connection: Connection, statements: Sequence[_CompiledStatement], asks: Sequence[Statement]
) -> list[Callable[[], None]]:
    """Tell who listens to SQLAlchemy's statements, traces do; returns what tells of their end."""
    listeners = connection.dispatch
    if not (listeners.before_cursor_execute or listeners.after_cursor_execute):
        return []
    told: list[Callable[[], None]] = []
    for statement, each in zip(statements, asks, strict=True):
        said = (connection, None, statement.sql, each.parameters, SimpleNamespace(), False)
        for begins in listeners.before_cursor_execute:
            begins(*said)
        told += [partial(ends, *said) for ends in listeners.after_cursor_execute]
    return told


def _exchange(
    connection: Connection,
    statements: Sequence[_CompiledStatement],
    asks: Sequence[Statement],
    *,
    ends: bool,
) -> tuple[list[PGresult], Transformer]:
    """The results. Raises the first error, once nothing is under way any more."""
    known = _known(connection)
    to = known.to
    given = [
        statement.bind(each.parameters, known.transformer)
        for statement, each in zip(statements, asks, strict=True)
    ]
    _prepare(known, statements)
    begins = to.transaction_status == TransactionStatus.IDLE
    to.enter_pipeline_mode()
    if begins:
        to.send_query_params(_BEGIN, None)
    for statement, parameters in zip(statements, given, strict=True):
        if known.keeps:
            to.send_query_prepared(statement.name, parameters)
        else:
            to.send_query_params(statement.command, parameters, statement.types)
    if ends:
        to.send_query_params(_COMMIT, None)
    results = _results(known, begins + len(statements) + ends)
    if ends and results[-1].command_status != _COMMIT:
        raise psycopg.InternalError("the transaction was rolled back where it was to commit")
    return results[begins : begins + len(statements)], known.transformer


def _known(connection: Connection) -> _Known:
    """What is known of this connection."""
    info = connection.info
    known: _Known | None = info.get(_KNOWN)
    if known is None:
        driver = cast("BoundedConnection", connection.connection.driver_connection)
        known = info[_KNOWN] = _Known(
            driver,
            driver.pgconn,
            adapt.Transformer(driver),
            schema_of(connection),
            keeps=not info.get(POOLED),
        )
    return known


def _prepare(known: _Known, statements: Sequence[_CompiledStatement]) -> None:
    """Prepare those that are not yet, in a trip of their own."""
    new = {each.name: each for each in statements if each.name not in known.names}
    if not known.keeps or not new:
        return
    known.to.enter_pipeline_mode()
    for each in new.values():
        known.to.send_prepare(each.name, each.command, each.types)
    _results(known, len(new))
    known.names |= new.keys()


def _results(known: _Known, count: int) -> list[PGresult]:
    """So many results, the trip's; raises the first error that is among them."""
    to, ends = known.to, perf_counter() + known.driver.exchange_seconds
    to.pipeline_sync()
    try:
        results = [_next(to, ends) for _ in range(count)]
        _arrive(to, ends)
    except TimeoutError:
        raise known.driver.dropped(known.driver.exchange_seconds) from None
    to.get_result()  # that the server has come to the end of the trip
    to.exit_pipeline_mode()
    for each in results:
        _good(each)
    return results


def _good(result: PGresult) -> None:
    """Raise what was wrong: by the server, or with the connection where it said nothing."""
    if result.status in _GOOD:
        return
    if result.error_field(DiagnosticField.SQLSTATE) is None:
        raise psycopg.OperationalError(result.get_error_message().strip())
    raise error_from_result(result)


def _next(to: PGconn, ends: float) -> PGresult:
    """The next statement's result."""
    _arrive(to, ends)
    result = to.get_result()
    if result is None or to.status == ConnStatus.BAD:
        raise psycopg.OperationalError(to.get_error_message().strip() or "the connection is lost")
    _arrive(to, ends)
    to.get_result()  # a statement's results end with none
    return result


def _arrive(to: PGconn, ends: float) -> None:
    """Wait for the next result: awake at first, leaving the processor to others who want it.

    Raises `TimeoutError` once `ends` has come, by `perf_counter`.
    """
    sleeps_at = perf_counter() + AWAKE
    while to.is_busy():
        sending = to.flush()
        if perf_counter() < sleeps_at:
            os.sched_yield()
        else:
            _wait(to.socket, select.POLLIN | select.POLLOUT if sending else select.POLLIN, ends)
        to.consume_input()


def _wait(socket: int, what: int, ends: float) -> None:
    poll = select.poll()
    poll.register(socket, what)
    if not poll.poll(max(ends - perf_counter(), 0.0) * 1000):
        raise TimeoutError


AWAKE = 0.0005
"""Seconds. Most results of a lone claim are there by then, and falling asleep and waking up made it
a fifth longer."""
_BEGIN = b"BEGIN ISOLATION LEVEL READ COMMITTED"
"""As `schema.engine` has it: what follows in the trip is to see what was committed meanwhile."""
_COMMIT = b"COMMIT"
_KNOWN = "known for trips"
_GOOD = {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}


@dataclass
class _Known:
    """A connection, and what is known of it."""

    driver: BoundedConnection
    to: PGconn
    transformer: Transformer
    schema: str
    """That of the dialer's tables."""
    keeps: bool
    """Whether what is prepared is there at the next transaction: not behind a pooler."""
    names: set[bytes] = field(default_factory=set)
    """The statements that are prepared."""


class _CompiledStatement:
    """An expression as the server takes it: the order of its parameters, the form of its rows."""

    def __init__(self, expression: ClauseElement, schema: str) -> None:
        made = cast(SQLCompiler, expression.compile(dialect=_DIALECT))
        self.sql = in_schema(str(made), schema)
        self.command = self.sql.encode()
        self.name = b"trips_%d" % next(_NUMBERS)
        binds = [made.binds[name] for name in made.positiontup or ()]
        self._binds = [
            (each.key, _dumper(each), each.effective_value, each.required) for each in binds
        ]
        self.types = [_INTERVAL if isinstance(each.type, Interval) else 0 for each in binds]
        """The one that no cast names in the statement; 0: the server sees it."""
        columns = getattr(expression, "exported_columns", ())
        loaders = (
            each.type.dialect_impl(_DIALECT).result_processor(_DIALECT, None) for each in columns
        )
        self._loaders = [(place, each) for place, each in enumerate(loaders) if each is not None]
        self._row: Callable[[Sequence[Any]], Any] | None = None

    def bind(self, said: Mapping[str, Any], to: Transformer) -> list[Any]:
        """The parameters in their order, as text."""
        values = (
            dump(said[key] if required else said.get(key, default))
            for key, dump, default, required in self._binds
        )
        return [
            each
            if each is None or isinstance(each, bytes)
            else to.get_dumper(each, PyFormat.TEXT).dump(each)
            for each in values
        ]

    def rows(self, result: PGresult, to: Transformer) -> Rows:
        """What came back."""
        if not result.ntuples:
            return []
        if self._row is None:
            names = [(result.fname(place) or b"").decode() for place in range(result.nfields)]
            made: Any = namedtuple("Row", names, rename=True)  # type: ignore[misc]  # noqa: PYI024
            self._row = made._make
        to.set_pgresult(result)
        found = to.load_rows(0, result.ntuples, self._loaded if self._loaders else self._row)
        return cast("Rows", found)

    def _loaded(self, values: Sequence[Any]) -> object:
        row = list(values)
        for place, load in self._loaders:
            row[place] = load(row[place])
        return self._row(row) if self._row else row


def _dumper(bind: BindParameter[Any]) -> Callable[[Any], Any]:
    if isinstance(bind.type, JSONB):
        return lambda value: None if value is None else to_json(value)
    found = bind.type.dialect_impl(_DIALECT).bind_processor(_DIALECT)
    return found or (lambda value: value)


_DIALECT = PGDialect_psycopg(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
_NUMBERS = itertools.count(1)
_INTERVAL = psycopg.adapters.types["interval"].oid
_compiled = cache(_CompiledStatement)
