"""Transports: Celery never sees a malformed message; the sequencer's loses and reorders nothing.

Kombu's own transport raises for a message that is not Celery's, and the worker ends. It takes a
message off the queue with BRPOP and records it afterwards, so a message is lost if the process is
killed in between, and a message that is put back comes after later ones. The sequencer's transport
moves a message with BLMOVE, in one step, from the queue to the list of messages taken by this term,
and removes it from the list when it is acknowledged. The next leader moves the list back, last
taken first, which restores the order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from queue import Empty
from time import monotonic, sleep, time
from typing import Any

import structlog
from amqp import serialization, spec
from kombu import transport
from kombu.transport import pyamqp, redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps
from redis import connection as redis_connection
from redis.exceptions import ConnectionError, ResponseError  # noqa: A004

from assignment_workers.client.wire.redis_clients import (
    MovingConnection,
    MovingSSLConnection,
    SentinelConnection,
    SentinelSSLConnection,
)
from assignment_workers.errors import Malformed, NotStored
from assignment_workers.sequencer.envelope import COMPRESSED, UNREADABLE, envelope_of
from assignment_workers.sequencer.redis_refusals import (
    BIND,
    GIVE_BACK,
    NO_KEY,
    NOTE,
    PAUSE_SECONDS,
    PUT_BACK,
    REFUSING,
    REPLACE,
    TAKE,
    RedisRefusal,
    refused,
)

log = structlog.get_logger()

SCANNED_AT_ONCE = 1_000
"""Keys per step of a search for lists of taken messages: about a millisecond of Redis's time."""


def taken_key(queue: str, mark: str) -> str:
    """Return the Redis key of the list of unacknowledged messages that a term took from `queue`.

    `mark` is the number and id of the term.
    """
    return f"{queue}.taken.{mark}"


def _by_age(mark: str) -> tuple[str, int]:
    """Return a sort key for marks (number and id of a term) in the order in which the terms began.

    The id counts first, then the number: after a database has moved back, numbers repeat and only
    the ids are ordered. Marks without an id, of release 0.1, come first.
    """
    number, _, term_id = mark.partition(".")
    return term_id, int(number)


_MARK = r"\d+(?:\.[0-9a-f]{32})?"


def unstored_key(queue: str) -> str:
    """Return the Redis key of the list of malformed messages not yet stored as dead letters."""
    return f"{queue}.unstored"


def of_broker(errors: Iterable[type[Exception]]) -> tuple[type[Exception], ...]:
    """Return those of kombu's `errors` that concern the broker; its KeyError concerns a message."""
    return tuple(each for each in errors if each is not KeyError)


def packed(*words: str | bytes) -> bytes:
    """Encode the words of a command for Redis. redis-py takes ten times as long."""
    said = [each if isinstance(each, bytes) else each.encode() for each in words]
    return b"*%d\r\n" % len(said) + b"".join(b"$%d\r\n%b\r\n" % (len(each), each) for each in said)


@dataclass
class Consumption:
    """The state of a consuming process that outlasts its connections to the broker."""

    on_malformed: Callable[[str, bytes, Malformed], None] | None = None
    """Called with a malformed message's queue, bytes and error. The message then leaves the
    queue."""
    largest: int = 2**30
    """The size in bytes above which a message is not read."""
    mark: str = "0"
    """The number and id of the sequencer's term, which name its list of taken messages."""
    earlier: set[str] = field(default_factory=set)
    """The marks of this lane's other terms, as far as known."""
    spared: str | None = None
    """The mark of a deposed term whose process was still alive, so that none of its messages is
    suspected of having ended a process.
    """
    suspects: set[bytes] = field(default_factory=set)
    """Digests of messages that dead terms had taken. Each is delivered as `redelivered`."""
    cursor: int = 0
    """The position at which the search for other terms' lists continues."""


