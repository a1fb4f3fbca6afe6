"""Connections to Redis under the event loop of the gateway, when the socket was closed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from assignment_workers.client.wire import redis_clients
from assignment_workers.client.wire.redis_clients import async_redis_client

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


async def one_command(connection: AbstractConnection) -> None:
    await connection.send_command("PING")
    await connection.read_response()


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_write_to_a_closed_socket_is_a_lost_connection(
    redis_url: str, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Uvloop raises RuntimeError, which no caller takes for an outage of Redis."""

    async def run() -> None:
        client = async_redis_client(redis_url)
        connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        connection._writer.transport.abort()
        await asyncio.sleep(0)  # for the loop to close it
        with pytest.raises(RedisConnectionError):
            await one_command(connection)
        await client.connection_pool.release(connection)
        assert await client.ping(), "the next command connects again"
        await client.aclose()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


@pytest.mark.parametrize(("scheme", "options"), [("redis", ""), ("rediss", "?ssl_cert_reqs=none")])
def test_the_sentinels_are_asked_over_such_connections_too(scheme: str, options: str) -> None:
    client = async_redis_client(f"sentinel://one:26379/0;sentinel://two:26379/0{options}")
    plain = async_redis_client(f"{scheme}://one:6379/0{options}")
    pool: Any = client.connection_pool
    asked = pool.sentinel_manager.sentinels
    own = plain.connection_pool.connection_class
    assert own.__module__ == redis_clients.__name__, "it follows a primary that moves"
    assert {each.connection_pool.connection_class for each in asked} == {own}
