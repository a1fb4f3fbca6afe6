"""Connections to PostgreSQL with the timeouts and the time zone that every process needs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import psycopg
from psycopg.conninfo import make_conninfo
from pydantic_core import to_json
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from assignment_workers.addresses import hosts_of, libpq_parameters, query_of, with_service
from assignment_workers.errors import DatabaseUnavailable, UsageError
from assignment_workers.schema.deadline import (
    LOOK_SECONDS,
    MARGIN_SECONDS,
    BoundedConnection,
    at_work,
)
from assignment_workers.schema.dialer_schema import locate
from assignment_workers.schema.hosts import MOVED, WRITES
from assignment_workers.schema.prisma import in_words_of_libpq, schema_named
from assignment_workers.schema.times import clamp
from assignment_workers.settings import Settings

KEEPALIVES = {
    "keepalives": "1",
    "keepalives_idle": "2",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
}
"""Connection parameters by which a vanished host is detected in about five seconds."""

CONNECT_SECONDS = 5
"""The most seconds to wait for a connection to one host, unless the address has a smaller limit."""
POOLED = "behind a pooler"
POOL_SECONDS = 30.0
"""The most seconds to wait for a free connection of the pool. A shorter statement timeout takes
precedence.
"""
LONG_SECONDS = 100.0
"""The number of seconds above which a statement timeout counts as long.

While a statement with a long timeout runs, this process asks the server at intervals if it still
executes the statement, and stops waiting if not. Behind a connection pooler it does not ask.
`MARGIN_SECONDS` is added to the timeout before it is compared with this number.
"""

FORMS = {
    "timezone": "UTC",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
}
"""The session settings for the text format of values, which the driver parses. They take precedence
over settings of the role or the database.
"""
PLANS_WITHOUT_INDEX = ("seqscan", "bitmapscan", "hashjoin", "mergejoin")
"""The ways of reading and joining tables that become slower as the tables grow.

Each name is the end of the name of a PostgreSQL setting: `seqscan` stands for `enable_seqscan`. The
function `connect` sets these settings to off if `index_plans_only` is true.
"""


def driver_url(database_url: str) -> URL:
    """Convert a PostgreSQL address to an SQLAlchemy URL with the driver psycopg 3.

    `database_url` may have any form that libpq accepts; parameters of a service file are included.
    Of several hosts the primary is requested. Prisma's parameters are translated, except `schema`,
    which `locate_dialer` reads. Raises `UsageError` for an address that cannot be used.
    """
    found = parameters_of(database_url)
    attributes = found.get("target_session_attrs")
    if len(hosts_of(found)) > 1:
        found.setdefault("target_session_attrs", "read-write")
        if found["target_session_attrs"] not in WRITES:
            raise UsageError(
                f"the database's address: target_session_attrs={attributes}: of several hosts the"
                " one that accepts writes is needed: read-write, which is also the default"
            )
    return url_of(found)


def parameters_of(database_url: str) -> dict[str, str]:
    """Return the libpq parameters of a PostgreSQL address and of the service that it names.

    Prisma's parameters are translated. Raises `UsageError`, with one line that omits the address,
    if the address cannot be read.
    """
    try:
        found = libpq_parameters(database_url, in_words_of_libpq)
        return with_service(found, os.environ)  # noqa: TID251 - as libpq does
    except ValueError as error:
        raise UsageError(f"the database's address: {error}") from None


def url_of(parameters: Mapping[str, str]) -> URL:
    """Return libpq's parameters as a URL that SQLAlchemy passes to psycopg unchanged."""
    rest = dict(parameters)
    user, password = rest.pop("user", None), rest.pop("password", None)
    database = rest.pop("dbname", None)
    several = hosts_of(rest)
    for name in ("host", "port") if several else ():
        rest.pop(name, None)
    host = port = None
    if len(several) == 1:
        # SQLAlchemy would split a host in the query at its colon.
        host, given = several[0].get("host"), several[0].get("port")
        port = int(given) if given else None
    elif several:
        # SQLAlchemy refuses ports without hosts.
        rest["host"] = ",".join(each.get("host") or each["hostaddr"] for each in several)
        rest["port"] = ",".join(each.get("port", "") for each in several)
    return URL.create(
        "postgresql+psycopg", user, password, host, port, database=database, query=rest
    )


