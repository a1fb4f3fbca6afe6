"""Connections to PostgreSQL with a deadline for each exchange, on this process's own clock.

A frozen server does not answer. Its statement timeout does not help, because the server itself
enforces the timeout. Keepalives do not help either, because the host of the frozen server still
answers them; they only detect a host that is gone. So each exchange has a deadline here. At the
deadline the connection is dropped. If the exchange had a COMMIT, it is then unknown whether the
COMMIT was carried out.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any, Self, TypeVar, cast

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import _WaitTimeout
from psycopg.pq import TransactionStatus

from assignment_workers.addresses import HOST_PARAMETERS
from assignment_workers.schema import hosts

T = TypeVar("T")

EXCHANGE_SECONDS = 5.0
"""The most seconds to wait for a server's answer, unless a connection has another limit."""
MARGIN_SECONDS = 2.0
"""Seconds by which this process waits longer for an answer than the server's statement timeout.

The server's own error about the timeout then arrives before this process gives up.
"""
LOOK_SECONDS = 10.0
"""Seconds between two checks that the server still executes a long statement."""


class NoAnswer(psycopg.OperationalError):
    """The server did not answer before the deadline. The connection is closed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"no answer from the server within {seconds:g} s; the connection is closed"
        )


class BoundedConnection(psycopg.Connection[Any]):
    """A database connection that closes and raises `NoAnswer` if an answer misses its deadline."""

    exchange_seconds = EXCHANGE_SECONDS
    """The most seconds to wait for one answer of the server."""
    dialer_schema = "public"
    """The schema of the dialer's tables (`schema.dialer_schema`)."""
    dialer_schema_named = False
    """True if the database address names the dialer's schema."""
    is_at_work: Callable[[BoundedConnection], bool] | None = None
    """A function that reports if the server still executes the connection's statement.

    It is set if the statement timeout is long, and is called whenever no answer has arrived for
    `exchange_seconds`. If it returns True, the connection waits on. None: the server is not asked.
    """
    served: hosts.Served | None = None
    """The host that this connection leads to, if the address has several hosts; otherwise None.

    Also None if the address does not request the primary of its hosts.
    """

    @classmethod
    def connect(cls, conninfo: str = "", **given: Any) -> Self:  # noqa: ANN401 - psycopg's
        """Open a connection. The arguments are those of `psycopg.connect`.

        If the address has several hosts and its `target_session_attrs` requires the primary, all
        hosts are asked and the connection leads to the primary (`schema.hosts`).
        """
        parameters: dict[str, Any] = {**conninfo_to_dict(conninfo), **given}
        several = hosts.among(parameters)
        if several is None:
            return super().connect(conninfo, **given)
        for name in HOST_PARAMETERS:
            parameters.pop(name, None)
        parameters["connect_timeout"] = hosts.CONNECT_SECONDS
        connect = super().connect

        def to(host: Mapping[str, str], **more: Any) -> BoundedConnection:  # noqa: ANN401 - libpq's
            made = connect(**{**parameters, **host, **more})
            made.served = hosts.Served(several, host)
            return made

        return cast("Self", several.connect(to))

    @property
    def has_moved(self) -> bool:
        """True if another host of the address has become the primary."""
        return self.served is not None and self.served.has_moved

    def commit(self) -> None:
        """Commit the transaction, if there is one.

        Nothing is waited for if the server knows of no transaction: the code that ran the
        statements has committed already (`schema.pipeline.commit`), or nothing was executed.
        """
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            super().commit()

    def rollback(self) -> None:
        """Roll back the transaction, if there is one; see `commit`."""
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            super().rollback()

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait for an answer of the server, as psycopg does.

        With a `timeout`, wait for at most that many seconds. If no answer arrives, psycopg's own
        error is raised, and the connection stays open.

        If `timeout` is None, wait for at most `exchange_seconds`. If no answer arrives, drop the
        connection and raise `NoAnswer`. But if the function `is_at_work` is set, it is called
        first. As long as it reports that the server still executes the statement, the wait is
        repeated. When it no longer does, wait two more seconds (`MARGIN_SECONDS`), because the
        answer may just have been sent. Only then drop the connection and raise `NoAnswer`.
        """
        if timeout is not None:
            return super().wait(gen, interval=interval, timeout=timeout)
        began = monotonic()
        while True:
            try:
                return super().wait(gen, interval=interval, timeout=self.exchange_seconds)
            except _WaitTimeout:
                if self.is_at_work is None:
                    raise self.dropped(monotonic() - began) from None
            if self.is_at_work(self):
                continue
            try:  # The server may have answered while it was looked at.
                return super().wait(gen, interval=interval, timeout=MARGIN_SECONDS)
            except _WaitTimeout:
                raise self.dropped(monotonic() - began) from None

    def dropped(self, seconds: float) -> NoAnswer:
        """Close the connection without sending anything; return the error that the caller raises.

        `seconds`: how long the server has not answered, for the error's message.
        """
        drop(self)
        return NoAnswer(round(seconds, 1))


def located(address: str) -> tuple[str, hosts.Served | None]:
    """Return the address with only the primary of its several hosts, and that host as `Served`.

    `Served.has_moved` later shows whether the primary has changed. An address that does not request
    the primary of several hosts is returned unchanged, with None. Raises
    `psycopg.OperationalError` if no host can serve as the primary.
    """
    parameters = conninfo_to_dict(address)
    if hosts.among(parameters) is None:
        return address, None
    with BoundedConnection.connect(address, autocommit=True) as connection:
        served = connection.served
    rest = {name: each for name, each in parameters.items() if name not in HOST_PARAMETERS}
    return make_conninfo("", **rest, **(served.host if served else {})), served


def drop(connection: psycopg.Connection[Any]) -> None:
    """Close a connection without sending or waiting, because its server may not answer."""
    if not connection.closed:
        hang_up(connection)
        connection.pgconn.finish()


def hang_up(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Shut down the connection's socket, so that every wait for an answer fails at once."""
    if connection.closed:
        return
    try:
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
            line.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side has closed it already


@contextmanager
def ending(connection: psycopg.AsyncConnection[Any], seconds: float) -> Iterator[None]:
    """Shut down the connection's socket if the `with` block lasts longer than `seconds`.

    A query that waits for its answer then fails at once. A time limit that cancels the asyncio task
    of the query is not enough, because psycopg then waits until the server confirms the cancel.
    """
    end = asyncio.get_running_loop().call_later(seconds, hang_up, connection)
    try:
        yield
    finally:
        end.cancel()


def at_work(connection: BoundedConnection) -> bool:
    """Return True if the server still executes this connection's statement.

    The server is asked over a new connection. False also if it cannot be asked.
    """
    parameters: dict[str, Any] = conninfo_to_dict(
        connection.info.dsn, password=connection.info.password or None
    )
    parameters |= {"application_name": hosts.LOOKING, "connect_timeout": 5}
    try:
        with BoundedConnection.connect(**parameters, autocommit=True) as looking:
            found = looking.execute(
                "SELECT state = 'active' FROM pg_stat_activity WHERE pid = %s",
                [connection.info.backend_pid],
            ).fetchone()
    except psycopg.OperationalError:
        return False
    return bool(found and found[0])
