"""Run statements of the busiest transactions: compiled once, prepared, several in a round trip.

The statements are SQLAlchemy expressions, in a transaction that SQLAlchemy begins and ends. But
SQLAlchemy does not execute them, because that is slow: SQLAlchemy and the driver need more time to
execute one statement than the database needs for a whole claim. So the statements go directly over
the driver's connection. Statements that do not depend on one another's rows share a round trip,
together with the transaction's BEGIN or COMMIT.
"""

from __future__ import annotations

import itertools
import os
import select
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from time import perf_counter
from types import SimpleNamespace
from typing import Any, TypeVar, cast
from weakref import ReferenceType, WeakKeyDictionary, ref

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
"""The rows of a result: named tuples, which are read like SQLAlchemy's rows."""

F = TypeVar("F", bound=Callable[..., Any])

EXPRESSIONS_CACHED = 256
"""The `maxsize` of each cache of SQL expressions.

A cache has one expression for each combination of arguments that is in use, such as the rules of a
dialer queue and the size of a batch. The limit is several times the usual number of combinations.
"""


def expression_cache(make: F) -> F:
    """Cache the SQL expressions that `make` returns, by the arguments of the call.

    It is meant for expressions that depend on the policies (rules of the dialer queues), because
    changed settings can make new policies, and the expressions of old policies must be dropped. At
    most `EXPRESSIONS_CACHED` expressions are stored. The least recently used one is dropped first,
    together with its compiled form and its prepared statements.
    """
    return cast("F", lru_cache(maxsize=EXPRESSIONS_CACHED)(make))


@dataclass(frozen=True)
class Statement:
    """A SQL expression to execute, with parameters.

    The compiled form is cached as long as the expression object exists. An expression for repeated
    use must therefore be a module-level object, or come from a function with `expression_cache`;
    otherwise it is compiled and prepared each time.
    """

    statement: ClauseElement
    parameters: Mapping[str, Any] = field(default_factory=dict)


def run_statements(connection: Connection, *asks: Statement) -> list[Rows]:
    """Execute the statements `asks` in order, in one round trip; return the rows of each.

    If a statement fails, the following ones are not executed. Errors are raised as by
    `Connection.execute`, including that of a lost connection; the caller must then roll back.
    """
    return _go(connection, asks, ends=False)


def commit(connection: Connection, *asks: Statement) -> None:
    """Execute the statements `asks` in order and commit, in one round trip: all or nothing.

    The caller must then call SQLAlchemy's own commit, which sends nothing more.
    """
    _go(connection, asks, ends=True)


def _go(connection: Connection, asks: Sequence[Statement], *, ends: bool) -> list[Rows]:
    named = _known(connection).named
    statements = [_compiled(each.statement, named) for each in asks]
    told = _notify_listeners(connection, statements, asks)
    try:
        results, known = _exchange(connection, statements, asks, ends=ends)
    except psycopg.Error as error:
        if isinstance(error, FeatureNotSupported):
            # A table of a prepared statement was changed. A new connection prepares it again.
            connection.invalidate(error)
        sql = "; ".join(each.sql for each in statements)
        # SQLAlchemy's treatment of every driver error; it has no public name.
        connection._handle_dbapi_exception(error, sql, None, None, None)  # noqa: SLF001
    except BaseException as error:
        # A signal handler's error, say. The statements are under way and nobody reads their
        # results.
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
    """Call SQLAlchemy's listeners for the start of an execution, such as those of traces.

    Returns the functions to call when the statements have been executed.
    """
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
    """Send the statements in one round trip; return their results and psycopg's value decoder.

    `ends`: True to commit at the end. Raises the first error, after all results have arrived.
    """
    known = _known(connection)
    to = known.to
    given = [
        statement.bind(each.parameters, known.transformer)
        for statement, each in zip(statements, asks, strict=True)
    ]
    _prepare(known, statements)
    for statement in statements:
        statement.again = True
    begins = to.transaction_status == TransactionStatus.IDLE
    to.enter_pipeline_mode()
    if begins:
        to.send_query_params(_BEGIN, None)
    for statement, parameters in zip(statements, given, strict=True):
        if statement.name in known.prepared:
            to.send_query_prepared(statement.name, parameters)
        else:
            to.send_query_params(statement.command, parameters, statement.types)
    if ends:
        to.send_query_params(_COMMIT, None)
    results = _results(known, begins + len(statements) + ends)
    if ends and results[-1].command_status != _COMMIT:
        raise psycopg.InternalError("the transaction was rolled back where it was to commit")
    return results[begins : begins + len(statements)], known.transformer


def _known(connection: Connection) -> _ConnectionState:
    """Return the state cached for this connection, such as the names of its prepared statements."""
    info = connection.info
    known: _ConnectionState | None = info.get(_KNOWN)
    if known is None:
        driver = cast("BoundedConnection", connection.connection.driver_connection)
        known = info[_KNOWN] = _ConnectionState(
            driver,
            driver.pgconn,
            adapt.Transformer(driver),
            (
                schema_of(connection),
                *connection.get_execution_options().get("schema_translate_map", {}).items(),
            ),
            keeps=not info.get(POOLED),
        )
    return known