class Channel(redis.Channel):
    """A consumer's channel that passes malformed messages to `on_malformed` and continues."""

    connection_class: type[redis_connection.Connection] = MovingConnection
    connection_class_ssl: type[redis_connection.SSLConnection] = MovingSSLConnection
    connection_errors: tuple[type[Exception], ...]
    _queue_cycle: Any
    _flush_brpop_reauth: Callable[[], None]
    sep: str

    def __init__(self, connection: Transport, **options: Any) -> None:
        self.consumption = connection.consumption
        super().__init__(connection, **options)

    def _brpop_read(self, **options: Any) -> bool:
        try:
            queue, item = self._received(**options)
            message = self._read(queue, item)
            if message is not None:
                self.connection._deliver(message, queue)  # noqa: SLF001
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _received(self, **options: Any) -> tuple[str, bytes]:
        """Return the next message and its queue. Raises `Empty` if none arrives in time."""
        try:
            answer = self._response("BRPOP", **options)
        except ResponseError as error:
            self._refused(error)
            raise Empty from error
        queue = bytes_to_str(answer[0]).rsplit(self.sep, 1)[0]
        self._queue_cycle.rotate(queue)
        return queue, answer[1]

    @staticmethod
    def _refused(error: ResponseError) -> RedisRefusal:
        """Pause if Redis refuses writes, and return the reason. Raises any other error."""
        why = refused(error)
        if why is None:
            raise error
        REFUSING.note(why)
        sleep(PAUSE_SECONDS)
        return why

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Bind a queue, also in a full Redis: a binding is small and made once."""
        bind: Callable[..., None] = super()._queue_bind  # type: ignore[misc] # its types lack it
        try:
            bind(exchange, routing_key, pattern, queue)
        except ResponseError as error:
            if (why := self._refused(error)) is not RedisRefusal.FULL:
                # Celery connects again until it succeeds.
                raise ConnectionError(str(why)) from error
            member = self.sep.join([routing_key or "", pattern or "", queue or ""])
            key = self._key(self.keyprefix_queue % (exchange,))
            with self.conn_or_acquire() as client:
                client.eval(BIND, 2, key, self._key(NO_KEY), member)

    def _key(self, name: str) -> str:
        return f"{self.global_keyprefix}{name}"

    def _response(self, command: str, **options: Any) -> Any:
        try:
            answer = self.client.parse_response(self.client.connection, command, **options)
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        if answer is None:  # an empty message is a message
            raise Empty
        return answer

    def _read(self, queue: str, item: bytes) -> dict[str, Any] | None:
        """Return the message in `item`, an element of a Redis list, in kombu's form.

        None for a malformed message, which `on_malformed` got.
        """
        try:
            if len(item) > (largest := self.consumption.largest):
                raise Malformed(f"{len(item)} bytes: a message of at most {largest} is read")
            message = envelope_of(item, queue)
        except Malformed as wrong:
            try:
                if self.consumption.on_malformed is not None:
                    self.consumption.on_malformed(queue, item, wrong)
            except NotStored:
                self._hold(queue, item)
            else:
                self._drop(queue, item)
            return None
        # The sender's delivery tag may equal that of another message.
        message["properties"]["delivery_tag"] = self._next_delivery_tag()
        return message

    def _drop(self, queue: str, item: bytes) -> None:
        """Remove a malformed message from Redis once its dead letter is stored.

        This class has nothing to remove, because the queue no longer has the message.
        """

    def _hold(self, queue: str, item: bytes) -> None:
        """Keep a malformed message that could not be stored in a list beside the queue."""
        with self.conn_or_acquire() as client:
            client.rpush(unstored_key(queue), item)

    def store_again(self, queue: str) -> None:
        """Store the malformed messages that could not be stored before, until one fails again."""
        with self.conn_or_acquire() as client:
            while items := client.lrange(unstored_key(queue), 0, 0):
                count = client.llen(unstored_key(queue))
                if self._read(queue, items[0]) is not None:  # this version can read it
                    client.rpush(queue, items[0])
                client.lrem(unstored_key(queue), 1, items[0])
                if client.llen(unstored_key(queue)) >= count:
                    return

    def set_aside(self, tag: str) -> None:
        """Let the next message be delivered although the one with this tag is unacknowledged."""
        virtual.QoS.ack(self.qos, tag)

    def release(self, tag: str) -> None:
        """Acknowledge a message that was set aside."""
        qos: Any = self.qos
        qos._remove_from_indices(tag).execute()  # noqa: SLF001

    def _receive_one(self, c: Any) -> Any:
        """Receive a broadcast message. A message that cannot be read is logged and skipped."""
        try:
            return super()._receive_one(c)  # type: ignore[misc] # kombu's types lack it
        except of_broker(self.connection_errors):
            raise
        except Empty:
            return None
        except ResponseError as error:
            self._refused(error)
            return None
        except Exception as error:  # noqa: BLE001 - whatever another program has published
            log.warning("broadcast_malformed", error=type(error).__name__)
            return None


class QoS(redis.QoS):
    """Kombu's QoS, which can record a taken message also in a full Redis."""

    channel: Channel

    def append(self, message: Any, delivery_tag: str) -> None:
        """Record a taken message as not acknowledged, because no other list in Redis has it."""
        try:
            super().append(message, delivery_tag)
        except ResponseError as error:
            if refused(error) is not RedisRefusal.FULL:
                raise
            REFUSING.note(RedisRefusal.FULL)
            names = (self.unacked_index_key, self.unacked_key, NO_KEY)
            keys = [self.channel._key(each) for each in names]  # noqa: SLF001
            info = message.delivery_info
            noted = dumps([message._raw, info["exchange"], info["routing_key"]])  # noqa: SLF001
            with self.channel.conn_or_acquire() as client:
                client.eval(NOTE, len(keys), *keys, delivery_tag, str(time()), noted)
            virtual.QoS.append(self, message, delivery_tag)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Put back messages not acknowledged in time. If Redis refuses writes, try again later."""
        try:
            super().restore_visible(*args, **kwargs)
        except ResponseError as error:
            if (why := refused(error)) is None:
                raise
            REFUSING.note(why)


Channel.QoS = QoS


class Transport(redis.Transport):
    """The Redis transport of a process that consumes."""

    Channel = Channel

    def __init__(self, *args: Any, consumption: Consumption | None = None, **options: Any) -> None:
        self.consumption = consumption or Consumption()
        super().__init__(*args, **options)


class SentinelChannel(Channel, redis.SentinelChannel):
    """The channel of a process that consumes, to the primary that Sentinels name."""

    connection_class = SentinelConnection
    connection_class_ssl = SentinelSSLConnection


class SentinelTransport(Transport, redis.SentinelTransport):
    """The transport of a process that consumes, with Sentinel."""

    Channel = SentinelChannel


class OrderedQoS(virtual.QoS):
    """A QoS whose acknowledgement only removes the message from the list of taken messages."""

    restore_at_shutdown = False
    channel: OrderedChannel

    def ack(self, delivery_tag: str) -> None:
        self.channel.forget(delivery_tag)
        super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002
        if requeue:
            self.channel.give_back(delivery_tag)
        else:
            self.channel.forget(delivery_tag)
        super().ack(delivery_tag)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Do nothing: what is not acknowledged stays listed, and the next leader puts it back."""

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: no message becomes visible by the passing of time."""


class OrderedChannel(Channel):
    """The channel of one consumer of one queue.

    The mark of the term names the list of messages that it has taken. Every term's list
    in Redis is put back, even of a term that the database does not know: a database that has moved
    back to a copy of its past has lost the terms that began since.
    """

    QoS = OrderedQoS  # type: ignore[assignment]

    def __init__(self, connection: Transport, **options: Any) -> None:
        self._raw: dict[str, tuple[str, bytes]] = {}
        self._handled: list[tuple[str, bytes]] = []
        self._unstored: list[tuple[str, bytes]] = []
        super().__init__(connection, **options)

    def _brpop_start(self, timeout: float | None = None) -> None:
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        (self._asked,) = queues
        wait = self.brpop_timeout if timeout is None else timeout
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        source, target = self._key(self._asked), self._key(self._taken(self._asked))
        sent = b""
        for queue, item in self._handled:
            # No reply is needed: if this command is lost, the message is put back and gets its old
            # answer.
            sent += packed("CLIENT", "REPLY", "SKIP")
            sent += packed("LREM", self._key(self._taken(queue)), "1", item)
        sent += packed("BLMOVE", source, target, "RIGHT", "LEFT", str(wait or 0))
        self.client.connection.send_packed_command([sent])
        self._handled = []

    def _received(self, **options: Any) -> tuple[str, bytes]:
        try:
            return self._asked, self._response("BLMOVE", **options)
        except ResponseError as error:
            item = None
            if self._refused(error) is RedisRefusal.FULL:
                item = self._moved(TAKE, self._asked, self._taken(self._asked))
            if item is None:
                raise Empty from error
            return self._asked, item

    def _taken(self, queue: str) -> str:
        """Return the key of this term's list of messages taken from `queue`."""
        return taken_key(queue, self.consumption.mark)

    def _moved(self, script: str, source: str, target: str) -> bytes | None:
        """Run `script`, which moves a message from key `source` to `target`; return the message.

        None if there is no message. Works in a full Redis, too.
        """
        with self.conn_or_acquire() as client:
            moved: bytes | None = client.eval(script, 2, self._key(source), self._key(target))
        return moved

    def _read(self, queue: str, item: bytes) -> dict[str, Any] | None:
        message = super()._read(queue, item)
        if message is not None:
            self._raw[message["properties"]["delivery_tag"]] = (queue, item)
            if self.consumption.suspects and (known := _digest(item)) in self.consumption.suspects:
                self.consumption.suspects.discard(known)
                message["properties"]["delivery_info"]["redelivered"] = True
        return message

    def _drop(self, queue: str, item: bytes) -> None:
        self._remove(queue, item)

    def _hold(self, queue: str, item: bytes) -> None:
        """Keep the malformed `item` in the list of taken messages, which a successor puts back."""
        self._unstored.append((queue, item))

    def store_again(self, queue: str) -> None:
        waiting, self._unstored = self._unstored, []
        while waiting and not self._unstored:
            self._read(*waiting.pop(0))
        self._unstored += waiting

    def release(self, tag: str) -> None:
        self.forget(tag)
        self.settle()

    def item(self, tag: str) -> bytes | None:
        """Return the message of this delivery tag as stored in Redis. None if it is not in hand."""
        return self._raw[tag][1] if tag in self._raw else None

    def forget(self, tag: str) -> None:
        """Mark a message as handled. The next request for a message, or `settle`, removes it."""
        if tag in self._raw:
            self._handled.append(self._raw.pop(tag))

    def settle(self) -> None:
        """Remove the handled messages from the list now, because no next message is requested."""
        while self._handled:
            self._remove(*self._handled[0])
            del self._handled[0]

    def _remove(self, queue: str, item: bytes) -> None:
        with self.conn_or_acquire() as client:
            client.lrem(self._key(self._taken(queue)), 1, item)

    def give_back(self, tag: str) -> None:
        """Put back a message that was not handled: it is the next one again."""
        if tag not in self._raw:
            return
        queue, item = self._raw.pop(tag)
        keys = self._key(self._taken(queue)), self._key(queue)
        with self.conn_or_acquire() as client:
            client.eval(GIVE_BACK, 2, *keys, item)

    def take_up(self, queue: str) -> str | None:
        """Store this term's mark in Redis; return the previous mark if it is another term's.

        The returned mark names the last leader even if the database has lost that term.
        """
        with self.conn_or_acquire() as client:
            found = client.eval(REPLACE, 1, self._key(f"{queue}.term"), self.consumption.mark)
        last = bytes_to_str(found) if found else None
        if last is None or last == self.consumption.mark or not re.fullmatch(_MARK, last):
            return None
        self.consumption.earlier.add(last)
        return last

    def put_back(self, queue: str, *, own: bool = False, begins: bool = False) -> int:
        """Return messages that were taken but not acknowledged to the queue's head; count them.

        They keep the order in which they were taken. The messages are those that sequencers of
        earlier terms took. `begins`: the term of this sequencer begins; then those of every other
        term. Otherwise those of later terms stay, because this term may be over without knowing it.
        `own`: also those of this term; only while no task runs.

        A message that a dead sequencer had taken may have ended its process, so a term that
        `begins` delivers it as a suspect. Cost: with `own` or `begins` a scan of all keys of Redis,
        otherwise of about a thousand.
        """
        self.settle()
        count = 0
        with self.conn_or_acquire() as client:
            self._search(client, queue, everywhere=own or begins)
            mine = _by_age(self.consumption.mark)
            others = {each for each in self.consumption.earlier if begins or _by_age(each) < mine}
            marks = sorted(
                others | ({self.consumption.mark} if own else set()), key=_by_age, reverse=True
            )
            keys = [self._key(taken_key(queue, each)) for each in marks]
            found = client.exists(*keys) if keys else 0
        for mark in marks if found else ():
            while (item := self._moved(PUT_BACK, taken_key(queue, mark), queue)) is not None:
                count += 1
                if begins and mark not in {self.consumption.mark, self.consumption.spared}:
                    self.consumption.suspects.add(_digest(item))
        return count

    def _search(self, client: Any, queue: str, *, everywhere: bool) -> None:
        """Find the terms that have lists of taken messages of `queue`, by a scan of Redis's keys.

        `everywhere`: scan all keys; otherwise about a thousand per call. A scan of Redis returns
        every key that exists for its whole duration, and each step is short.
        """
        prefix = self._key(taken_key(queue, ""))
        pattern = re.sub(r"([\\\[\]*?^-])", r"\\\1", prefix) + "*"
        of = self.consumption
        if everywhere:
            of.cursor = 0
        while True:
            of.cursor, found = client.scan(of.cursor, pattern, SCANNED_AT_ONCE, "LIST")
            marks = {bytes_to_str(each)[len(prefix) :] for each in found}
            of.earlier |= {each for each in marks if re.fullmatch(_MARK, each)} - {of.mark}
            if not everywhere or of.cursor == 0:
                return


