"""Connections to PostgreSQL, with the time limits and the zone that every process needs."""

from __future__ import annotations

from datetime import timedelta

from pydantic_core import to_json
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

KEEPALIVES = {
    "keepalives": "1",
    "keepalives_idle": "2",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
}
"""A host that vanished is noticed in about five seconds, in whichever state the connection was."""


def driver_url(database_url: str) -> URL:
    """`database_url` with psycopg 3 as its driver, whichever way the operator wrote it."""
    return make_url(database_url).set(drivername="postgresql+psycopg")


def connect(
    database_url: str,
    *,
    name: str,
    statement_timeout: timedelta,
    lock_timeout: timedelta = timedelta(seconds=5),
    pool_size: int = 1,
) -> Engine:
    """An engine whose sessions speak UTC, run READ COMMITTED and give up in a known time.

    `name` is what `pg_stat_activity` shows. No connection is made yet. Set-up is one statement a
    connection, not start-up options: poolers such as PgBouncer refuse unknown options.
    """
    milliseconds = {
        "statement_timeout": statement_timeout,
        "lock_timeout": lock_timeout,
        "idle_in_transaction_session_timeout": statement_timeout + timedelta(seconds=5),
    }
    set_up = "SET timezone TO 'UTC'" + "".join(
        f"; SET {setting} TO {round(limit.total_seconds() * 1000)}"
        for setting, limit in milliseconds.items()
    )
    engine = create_engine(
        driver_url(database_url),
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        pool_recycle=3600,
        json_serializer=lambda value: to_json(value).decode(),
        connect_args={"application_name": name, "connect_timeout": 5, **KEEPALIVES},
    )
    _on_connect(engine, set_up)
    return engine


def _on_connect(engine: Engine, statement: str) -> None:
    def set_up(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()
        connection.commit()

    event.listen(engine, "connect", set_up)