def _prepare(known: _ConnectionState, statements: Sequence[_CompiledStatement]) -> None:
    """Prepare the statements that are not prepared yet, in a separate round trip.

    A statement is prepared at its second execution, because some expressions are executed only
    once, and the server keeps a prepared statement as long as the connection. The same round trip
    drops prepared statements that are no longer used: the Python object of their SQL expression was
    removed from memory.
    """
    if not known.keeps:
        return
    new = {each.name: each for each in statements if each.again and each.name not in known.prepared}
    if not new:
        return
    forgotten = [name for name, made in known.prepared.items() if made() is None]
    for name in forgotten:
        del known.prepared[name]
    known.to.enter_pipeline_mode()
    for name in forgotten:
        known.to.send_query_params(b"DEALLOCATE " + name, None)
    for each in new.values():
        known.to.send_prepare(each.name, each.command, each.types)
    _results(known, len(forgotten) + len(new))
    known.prepared.update((name, ref(each)) for name, each in new.items())


def _results(known: _ConnectionState, count: int) -> list[PGresult]:
    """Return the next `count` results of the round trip; raise the first error among them."""
    to, ends = known.to, perf_counter() + known.driver.exchange_seconds
    to.pipeline_sync()
    try:
        results = [_next(to, ends) for _ in range(count)]
        _arrive(to, ends)
    except TimeoutError:
        raise known.driver.dropped(known.driver.exchange_seconds) from None
    to.get_result()  # the server has come to the end of the round trip
    to.exit_pipeline_mode()
    for each in results:
        _good(each)
    return results


def _good(result: PGresult) -> None:
    """Raise the server's error in `result`, if any; `OperationalError` if the connection failed."""
    if result.status in _GOOD:
        return
    if result.error_field(DiagnosticField.SQLSTATE) is None:
        raise psycopg.OperationalError(result.get_error_message().strip())
    raise error_from_result(result)


def _next(to: PGconn, ends: float) -> PGresult:
    """Return the next statement's result from the connection `to`.

    Raises `TimeoutError` if it has not arrived at `ends`, a time of `perf_counter`.
    """
    _arrive(to, ends)
    result = to.get_result()
    if result is None or to.status == ConnStatus.BAD:
        raise psycopg.OperationalError(to.get_error_message().strip() or "the connection is lost")
    _arrive(to, ends)
    to.get_result()  # a statement's results end with None
    return result


def _arrive(to: PGconn, ends: float) -> None:
    """Wait for the next result: first by yielding the processor, then by polling the socket.

    Raises `TimeoutError` if it has not arrived at `ends`, a time of `perf_counter`.
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
"""Seconds for which the process stays awake while it waits for a result; then it sleeps.

Most results of a single claim arrive in that time. When the process slept at once, such a claim
took a fifth longer.
"""
_BEGIN = b"BEGIN ISOLATION LEVEL READ COMMITTED"
"""The statement that begins a transaction, at the isolation level of `schema.engine`: each
statement of the round trip must see the newest commits.
"""
_COMMIT = b"COMMIT"
_KNOWN = "known for trips"
_GOOD = {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}


Named = tuple[Any, ...]
"""The schema names that a statement's text depends on.

First the schema of the dialer's tables, then SQLAlchemy's schema translations, as pairs.
"""


@dataclass
class _ConnectionState:
    """The state cached for one database connection: type conversions and prepared statements."""

    driver: BoundedConnection
    to: PGconn
    transformer: Transformer
    named: Named
    keeps: bool
    """True if prepared statements outlast a transaction. False behind a connection pooler."""
    prepared: dict[bytes, ReferenceType[_CompiledStatement]] = field(default_factory=dict)
    """The prepared statements by name; empty behind a connection pooler."""


class _CompiledStatement:
    """A compiled SQL expression: its text, its parameters' order, the decoding of its rows."""

    def __init__(self, expression: ClauseElement, named: Named) -> None:
        schema, *translated = named
        options: dict[str, Any] = (
            {"schema_translate_map": dict(translated), "render_schema_translate": True}
            if translated
            else {}
        )
        made = cast(SQLCompiler, expression.compile(dialect=_DIALECT, **options))
        self.sql = in_schema(str(made), schema)
        self.command = self.sql.encode()
        self.name = b"trips_%d" % next(_NUMBERS)
        binds = [made.binds[name] for name in made.positiontup or ()]
        self._binds = [
            (each.key, _dumper(each), each.effective_value, each.required) for each in binds
        ]
        self.types = [_INTERVAL if isinstance(each.type, Interval) else 0 for each in binds]
        """The type oid of each parameter, in the statement's order.

        For an interval, it is the oid of PostgreSQL's type `interval`. For any other parameter it
        is 0, and the server infers the type, as a rule from a cast in the SQL such as `$1::BIGINT`.
        SQLAlchemy writes such a cast for most types, but not for an interval.
        """
        columns = getattr(expression, "exported_columns", ())
        loaders = (
            each.type.dialect_impl(_DIALECT).result_processor(_DIALECT, None) for each in columns
        )
        self._loaders = [(place, each) for place, each in enumerate(loaders) if each is not None]
        self._row: Callable[[Sequence[Any]], Any] | None = None
        self.again = False
        """True from the second execution on; the statement is then prepared on the server."""

    def bind(self, said: Mapping[str, Any], to: Transformer) -> list[Any]:
        """Return the values of the statement's parameters as text, in the statement's order.

        `said` maps the names of the parameters to their values.
        """
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
        """Return the rows of a result as named tuples."""
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
_STATEMENTS: WeakKeyDictionary[ClauseElement, dict[Named, _CompiledStatement]] = WeakKeyDictionary()


def _compiled(expression: ClauseElement, named: Named) -> _CompiledStatement:
    """Return the compiled form of an expression, cached as long as the expression object exists."""
    forms = _STATEMENTS.get(expression)
    if forms is None:
        forms = _STATEMENTS[expression] = {}
    found = forms.get(named)
    if found is None:
        found = forms[named] = _CompiledStatement(expression, named)
    return found
