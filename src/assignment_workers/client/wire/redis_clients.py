"""Clients of a Redis that may fail over: the primary is found through Sentinel or a host name.

After a failover the old primary is a replica. It answers READONLY to writes, and UNBLOCKED to
blocking commands. On either error the client closes the connection, and its next connection finds
the new primary: the Sentinels name it, or the host name now leads to it.

A primary that hangs answers nothing, and its connections would wait for their time-outs, one after
the other. So, with Sentinel, a thread asks the Sentinels each second which server is the primary,
and closes the connections to any other server.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from weakref import WeakSet

from redis import Redis, connection, exceptions, sentinel
from redis import asyncio as aio
from redis.asyncio import connection as aio_connection
from redis.asyncio import sentinel as aio_sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from assignment_workers.addresses import SENTINEL, SentinelAddress

LOOK_SECONDS = 1.0
"""Seconds between two queries to the Sentinels for the address of the primary."""
SENTINEL_SECONDS = 1.0
"""The most seconds to wait for one Sentinel before the next Sentinel is asked."""
CONNECT_SECONDS = 2.0
"""The most seconds for the TCP connection to the primary that the Sentinels name.

The limit is short because of failovers. For a moment, the Sentinels still name the lost primary, to
which no connection can be made. After the time-out, the next attempt to connect asks the Sentinels
again.
"""
REPLICA = "the server is a replica now"

if TYPE_CHECKING:
    _Sync = connection.Connection
    _Async = aio_connection.Connection
else:
    _Sync = _Async = object


def is_demoted(error: ResponseError) -> bool:
    """Return True if Redis's error shows that the server is no longer the primary."""
    return isinstance(error, ReadOnlyError) or str(error).startswith("UNBLOCKED")