def conninfo(url: URL, **parameters: str) -> str:
    """Convert a URL that `driver_url` returned to a libpq connection string.

    Limits for the connection attempt and keepalives are added (`connect_arguments`). The parameters
    in `parameters` are added last, and replace others of the same names.
    """
    dialect: Any = url.get_dialect()()
    _, given = dialect.create_connect_args(url)
    return make_conninfo(**(given | connect_arguments(given) | parameters))


def connect_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return connection parameters that limit the connection attempt and detect a vanished host.

    The returned parameters are to replace those of the same names in `given`, the parameters of the
    database's address. If `given` has a shorter limit for the connection attempt, that limit is
    returned.
    """
    said = str(given.get("connect_timeout", ""))
    seconds = min(int(said), CONNECT_SECONDS) if said.isdecimal() and int(said) else CONNECT_SECONDS
    return {"connect_timeout": seconds, **KEEPALIVES}


@dataclass
class ConnectionGate:
    """A switch that stops engines from opening connections while `is_closed` is true.

    Each attempt to open one then raises `psycopg.OperationalError` at once.
    """

    is_closed: bool = False


def connect(
    database_url: str,
    *,
    name: str,
    statement_timeout: timedelta,
    lock_timeout: timedelta = timedelta(seconds=5),
    pool_size: int = 1,
    index_plans_only: bool = False,
    gate: ConnectionGate | None = None,
) -> Engine:
    """Create an engine with UTC sessions, READ COMMITTED isolation and bounded waits.

    Each session sets its time zone and the text formats of values (`FORMS`) itself. So other values
    of these settings, which a role or a database may have, have no effect. `name` is shown in
    `pg_stat_activity`. No connection is opened yet.

    Each new connection is set up by one statement instead of start-up options, because poolers such
    as PgBouncer refuse unknown options. Behind a pooler, each transaction may run in another
    session: the set-up is then repeated in each transaction, and no statement is prepared.

    `index_plans_only`: use an index to look up rows wherever a suitable one exists. For this,
    sequential scans, bitmap scans, hash joins and merge joins are switched off, and so is JIT
    compilation. The reason: a prepared statement keeps its plan. A plan that was made while a table
    was small would continue to scan the whole table as the table grows, until statistics are
    gathered again. A table without a suitable index must therefore stay small. Otherwise its query
    must switch hash joins and merge joins on again, as in `assignment.crm.reader`.

    `gate`: refuses new connections while it is closed. If it is None, no connection is refused.

    This process also limits its own wait for each answer (`schema.deadline`). The wait ends
    two seconds after the statement timeout. There is one exception: the timeout is long
    (`LONG_SECONDS`), and the connection leads to no pooler. This process then asks the server at
    intervals, on another connection, if the server still executes the statement. If not, or if the
    server cannot be asked, this process waits at most two more seconds.
    """
    milliseconds = {
        "statement_timeout": statement_timeout,
        "lock_timeout": lock_timeout,
        "idle_in_transaction_session_timeout": statement_timeout + timedelta(seconds=5),
    }
    limits = [f"{setting} TO '{value}'" for setting, value in FORMS.items()] + [
        f"{setting} TO {round(limit.total_seconds() * 1000)}"
        for setting, limit in milliseconds.items()
    ]
    if index_plans_only:
        limits += [f"enable_{way} TO off" for way in PLANS_WITHOUT_INDEX]
        # Before PostgreSQL 18 a disabled plan type without an alternative gets a cost that triggers
        # JIT.
        limits.append("jit TO off")
    url = driver_url(database_url)
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=min(POOL_SECONDS, statement_timeout.total_seconds()),
        pool_recycle=3600,
        hide_parameters=True,  # they would stand in logs: notes, reasons, numbers
        json_serializer=lambda value: to_json(value).decode(),
        connect_args={"application_name": name, **connect_arguments(url.query)},
    )
    _limit(engine, limits)
    locate_dialer(engine, database_url)
    bound(engine, statement_timeout, gate)
    return engine


def locate_dialer(engine: Engine, database_url: str) -> None:
    """Prepare the engine's connections for the schema in which the dialer's tables are.

    The schema is the address's parameter `schema`, if it has one, or else is looked up in the
    database (`dialer_schema.locate`). Raises `UsageError` if the parameter's value cannot be used.
    Opening a connection raises `UsageError` if the database records another schema.
    """
    locate(engine, schema_of_dialer(database_url))


def schema_of_dialer(database_url: str) -> str | None:
    """Return the schema of the dialer's tables from the address's parameter `schema`, or None.

    Raises `UsageError` if the name cannot be used.
    """
    return schema_named(query_of(database_url))


def bound(engine: Engine, longest: timedelta, gate: ConnectionGate | None = None) -> None:
    """Limit the wait for each answer on the engine's connections.

    `longest`: the statement timeout, from which the limit is computed. `gate`: refuses new
    connections while it is closed.

    Call this function after all other listeners for new connections are registered. Those listeners
    execute statements on each new connection, and wait at most five seconds (`EXCHANGE_SECONDS`)
    for each answer. The listener that this function registers runs after them, and only then sets
    the limit computed from `longest`.
    """
    seconds = longest.total_seconds() + MARGIN_SECONDS

    def make(
        _: object, __: object, given: Sequence[str], parameters: dict[str, Any]
    ) -> BoundedConnection:
        if gate is not None and gate.is_closed:
            raise psycopg.OperationalError("PostgreSQL does not answer")
        made = BoundedConnection.connect(*given, **parameters)
        made.exchange_seconds = min(seconds, made.exchange_seconds)
        return made

    def is_set_up(_: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        of = cast(BoundedConnection, record.driver_connection)
        if seconds <= LONG_SECONDS:
            of.exchange_seconds = seconds
            return
        try:
            pooled = _is_pooled(of)
            of.rollback()
        except psycopg.Error:
            of.close()  # the pool never had it, and would leave it open
            raise
        if pooled:
            of.exchange_seconds = seconds
        else:
            of.exchange_seconds, of.is_at_work = LOOK_SECONDS, at_work

    def is_of_primary(_: DBAPIConnection, record: ConnectionPoolEntry, __: object) -> None:
        if cast(BoundedConnection, record.driver_connection).has_moved:
            raise DisconnectionError(MOVED)

    event.listen(engine, "do_connect", make)
    event.listen(engine, "connect", is_set_up)
    if "," in str(engine.url.query.get("host", "")):
        event.listen(engine, "checkout", is_of_primary)


def direct_url(settings: Settings) -> str:
    """Return the address of PostgreSQL itself, for uses that outlast a transaction.

    These are the sequencer's lock, `LISTEN` and migrations. Raises `UsageError` if the address
    leads to a connection pooler, `DatabaseUnavailable` if no server answers.
    """
    named = settings.lock_database_url
    setting = "ASSIGNMENT_WORKERS_LOCK_DATABASE_URL" if named else "DATABASE_URL"
    url = named or settings.database
    address = conninfo(driver_url(url))
    try:
        with BoundedConnection.connect(address, autocommit=True) as connection:
            pooled = _is_pooled(connection)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(
            f"the database cannot be reached: {setting}: {str(error).strip().splitlines()[0]}"
        ) from error
    if pooled:
        raise UsageError(
            f"{setting} leads to a connection pooler; the sequencer's lock, live events and"
            " migrations need the PostgreSQL server itself: give its address as"
            " ASSIGNMENT_WORKERS_LOCK_DATABASE_URL"
        )
    return url


def _is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Return True if the connection leads to a connection pooler.

    A pooler invents the process id that it reports when the connection is opened, so the process
    that answers has another id.
    """
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return row is None or row[0] != connection.info.backend_pid


def _limit(engine: Engine, limits: Sequence[str]) -> None:
    def connected(_: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        to = cast("psycopg.Connection[Any]", record.driver_connection)
        try:
            record.info[POOLED] = pooled = _is_pooled(to)
            # psycopg must prepare nothing: after a rollback, say, it would deallocate the
            # statements that `pipeline` has prepared, too.
            to.prepare_threshold = None
            clamp(to)
            if not pooled:
                to.execute("; ".join(f"SET {limit}" for limit in limits))
            to.commit()
        except psycopg.Error:
            to.close()  # the pool never had it, and would leave it open
            raise

    def begun(connection: Connection) -> None:
        if connection.info.get(POOLED):
            connection.exec_driver_sql("; ".join(f"SET LOCAL {limit}" for limit in limits))

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)
