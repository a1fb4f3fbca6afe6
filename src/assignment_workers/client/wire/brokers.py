"""Senders of messages to Celery queues: the interface `Sender`, and the sender for Redis.

The module `rabbitmq` has the sender for RabbitMQ.
"""

from __future__ import annotations

import json
from typing import Protocol
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError

from assignment_workers.addresses import REDIS, check_address
from assignment_workers.client.wire.message import Envelope
from assignment_workers.client.wire.outages import SOCKET_SECONDS, unreachable
from assignment_workers.client.wire.redis_clients import async_redis_client
from assignment_workers.errors import UsageError


class Sender(Protocol):
    """A connection to one broker, used in one event loop."""

    async def send(self, queue: str, envelope: Envelope) -> int | None:
        """Append a message to a Celery queue, after the messages sent before it.

        Returns the number of messages in the queue now; None if the broker does not report it.
        Raises `BrokerUnavailable` if the broker does not confirm the message, which may have been
        sent nevertheless.
        """

    async def close(self) -> None:
        """Close the connection."""


def check_addresses(redis_url: str, broker_url: str | None) -> None:
    """Raise `UsageError` if an address does not have the form of a Redis or broker address.

    No server is contacted.
    """
    for name, url, schemes in (
        ("redis_url", redis_url, REDIS),
        ("broker_url", broker_url or redis_url, (*REDIS, "amqp", "amqps")),
    ):
        try:
            check_address(url, *schemes)
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from None


def sender(broker_url: str) -> Sender:
    """Return a sender for the broker at this address, without contacting it."""
    if urlsplit(broker_url).scheme.startswith("amqp"):
        return _amqp_sender(broker_url)
    return RedisSender(connect_redis(broker_url))


def _amqp_sender(broker_url: str) -> Sender:
    try:
        from assignment_workers.client.wire.rabbitmq import AmqpSender
    except ModuleNotFoundError as error:
        raise UsageError(
            f"RabbitMQ needs {error.name}: pip install 'assignment-workers[rabbitmq]'"
        ) from None
    return AmqpSender(broker_url)


class RedisSender:
    """A `Sender` for Redis, which puts each message into a Redis list with one LPUSH.

    The list has the name of the Celery queue. LPUSH adds the message at the head of the list, and
    the workers take messages from the tail. So the workers get the messages in the order of
    sending.
    """

    def __init__(self, server: Redis) -> None:
        self._server = server

    async def send(self, queue: str, envelope: Envelope) -> int | None:
        """Push a message to the Redis list of a Celery queue; see `Sender.send`."""
        try:
            return await self._server.lpush(queue, json.dumps(envelope))
        except (RedisError, OSError) as error:
            raise unreachable("Redis", error) from error

    async def close(self) -> None:
        """Close the connection to Redis."""
        await self._server.aclose()


def connect_redis(url: str) -> Redis:
    """Return a Redis client for an address in Celery's form, without contacting the server."""
    return async_redis_client(
        url,
        protocol=2,
        socket_timeout=SOCKET_SECONDS,
        socket_connect_timeout=SOCKET_SECONDS,
        socket_keepalive=True,
        retry=Retry(ConstantBackoff(0.05), 1),
        health_check_interval=0,
    )