class _Moving(_Sync):
    def read_response(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - redis-py's
        try:
            return super().read_response(*args, **options)
        except ResponseError as error:
            if not is_demoted(error):
                raise
            self.disconnect()  # type: ignore[no-untyped-call]
            raise exceptions.ConnectionError(REPLICA) from error


class _AsyncMoving(_Async):
    async def send_packed_command(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - redis-py's
        try:
            await super().send_packed_command(*args, **options)
        except RuntimeError as error:  # uvloop's, if the socket has been closed meanwhile
            raise exceptions.ConnectionError(str(error)) from error

    async def read_response(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - redis-py's
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            if not is_demoted(error):
                raise
            await self.disconnect()
            raise exceptions.ConnectionError(REPLICA) from error


class FailoverConnection(_Moving, connection.Connection):
    """A connection to a Redis whose host name may move from one server to another (a failover).

    The connection is closed when its server answers that it is a replica now. The next connection
    looks up the host name again.
    """


class FailoverSSLConnection(_Moving, connection.SSLConnection):
    """A connection with TLS to a Redis whose host name may move from one server to another.

    The connection is closed when its server answers that it is a replica now.
    """


class SentinelConnection(_Moving, sentinel.SentinelManagedConnection):
    """A connection to the primary that the Sentinels name.

    It is closed when the primary changes.
    """

    def connect(self) -> None:
        """Connect to the primary. First ask the Sentinel that last answered this process."""
        _ask_first(self.connection_pool.sentinel_manager)
        super().connect()  # type: ignore[no-untyped-call]

    def connect_to(self, address: tuple[str, int]) -> None:
        """Connect to the server at `address`, the primary that a Sentinel has just named.

        Then register the connection. A thread (`_Follower`) closes each registered connection when
        another server becomes the primary. The Sentinel is remembered, so that it is asked first
        the next time.
        """
        _note_answer(self.connection_pool)
        super().connect_to(address)  # type: ignore[no-untyped-call]
        _follow(self, self.connection_pool)


class SentinelSSLConnection(SentinelConnection, sentinel.SentinelManagedSSLConnection):
    """A `SentinelConnection` with TLS."""


class _AsyncConnection(_AsyncMoving, aio_connection.Connection):
    pass


class _AsyncSSLConnection(_AsyncMoving, aio_connection.SSLConnection):
    pass


class _AsyncSentinelConnection(_AsyncMoving, aio_sentinel.SentinelManagedConnection):
    async def connect(self) -> None:
        _ask_first(self.connection_pool.sentinel_manager)
        await super().connect()  # type: ignore[no-untyped-call]

    async def connect_to(self, address: tuple[str, int]) -> None:
        _note_answer(self.connection_pool)
        await super().connect_to(address)  # type: ignore[no-untyped-call]
        _follow(self, self.connection_pool)


class _AsyncSentinelSSLConnection(
    _AsyncSentinelConnection, aio_sentinel.SentinelManagedSSLConnection
):
    pass


class _Pool(sentinel.SentinelConnectionPool):
    """A connection pool whose `disconnect` also closes the connections to the Sentinels."""

    sentinel_manager: Any

    def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's
        super().disconnect(inuse_connections)
        if inuse_connections:
            for each in self.sentinel_manager.sentinels:
                each.connection_pool.disconnect()


class _AsyncPool(aio_sentinel.SentinelConnectionPool):
    sentinel_manager: Any

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for each in self.sentinel_manager.sentinels:
                await each.connection_pool.disconnect()


class _Follower(threading.Thread):
    """A thread that closes this process's connections to a server that is no longer the primary.

    The thread ends when all connections that it looks after are closed.
    """

    def __init__(self, hosts: Sequence[tuple[str, int]], name: str, options: Any) -> None:  # noqa: ANN401 - redis-py's
        super().__init__(name="sentinels", daemon=True)
        self.connections: WeakSet[Any] = WeakSet()
        made: Any = sentinel.Sentinel
        once = {**options, "retry": Retry(NoBackoff(), 0)}  # those of an asynchronous client, too
        self._sentinels = made(hosts, sentinel_kwargs=once)
        self._service = name

    def run(self) -> None:
        pause = threading.Event()
        while not pause.wait(LOOK_SECONDS):
            with _LOCK:
                connections = [each for each in self.connections if each.is_connected]
                if not connections:
                    for key in [key for key, each in _FOLLOWERS.items() if each is self]:
                        del _FOLLOWERS[key]
                    break
            try:
                primary = self._sentinels.discover_master(self._service)
            except RedisError:
                continue  # no primary now, or no Sentinel that answers
            for each in connections:
                if (each.host, each.port) != primary:
                    _hang_up(each)
        for each in self._sentinels.sentinels:
            each.close()


_ANSWERED: dict[str, tuple[str, int]] = {}
"""Maps each primary's name to the address of the Sentinel that last answered this process."""


def _at(asked: Any) -> tuple[str, int]:  # noqa: ANN401 - redis-py's, of both kinds
    given = asked.connection_pool.connection_kwargs
    return given["host"], given["port"]


def _note_answer(pool: Any) -> None:  # noqa: ANN401 - redis-py's, of both kinds
    """Remember the Sentinel that has just answered, so that it is asked first the next time.

    redis-py has just moved this Sentinel to the first position in the list of Sentinels of `pool`.
    This function therefore stores the address of the first Sentinel in that list.
    """
    _ANSWERED[pool.service_name] = _at(pool.sentinel_manager.sentinels[0])


def _ask_first(manager: Any) -> None:  # noqa: ANN401 - redis-py's, of both kinds
    """Move the Sentinel that last answered this process to the front of `manager`'s list.

    `manager` has the list of Sentinels of one connection pool. redis-py asks the Sentinels in the
    order of this list. When a Sentinel answers, redis-py moves the Sentinel to the front of the
    list, but only for the pool that asked. Without this function, a Sentinel that is down would
    therefore cost one time-out for each pool, and not only one for the process.
    """
    good = set(_ANSWERED.values())
    manager.sentinels.sort(key=lambda each: _at(each) not in good)


_FOLLOWERS: dict[tuple[object, ...], _Follower] = {}
_LOCK = threading.Lock()


def _follow(made: Any, pool: Any) -> None:  # noqa: ANN401 - redis-py's, of both kinds
    """Register the connection `made` to be closed when another server becomes the primary.

    `pool` is the connection's pool. One thread (`_Follower`) for each primary asks the Sentinels
    and closes the registered connections. The thread is started if there is none.
    """
    manager = pool.sentinel_manager
    hosts = tuple(sorted(map(_at, manager.sentinels)))
    with _LOCK:
        follower = _FOLLOWERS.get((hosts, pool.service_name))
        if follower is None:
            follower = _Follower(hosts, pool.service_name, manager.sentinel_kwargs)
            _FOLLOWERS[hosts, pool.service_name] = follower
            follower.connections.add(made)
            follower.start()
        follower.connections.add(made)


def _hang_up(made: Any) -> None:  # noqa: ANN401 - redis-py's, of both kinds
    """Shut down a connection's socket, so that every wait on the connection fails at once."""
    writer = getattr(made, "_writer", None)
    line = writer.get_extra_info("socket") if writer else getattr(made, "_sock", None)
    try:
        if line is not None:
            with socket.socket(fileno=os.dup(line.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed meanwhile


def redis_client(url: str, **options: Any) -> Redis:  # noqa: ANN401 - redis-py's
    """Return a client of the Redis or Redis Sentinel at `url`, without contacting it.

    `url` has the form of Celery's `broker_url`. `options` are passed on to redis-py's client.
    """
    if not url.startswith(SENTINEL):
        plain = FailoverSSLConnection if url.startswith("rediss") else FailoverConnection
        return Redis.from_url(_for_redis(url), connection_class=plain, **options)
    at = SentinelAddress.read(url)
    managed = SentinelSSLConnection if at.tls else SentinelConnection
    asked: Any = sentinel.Sentinel
    made: Redis = asked(at.sentinels, sentinel_kwargs=sentinel_options(at)).master_for(
        at.master_name,
        connection_pool_class=_Pool,
        connection_class=managed,
        **_of_primary(at, options),
    )
    return made


def async_redis_client(url: str, **options: Any) -> aio.Redis:  # noqa: ANN401 - redis-py's
    """Return an asyncio client of the Redis or Redis Sentinel at `url`, without contacting it."""
    if not url.startswith(SENTINEL):
        plain = aio.Redis.from_url(_for_redis(url), **options)
        # Set here, because redis-py's asyncio `from_url` overrides a given class for TLS.
        plain.connection_pool.connection_class = (
            _AsyncSSLConnection if url.startswith("rediss") else _AsyncConnection
        )
        return plain
    at = SentinelAddress.read(url)
    managed = _AsyncSentinelSSLConnection if at.tls else _AsyncSentinelConnection
    asked: Any = aio_sentinel.Sentinel
    once = {**sentinel_options(at), "retry": AsyncRetry(NoBackoff(), 0)}
    manager = asked(at.sentinels, sentinel_kwargs=once)
    for each in manager.sentinels:
        each.connection_pool.connection_class = _AsyncSSLConnection if at.tls else _AsyncConnection
    made: aio.Redis = manager.master_for(
        at.master_name,
        connection_pool_class=_AsyncPool,
        connection_class=managed,
        **_of_primary(at, options),
    )
    return made


def sentinel_options(at: SentinelAddress) -> dict[str, Any]:
    """Return redis-py's options for the connections to the Sentinels themselves.

    Each Sentinel is asked only once. If it does not answer, the next Sentinel is asked. With
    redis-py's default of ten attempts for each Sentinel, a Sentinel whose host is lost would cost
    every connection 3 to 12 s.
    """
    return {
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": SENTINEL_SECONDS,
        "socket_connect_timeout": SENTINEL_SECONDS,
        "username": at.sentinel_username,
        "password": at.sentinel_password,
        **({"ssl": True, **tls_options(at)} if at.tls else {}),
    }


def tls_options(at: SentinelAddress) -> dict[str, str]:
    """Return the TLS options as redis-py spells them, such as `required` for `CERT_REQUIRED`."""
    return {name: _requirement(name, value) for name, value in at.tls.items()}


def _of_primary(at: SentinelAddress, options: Mapping[str, Any]) -> dict[str, Any]:
    own = {"username": at.username, "password": at.password, "db": at.db, **tls_options(at)}
    limit = min(options.get("socket_connect_timeout") or CONNECT_SECONDS, CONNECT_SECONDS)
    return {**own, **options, "socket_connect_timeout": limit}


def _for_redis(url: str) -> str:
    """Convert a Redis address from Celery's form to redis-py's."""
    parts = urlsplit(url)
    query = [(name, _requirement(name, value)) for name, value in parse_qsl(parts.query)]
    return urlunsplit(parts._replace(query=urlencode(query)))


def _requirement(name: str, value: str) -> str:
    return value.lower().removeprefix("cert_") if name == "ssl_cert_reqs" else value
