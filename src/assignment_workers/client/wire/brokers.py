"""Senders of messages to a Celery queue: a push in Redis, a publication in RabbitMQ."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from amqp.exceptions import MessageNacked
from kombu import Connection, Producer, Queue
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from assignment_workers.addresses import REDIS, check_address
from assignment_workers.client.wire.message import Envelope
from assignment_workers.client.wire.redis_clients import async_redis_client
from assignment_workers.errors import BrokerUnavailable, UsageError

log = logging.getLogger(__name__)

T = TypeVar("T")

SOCKET_SECONDS = 5.0
"""The most seconds that a connection, or an answer of the broker, may take."""


class Sender(Protocol):
    """A connection to one broker, used in one event loop."""

    async def send(self, queue: str, envelope: Envelope) -> int | None:
        """Append a message to a Celery queue, after the messages sent before it.

        Return how many messages now wait in the queue; None if the broker does not say. Raises
        `BrokerUnavailable`; the message may have been sent all the same.
        """

    async def close(self) -> None:
        """Close the connection."""


def check_addresses(redis_url: str, broker_url: str | None) -> None:
    """Raise `UsageError` for an address whose form is not that of a Redis or a broker.

    Nothing is sent there.
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
        return AmqpSender(broker_url)
    return RedisSender(connect_redis(broker_url))


class RedisSender:
    """Sends each message with one LPUSH."""

    def __init__(self, server: Redis) -> None:
        self._server = server

    async def send(self, queue: str, envelope: Envelope) -> int | None:
        """See `Sender`."""
        try:
            return await self._server.lpush(queue, json.dumps(envelope))
        except (RedisError, OSError) as error:
            raise unreachable("Redis", error) from error

    async def close(self) -> None:
        """See `Sender`."""
        await self._server.aclose()


class AmqpSender:
    """Sends each message with one publication; RabbitMQ confirms it once it is stored safely.

    A worker declares the queues with their arguments; this class declares none. Until a worker has
    declared a queue, its messages are refused here, because RabbitMQ would drop them. The waiting
    is done in a thread of its own.
    """

    def __init__(self, url: str) -> None:
        self._connection = Connection(
            url,
            connect_timeout=SOCKET_SECONDS,
            transport_options={
                "confirm_publish": True,
                "read_timeout": SOCKET_SECONDS,
                "write_timeout": SOCKET_SECONDS,
            },
        )
        self._thread = ThreadPoolExecutor(1, "rabbitmq")
        self._producer: Producer | None = None
        self._known: set[str] = set()

    async def send(self, queue: str, envelope: Envelope) -> int | None:
        """See `Sender`."""
        await self._aside(lambda: self._publish(queue, envelope))
        return None

    async def close(self) -> None:
        """See `Sender`."""
        await self._aside(self._disconnect)
        self._thread.shutdown(wait=False)

    async def _aside(self, what: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, what)

    def _publish(self, queue: str, envelope: Envelope) -> None:
        """Publish a message; reconnect once if the connection was lost since the last message."""
        passing = (*self._connection.connection_errors, *self._connection.channel_errors)
        for is_last in (self._producer is None, True):
            try:
                return self._try(queue, envelope)
            except MessageNacked as error:
                raise BrokerUnavailable("RabbitMQ did not take the message") from error
            except passing as error:
                self._disconnect()
                if is_last:
                    raise unreachable("RabbitMQ", error) from error
        return None

    def _try(self, queue: str, envelope: Envelope) -> None:
        if self._producer is None:
            self._channel = self._connection.channel()
            self._producer = Producer(self._channel, auto_declare=False)
        if queue not in self._known:
            Queue(queue, channel=self._channel).queue_declare(passive=True)
            self._known.add(queue)
        properties = envelope["properties"]
        self._producer.publish(
            base64.b64decode(envelope["body"]),
            routing_key=queue,
            content_type=envelope["content-type"],
            content_encoding=envelope["content-encoding"],
            headers=envelope["headers"],
            correlation_id=properties["correlation_id"],
            reply_to=properties["reply_to"],
            delivery_mode=properties["delivery_mode"],
        )

    def _disconnect(self) -> None:
        self._producer = None
        self._known.clear()
        self._connection.collect()


def connect_redis(url: str) -> Redis:
    """Return a client of the Redis at an address in Celery's form, without contacting it."""
    return async_redis_client(
        url,
        protocol=2,
        socket_timeout=SOCKET_SECONDS,
        socket_connect_timeout=SOCKET_SECONDS,
        socket_keepalive=True,
        retry=Retry(ConstantBackoff(0.05), 1),
        health_check_interval=0,
    )


def unreachable(server: str, error: BaseException) -> BrokerUnavailable:
    """Return the error, of one line, for a server that does not answer or refuses to write.

    `server` is its name for people; `error` is the client library's error.
    """
    if isinstance(error, OutOfMemoryError):
        return BrokerUnavailable(f"{server} is full: it takes no messages until it has room again")
    if isinstance(error, ResponseError) and "MISCONF" in str(error):
        return BrokerUnavailable(f"{server} cannot save to its disk: it takes no messages")
    if isinstance(error, ResponseError) and "NOREPLICAS" in str(error):
        return BrokerUnavailable(f"{server} has too few replicas: it takes no messages")
    text = str(error).strip().splitlines()
    log.warning("%s cannot be reached: %s", server, text[0] if text else type(error).__name__)
    return BrokerUnavailable(
        f"{server} cannot be reached: {text[0] if text else type(error).__name__}"
    )
