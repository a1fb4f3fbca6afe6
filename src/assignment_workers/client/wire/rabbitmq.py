"""The sender of messages over RabbitMQ, imported only if the broker is RabbitMQ."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from amqp.exceptions import MessageNacked
from kombu import Connection, Producer, Queue

from assignment_workers.client.wire.message import Envelope
from assignment_workers.client.wire.outages import unreachable
from assignment_workers.errors import BrokerUnavailable

CONNECT_SECONDS = 2.0
"""The most seconds to wait for a node of RabbitMQ to accept a connection."""
ANSWER_SECONDS = 3.0
"""The most seconds to wait for an answer of RabbitMQ other than the confirmation of a message.

The same limit holds for each write to the connection.
"""
CONFIRM_SECONDS = 6.0
"""The most seconds to wait for RabbitMQ to confirm a message, while the node answers.

The limit is longer than `ANSWER_SECONDS`, because a queue whose leader was lost confirms messages
again after some seconds, once it has a new leader.
"""
QUIET_SECONDS = 1.0
"""The seconds without any answer, after which the node is asked whether it still answers."""
ASKED_SECONDS = 2.0
"""The most seconds that a node may take to answer that question; otherwise it counts as lost."""
CHANNEL_SECONDS = 15.0
"""The age in seconds of an unconfirmed message at which its channel is given up for a new one.

RabbitMQ itself sends what a queue did not confirm to the queue's leader again after 10 seconds.
"""
LOOK_SECONDS = 3.0
"""Seconds between two attempts to reach the first node, while another one is in use."""

T = TypeVar("T")


class FirstNodeWatch:
    """Tries to connect to the first node of an address, while another node is in use.

    `connect` returns a connection to the first node that is not open yet; each attempt gets one of
    its own.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._attempt: threading.Thread | None = None
        self._answered: float | None = None

    @property
    def answers(self) -> bool:
        """True if an attempt has succeeded in the last seconds."""
        return self._answered is not None and monotonic() - self._answered < 2 * LOOK_SECONDS

    def is_in_use(self, connection: Connection) -> bool:
        """Return True if this connection, which is open, is to the first node."""
        return _place(self._connect()) == _place(connection)

    def look(self) -> None:
        """Start an attempt in a thread, unless an attempt is still running."""
        if self._attempt is None or not self._attempt.is_alive():
            self._attempt = threading.Thread(target=self._try, name="first-node", daemon=True)
            self._attempt.start()

    def _try(self) -> None:
        with self._connect() as connection:
            try:
                connection.connect()
            except connection.connection_errors + connection.channel_errors:
                return  # the next attempt may succeed
        self._answered = monotonic()


def _place(connection: Connection) -> tuple[str, int]:
    """Return host and port, with the values that kombu sets when it opens the connection."""
    transport: Any = connection.transport
    usual = transport.default_connection_params
    host = connection.hostname or usual["hostname"]
    return "127.0.0.1" if host == "localhost" else host, int(connection.port or usual["port"])