def _digest(item: bytes) -> bytes:
    return blake2b(item, digest_size=16).digest()


class OrderedTransport(Transport):
    """The Redis transport of a sequencer's process."""

    Channel = OrderedChannel


class OrderedSentinelChannel(OrderedChannel, redis.SentinelChannel):
    """The sequencer's channel to the primary that Sentinels name."""

    connection_class = SentinelConnection
    connection_class_ssl = SentinelSSLConnection


class OrderedSentinelTransport(Transport, redis.SentinelTransport):
    """The transport of a sequencer's process, with Sentinel."""

    Channel = OrderedSentinelChannel


class RabbitChannel(pyamqp.Channel):
    """A channel that never decompresses: a compressed body may expand a thousandfold."""

    def message_to_python(self, raw_message: Any) -> Any:
        """Decode a message. A compressed one is left as it is, with a header that says so."""
        headers = raw_message.properties.get("application_headers")
        if isinstance(headers, dict) and headers.pop("compression", None) is not None:
            headers[UNREADABLE] = COMPRESSED
        return super().message_to_python(raw_message)


def _properties(data: bytes, offset: int) -> tuple[dict[str, Any], int]:
    """Decode an AMQP message's properties in `data` from `offset`; return them and their end."""
    try:
        found: tuple[dict[str, Any], int] = serialization.decode_properties_basic(data, offset)
    except Exception as error:  # noqa: BLE001 - bytes that are no text, dates, tables without end
        why = f"properties: not readable: {type(error).__name__}"
        return {"application_headers": {UNREADABLE: why}}, len(data)
    return found


