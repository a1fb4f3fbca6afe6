"""Connections to an external CRM: short timeouts, UTC, read only."""

from __future__ import annotations

import math
import os
import socket
from contextlib import closing
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, QueuePool, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from assignment_workers.addresses import is_postgres, query_of
from assignment_workers.errors import UsageError
from assignment_workers.schema.deadline import MARGIN_SECONDS
from assignment_workers.schema.dialer_schema import PUBLIC
from assignment_workers.schema.engine import KEEPALIVES, bound, parameters_of, url_of

MYSQL = frozenset({"mysql", "mariadb"})
CONNECT_SECONDS = 5.0


def reader(url: str, seconds: float, *, pool: int | None) -> Engine:
    """Return an engine by which an external CRM is read, with sessions in UTC.

    The server refuses writes in these sessions. `seconds`: the caller's limit per statement, after
    which the server ends the statement. The driver's limits are longer by `MARGIN_SECONDS`. So the
    caller's limit is reached before them, and its message names the cause; the driver's end the
    thread that the caller abandoned. `pool`: the number of connections to keep open; None: a
    connection is opened for each use.
    """
    milliseconds = round(seconds * 1000)
    at_most = seconds + MARGIN_SECONDS
    connect_at_most = min(seconds, CONNECT_SECONDS) + MARGIN_SECONDS
    arguments: dict[str, Any]
    if not is_postgres(url):
        address = make_url(url)
        address = address.set(drivername=f"{address.get_backend_name()}+pymysql")
        if "charset" not in address.query:
            address = address.update_query_dict({"charset": "utf8mb4"})
        arguments = {
            "connect_timeout": connect_at_most,
            "read_timeout": at_most,
            "write_timeout": at_most,
        }
        limits = ["SET time_zone = '+00:00'", "SET SESSION TRANSACTION READ ONLY"]
    else:
        address = url_of(parameters_of(url))
        if (schema := query_of(url).get("schema", PUBLIC)) != PUBLIC:
            raise UsageError(
                f"CRM_DATABASE_URL: schema={schema}: the dialer's file names the CRM's tables with"
                " their schemas; leave the parameter out"
            )
        arguments = {
            "application_name": "assignment-workers crm",
            "connect_timeout": math.ceil(connect_at_most),
            **KEEPALIVES,
        }
        limits = [
            "SET timezone TO 'UTC'",
            f"SET statement_timeout TO {milliseconds}",
            "SET default_transaction_read_only TO on",
        ]
    pooled: dict[str, Any] = (
        {"poolclass": NullPool}
        if pool is None
        else {
            "poolclass": QueuePool,
            "pool_size": pool,
            "max_overflow": 0,
            "pool_timeout": at_most,
            "pool_recycle": 600,
        }
    )
    engine = create_engine(address, connect_args=arguments, **pooled)

    def connected(to: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        with closing(to.cursor()) as cursor:
            for limit in limits:
                cursor.execute(limit)
            for limit in _statement_limits(engine, cursor, seconds):
                cursor.execute(limit)
        to.commit()

    event.listen(engine, "connect", connected)
    if engine.dialect.name == "postgresql":
        bound(engine, timedelta(seconds=seconds))
    return engine


def _statement_limits(engine: Engine, cursor: DBAPICursor, seconds: float) -> list[str]:
    """Return the statement that sets the time limit per statement on MariaDB or MySQL.

    An empty list for any other server.
    """
    if engine.dialect.name not in MYSQL:
        return []
    cursor.execute("SELECT VERSION()")
    if "mariadb" in str(cursor.fetchone()).lower():
        return [f"SET SESSION max_statement_time = {seconds:g}"]
    return [f"SET SESSION max_execution_time = {round(seconds * 1000)}"]


def cut(connection: Connection) -> None:
    """Shut down a connection's socket. A thread that waits on the connection then fails at once."""
    if connection.closed:
        return
    try:
        driver: Any = connection.connection.driver_connection
        descriptor = driver.pgconn.socket if hasattr(driver, "pgconn") else driver._sock.fileno()  # noqa: SLF001
        with socket.socket(fileno=os.dup(descriptor)) as line:
            line.shutdown(socket.SHUT_RDWR)
    except (OSError, AttributeError, SQLAlchemyError):
        return  # already closed


def is_wrong(error: BaseException | None) -> bool:
    """Return True if the CRM's error is permanent, such as a refused login or an unknown host."""
    reason: object = getattr(error, "orig", None) or error
    code = getattr(reason, "args", (None,))[0]
    return code in _WRONG_CODES or any(each in str(reason) for each in _WRONG_WORDS)


_WRONG_CODES = {1044, 1045, 1049, 1698}
"""MySQL's error codes for a refused login and for a database that does not exist."""
_WRONG_WORDS = (
    "password authentication failed",
    "does not exist",
    "Name or service not known",
    "failed to resolve host",
    "no pg_hba.conf entry",
)
