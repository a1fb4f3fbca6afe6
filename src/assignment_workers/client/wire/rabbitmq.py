"""The sender of messages over RabbitMQ, imported only if the broker is RabbitMQ."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from amqp.exceptions import MessageNacked
from kombu import Connection, Producer, Queue

from assignment_workers.client.wire.message import Envelope
from assignment_workers.client.wire.outages import unreachable
from assignment_workers.errors import BrokerUnavailable

CONNECT_SECONDS = 2.0
"""The most seconds to wait for a node of RabbitMQ to accept a connection."""
CONFIRM_SECONDS = 3.0
"""The most seconds to wait for an answer of RabbitMQ, such as the confirmation of a message.

The same limit holds for each write to the connection.
"""

T = TypeVar("T")


class AmqpSender:
    """A `Sender` for RabbitMQ. RabbitMQ confirms each message once it is stored safely.

    Workers declare the queues; this class declares none. RabbitMQ drops a message to a queue that
    is not declared. Therefore, this class asks RabbitMQ whether a queue is declared, before it
    sends the first message to the queue on a connection. If the queue is not declared, this class
    does not send the message: `send` raises `BrokerUnavailable`. A separate thread sends the
    messages and waits for the confirmations, so that the event loop is not blocked.
    """

    def __init__(self, url: str) -> None:
        self._connection = Connection(
            url,
            connect_timeout=CONNECT_SECONDS,
            transport_options={
                "confirm_publish": True,
                "read_timeout": CONFIRM_SECONDS,
                "write_timeout": CONFIRM_SECONDS,
            },
        )
        self._thread = ThreadPoolExecutor(1, "rabbitmq")
        self._producer: Producer | None = None
        self._known: set[str] = set()

    async def send(self, queue: str, envelope: Envelope) -> int | None:
        """Publish a message to RabbitMQ and wait for the confirmation; see `Sender.send`.

        Returns None.
        """
        await self._aside(lambda: self._publish(queue, envelope))
        return None

    async def close(self) -> None:
        """Close the connection to RabbitMQ."""
        await self._aside(self._disconnect)
        self._thread.shutdown(wait=False)

    async def _aside(self, what: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, what)

    def _publish(self, queue: str, envelope: Envelope) -> None:
        """Publish a message, and return when RabbitMQ has confirmed it.

        If a connection was open and fails, or brings no confirmation in time, connect again and try
        once more. The second attempt goes to the same node of RabbitMQ. The reason: a missing
        confirmation does not mean that this node has failed. The failed node may be another one,
        which has the leader (the leading replica) of the queue. But if the same node accepts no
        connection, the second attempt goes to the next node in the broker's address. Raises
        `BrokerUnavailable` if the last attempt fails, or RabbitMQ rejects the message.
        """
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