class RabbitConnection(pyamqp.Connection):
    """A connection to RabbitMQ whose channels do not decompress."""

    Channel = RabbitChannel


class RabbitTransport(pyamqp.Transport):
    """A worker's transport to RabbitMQ, which puts back unacknowledged messages itself."""

    Connection = RabbitConnection


class RabbitTLSTransport(pyamqp.SSLTransport):
    """A worker's transport to RabbitMQ with TLS."""

    Connection = RabbitConnection


def install(consumption: Consumption, *, ordered: bool) -> None:
    """Use this module's transports for every connection that kombu opens in this process.

    `consumption`: the state that all its channels of Redis share. `ordered`: True in a sequencer's
    process. The transports replace kombu's of the same schemes, so TLS and sockets work as usual.
    """
    readers: dict[int, Any] = serialization.PROPERTY_CLASSES
    readers[spec.Basic.CLASS_ID] = _properties
    redis_transport = with_consumption(OrderedTransport if ordered else Transport, consumption)
    sentinel = with_consumption(
        OrderedSentinelTransport if ordered else SentinelTransport, consumption
    )
    aliases: dict[str, Any] = transport.TRANSPORT_ALIASES
    aliases |= {
        "redis": lambda: redis_transport,
        "rediss": lambda: redis_transport,
        "sentinel": lambda: sentinel,
        "amqp": lambda: RabbitTransport,
        "amqps": lambda: RabbitTLSTransport,
    }


def with_consumption(base: type[Transport], consumption: Consumption) -> type[Transport]:
    """Return the transport `base` whose channels share `consumption`.

    Kombu makes a transport of its class alone.
    """

    class Sharing(base):  # type: ignore[valid-type,misc] # a class of those above
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, consumption=consumption, **options)

    return Sharing
