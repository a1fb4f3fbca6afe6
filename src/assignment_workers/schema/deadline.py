"""Connections to PostgreSQL whose every exchange ends, on this process's own clock.

A server that is frozen, or that packets no longer reach, answers nothing: its limits on statements
are its own to keep, and its host answers keepalives for it. So each exchange has a deadline here.
After it the connection is dropped, and whether a COMMIT was carried out is unknown.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import _WaitTimeout

T = TypeVar("T")

EXCHANGE_SECONDS = 5.0
"""The longest wait for an answer, where a connection is given no other."""
MARGIN_SECONDS = 2.0
"""How much longer than the server's own limit on a statement: the server's word comes first."""
LOOK_SECONDS = 10.0
"""Between two looks at a statement that may take long."""


class NoAnswer(psycopg.OperationalError):
    """The server said nothing until the deadline; the connection is closed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"no answer from the server within {seconds:g} s; the connection is closed"
        )


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that raises `NoAnswer`, closed, in place of waiting past its deadline."""

    exchange_seconds = EXCHANGE_SECONDS
    """The longest wait for an answer."""
    dialer_schema = "public"
    """The schema that has the dialer's tables (`schema.dialer_schema`)."""
    dialer_schema_named = False
    """Whether the address names that schema."""
    is_at_work: Callable[[BoundedConnection], bool] | None = None
    """Asked at each deadline, for statements that take long: whether the wait is to go on."""

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """As psycopg's, with the deadline of this connection; `timeout` is the caller's own."""
        if timeout is not None:
            return super().wait(gen, interval=interval, timeout=timeout)
        began = monotonic()
        while True:
            try:
                return super().wait(gen, interval=interval, timeout=self.exchange_seconds)
            except _WaitTimeout:
                if self.is_at_work is None or not self.is_at_work(self):
                    raise self.dropped(monotonic() - began) from None

    def dropped(self, seconds: float) -> NoAnswer:
        """Close the connection without a word to the server; the error to raise."""
        drop(self)
        return NoAnswer(round(seconds, 1))


def drop(connection: psycopg.Connection[Any]) -> None:
    """Close a connection whose server may not answer: nothing is sent, nothing waited for."""
    if not connection.closed:
        hang_up(connection)
        connection.pgconn.finish()


def hang_up(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """End the connection's line: what waits for an answer over it, anywhere, fails at once."""
    if connection.closed:
        return
    try:
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
            line.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side has closed it already


@contextmanager
def ending(connection: psycopg.AsyncConnection[Any], seconds: float) -> Iterator[None]:
    """Within: what is asked over the connection fails after so many seconds.

    A cancelled task would wait on, for the server to confirm that it does no more.
    """
    end = asyncio.get_running_loop().call_later(seconds, hang_up, connection)
    try:
        yield
    finally:
        end.cancel()


def at_work(connection: BoundedConnection) -> bool:
    """Whether the server still carries out this connection's statement, asked over another one."""
    parameters: dict[str, Any] = conninfo_to_dict(
        connection.info.dsn, password=connection.info.password or None
    )
    parameters |= {"application_name": "assignment-workers look", "connect_timeout": 5}
    try:
        with BoundedConnection.connect(**parameters, autocommit=True) as looking:
            found = looking.execute(
                "SELECT state = 'active' FROM pg_stat_activity WHERE pid = %s",
                [connection.info.backend_pid],
            ).fetchone()
    except psycopg.OperationalError:
        return False
    return bool(found and found[0])