class AmqpSender:
    """A `Sender` for RabbitMQ. RabbitMQ confirms each message once it is stored safely.

    Workers declare the queues; this class declares none. RabbitMQ drops a message to a queue that
    is not declared. Therefore, this class asks RabbitMQ whether a queue is declared, before it
    sends the first message to the queue on a connection. If the queue is not declared, this class
    does not send the message: `send` raises `BrokerUnavailable`. A separate thread sends the
    messages and waits for the confirmations, so that the event loop is not blocked.

    Of several nodes in the address, the first that accepts a connection is used. Once the first
    node of the address accepts connections again, this class returns to it.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._thread = ThreadPoolExecutor(1, "rabbitmq")
        self._connection = self._to(url)
        self._watch: FirstNodeWatch | None = None
        self._looked = 0.0
        self._producer: Producer | None = None
        self._known: set[str] = set()
        self._published = 0
        self._unconfirmed: dict[int, tuple[str, float]] = {}
        """Maps the number of each message on this channel to its queue and the time of sending."""
        self._is_rejected = False

    async def send(self, queue: str, envelope: Envelope) -> int | None:
        """Publish a message to RabbitMQ and wait for the confirmation; see `Sender.send`.

        Returns None.
        """
        await self._aside(lambda: self._publish(queue, envelope))
        return None

    async def close(self) -> None:
        """Close the connection to RabbitMQ."""
        await self._aside(self._connection.close)
        self._thread.shutdown(wait=False)

    async def _aside(self, what: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, what)

    @staticmethod
    def _to(url: str) -> Connection:
        options = {"read_timeout": ANSWER_SECONDS, "write_timeout": ANSWER_SECONDS}
        return Connection(url, connect_timeout=CONNECT_SECONDS, transport_options=options)

    def _publish(self, queue: str, envelope: Envelope) -> None:
        """Publish a message, and return when RabbitMQ has confirmed it.

        If a connection was open and its node does not answer any more, connect again and try once
        more, with the same node or with another one if that accepts no connection. A node that
        answers keeps its connection, also if the confirmation does not come in time: the queue has
        no leader then, and its next leader gets the message from this channel. Raises
        `BrokerUnavailable` if the last attempt fails, the confirmation does not come, or RabbitMQ
        rejects the message.
        """
        ends = monotonic() + CONFIRM_SECONDS
        tries = (True,) if self._producer is None else (False, True)
        self._return_to_first_node()
        passing = (*self._connection.connection_errors, *self._connection.channel_errors)
        for is_last in tries:
            try:
                number = self._try(queue, envelope)
                return self._wait(queue, number, max(ends, monotonic() + ANSWER_SECONDS))
            except MessageNacked as error:
                raise BrokerUnavailable("RabbitMQ did not take the message") from error
            except passing as error:
                self._drop()
                if is_last:
                    raise unreachable("RabbitMQ", error) from error
        return None

    def _try(self, queue: str, envelope: Envelope) -> int:
        """Publish a message and return its number on the channel, without a confirmation."""
        if self._producer is None:
            self._producer = self._made_producer()
        if queue not in self._known:
            self._check_declared(queue)
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
        self._published += 1
        self._unconfirmed[self._published], self._is_rejected = (queue, monotonic()), False
        return self._published

    def _check_declared(self, queue: str) -> None:
        """Raise `BrokerUnavailable` if there is no such queue. What was sent before is not lost."""
        channel: Any = self._connection.channel()
        try:
            Queue(queue, channel=channel).queue_declare(passive=True)
        except self._connection.channel_errors as error:
            channel.close()
            raise unreachable("RabbitMQ", error) from error
        channel.close()
        self._known.add(queue)

    def _made_producer(self) -> Producer:
        channel: Any = self._connection.channel()
        channel.confirm_select()
        channel.events["basic_ack"].add(self._settled)
        channel.events["basic_nack"].add(partial(self._settled, is_rejected=True))
        self._watch = None
        if self._connection.alt:
            watch = FirstNodeWatch(partial(self._to, self._connection.alt[0]))
            if not watch.is_in_use(self._connection):
                self._watch, self._looked = watch, monotonic()
        return Producer(channel, auto_declare=False)

    def _settled(self, number: int, multiple: bool, *, is_rejected: bool = False) -> None:  # noqa: FBT001 - py-amqp's
        settled = [each for each in self._unconfirmed if each <= number] if multiple else [number]
        for each in settled:
            self._unconfirmed.pop(each, None)
        if is_rejected and self._published in settled:
            self._is_rejected = True

    def _wait(self, queue: str, number: int, ends: float) -> None:
        connection: Any = self._connection.connection
        while number in self._unconfirmed:
            left = ends - monotonic()
            if left <= 0:
                late = TimeoutError(f"no confirmation within {CONFIRM_SECONDS:.0f} s")
                oldest = min(sent for where, sent in self._unconfirmed.values() if where == queue)
                if monotonic() - oldest > CHANNEL_SECONDS:
                    self._drop()
                raise unreachable("RabbitMQ", late)
            try:
                connection.drain_events(timeout=min(QUIET_SECONDS, left))
            except TimeoutError:
                with connection.transport.having_timeout(ASKED_SECONDS):
                    connection.channel().close()
        if self._is_rejected:
            raise MessageNacked

    def _return_to_first_node(self) -> None:
        """Return, if the first node answers and no message here still waits for confirmation."""
        late = monotonic() - CHANNEL_SECONDS
        if self._watch is None or any(sent > late for _, sent in self._unconfirmed.values()):
            return
        if self._watch.answers:
            self._drop()
            self._connection = self._to(self._url)
        elif monotonic() - self._looked > LOOK_SECONDS:
            self._looked = monotonic()
            self._watch.look()

    def _drop(self) -> None:
        """End the connection without AMQP's farewell, to which a lost node gives no answer."""
        self._producer, self._watch, self._published = None, None, 0
        self._known.clear()
        self._unconfirmed.clear()
        self._connection.collect()
