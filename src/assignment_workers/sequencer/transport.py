"""Kombu transports: Celery gets no malformed message, and a sequencer gets messages in order.

Kombu's own Redis transport raises an error for a message that is not in Celery's form, and the
worker ends. It takes a message off the queue with BRPOP and records it afterwards, so a message is
lost if the process is killed in between, and a message that is put back comes after later messages.

The sequencer's Redis transport moves a message with BLMOVE, in one step, from the queue to a list
of the messages that this term has taken. It removes the message from the list when the message is
acknowledged. The next leader moves the messages of the list back into the queue, the last one
first, which restores the order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from queue import Empty
from time import monotonic, sleep, time
from typing import Any
from uuid import uuid4

import structlog
from amqp import serialization, spec
from kombu import transport
from kombu.exceptions import OperationalError
from kombu.transport import pyamqp, redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps
from redis import connection as redis_connection
from redis.exceptions import ConnectionError, ResponseError  # noqa: A004

from assignment_workers.client.wire.redis_clients import (
    FailoverConnection,
    FailoverSSLConnection,
    SentinelConnection,
    SentinelSSLConnection,
)
from assignment_workers.errors import Malformed, NotStored
from assignment_workers.sequencer.envelope import COMPRESSED, UNREADABLE, envelope_of
from assignment_workers.sequencer.redis_refusals import (
    BIND,
    GIVE_BACK,
    LOCK,
    NO_KEY,
    NOTE,
    PAUSE_SECONDS,
    PUT_BACK,
    REPLACE,
    TAKE,
    UNLOCK,
    WRITE_REFUSALS,
    RedisRefusal,
    refused,
)

log = structlog.get_logger()

ANSWER_SECONDS = 3.0
"""The most seconds to wait for RabbitMQ's answer to a command, such as to consume a queue."""
SCANNED_AT_ONCE = 1_000
"""Keys per step of a search for lists of taken messages. A step occupies Redis for about 1 ms."""


def taken_key(queue: str, mark: str) -> str:
    """Return the Redis key of the list of messages that a term took from `queue`.

    `mark` is the number and id of the term. The list's messages are not acknowledged yet.
    """
    return f"{queue}.taken.{mark}"


def _by_age(mark: str) -> tuple[str, int]:
    """Return a sort key that orders marks (number and id of a term) by the start of their terms.

    The id, which begins with a time, counts first: numbers repeat after a database has moved back
    to a copy of its past. Marks without an id, of release 0.1, come first.
    """
    number, _, term_id = mark.partition(".")
    return term_id, int(number)


_MARK = r"\d+(?:\.[0-9a-f]{32})?"


STORING_SECONDS = 20
"""Seconds after which the lock of `Channel.store_again` ends by itself, if its process has died."""


def unstored_key(queue: str) -> str:
    """Return the Redis key of the list of malformed messages not yet stored as dead letters."""
    return f"{queue}.unstored"


def of_broker(errors: Iterable[type[Exception]]) -> tuple[type[Exception], ...]:
    """Return `errors` without KeyError.

    Kombu lists KeyError among a broker's errors, but here it means a defective message.
    """
    return tuple(each for each in errors if each is not KeyError)


@contextmanager
def pooled_producer(app: Any) -> Iterator[Any]:
    """Yield a producer, which sends messages; with RabbitMQ, drop its connection after an error.

    The producer is one of those that the Celery application keeps for reuse. An error is one that
    kombu or the broker's client library raises inside the `with` block. It is raised again. After
    such an error, kombu itself would keep the connection. If the connection's RabbitMQ node hangs,
    each further message would then hold up the worker. So the connection is dropped here, and the
    next connection is to the next node in the broker's address.
    """
    with app.producer_pool.acquire(block=True, timeout=1.0) as producer:
        connection = producer.connection
        try:
            yield producer
        except (*connection.connection_errors, *connection.channel_errors, OperationalError):
            if connection.transport.driver_type == "amqp":
                connection.collect()
                connection.maybe_switch_next()
            raise


def packed(*words: str | bytes) -> bytes:
    """Encode the words of a Redis command in Redis's protocol. redis-py takes ten times as long."""
    said = [each if isinstance(each, bytes) else each.encode() for each in words]
    return b"*%d\r\n" % len(said) + b"".join(b"$%d\r\n%b\r\n" % (len(each), each) for each in said)


@dataclass
class Consumption:
    """The state that all Redis channels of one worker process share.

    It has the function that handles malformed messages. In a sequencer's process it also has marks,
    each of which is the number and id of a term of this lane. Each term has a list in Redis of the
    messages that the term's sequencer has taken and not finished. The mark of the term is a part of
    the list's key. The next sequencer puts these messages back into the assignment queue.
    """

    on_malformed: Callable[[str, bytes, Malformed], None] | None = None
    """The function that is called with the queue, the bytes and the error of a malformed message.

    If the function raises `NotStored`, it is called again later with the same message.
    """
    largest: int = 2**30
    """The size in bytes above which a message is not read."""
    mark: str = "0"
    """The number and id of this sequencer's term: part of the key of the list of taken messages.
    """
    earlier: set[str] = field(default_factory=set)
    """The marks (number and id) of this lane's other terms, as far as this process knows them.

    Messages that the sequencers of these terms took and did not finish are put back into the queue.
    """
    spared: str | None = None
    """The mark (number and id) of the term of the silent leader that this process replaced.

    The process of that leader had not ended, so none of its messages is suspected of having ended
    it. None: this process has replaced no silent leader.
    """
    suspects: set[bytes] = field(default_factory=set)
    """Digests of messages taken by sequencers whose processes have ended since.

    Such a message is delivered with the mark `redelivered`.
    """
    cursor: int = 0
    """The cursor at which the next Redis SCAN continues the search for lists of taken messages."""


class Channel(redis.Channel):
    """Kombu's Redis channel, changed to pass malformed messages to `on_malformed` and continue."""

    connection_class: type[redis_connection.Connection] = FailoverConnection
    connection_class_ssl: type[redis_connection.SSLConnection] = FailoverSSLConnection
    connection_errors: tuple[type[Exception], ...]
    _queue_cycle: Any
    _flush_brpop_reauth: Callable[[], None]
    sep: str

    def __init__(self, connection: Transport, **options: Any) -> None:
        self.consumption = connection.consumption
        super().__init__(connection, **options)

    def _get_pool(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's
        with self._open():
            return super()._get_pool(asynchronous)  # type: ignore[misc] # kombu's types lack it

    @property
    def state(self) -> Any:
        """The exchanges and bindings that the transport knows."""
        with self._open():
            return super().state

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Turn kombu's AttributeError into a connection error if this channel is closed.

        A closed channel has None in place of its connection, so kombu's code fails with an
        AttributeError. After a connection error, the failed operation is tried again.
        """
        try:
            yield
        except AttributeError as error:
            if self.connection is None:
                raise ConnectionError("the connection to the broker was closed") from error
            raise

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
        """Return the next message and its queue.

        Raises `Empty` if none arrives before kombu's timeout.
        """
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
        """Sleep 50 ms, then return the reason for which Redis refused a write.

        Without the pause, a worker would read its queue again and again in quick succession. If
        `error` is not the error of a refused write, this method raises it at once.
        """
        why = refused(error)
        if why is None:
            raise error
        WRITE_REFUSALS.note(why)
        sleep(PAUSE_SECONDS)
        return why

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Bind a queue to an exchange, even if Redis is full."""
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

        A malformed message is passed to `on_malformed`, and None is returned.
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
        """Do nothing: BRPOP has already removed the malformed message from its queue.

        A subclass whose messages stay in a list removes the message here, once its dead letter is
        stored.
        """

    def _hold(self, queue: str, item: bytes) -> None:
        """Put a malformed message into a list in Redis until its dead letter can be stored.

        `unstored_key` returns the key of this list.
        """
        with self.conn_or_acquire() as client:
            client.rpush(unstored_key(queue), item)

    def store_again(self, queue: str) -> None:
        """Try again to store the malformed messages of `queue` as dead letters, until one fails.

        These messages wait in a list in Redis. A message that is no longer malformed, because this
        program was updated, goes back to `queue`. A lock in Redis keeps several workers from
        storing the same message, as long as storing one message takes no more than ten seconds.
        """
        key = unstored_key(queue)
        whole = self._key(key)  # kombu's client adds the prefix to some commands only
        lock, owner = f"{whole}.lock", uuid4().hex
        until = monotonic() + STORING_SECONDS / 2
        with self.conn_or_acquire() as client:
            if not client.llen(key):
                return
            if not client.eval(LOCK, 2, lock, self._key(NO_KEY), owner, STORING_SECONDS):
                return
            try:
                while monotonic() < until and (items := client.lrange(whole, 0, 0)):
                    count = client.llen(key)
                    if self._read(queue, items[0]) is not None:  # this version can read it
                        client.rpush(queue, items[0])
                    client.lrem(whole, 1, items[0])
                    if client.llen(key) >= count:
                        return
            finally:
                client.eval(UNLOCK, 1, lock, owner)

    def set_aside(self, tag: str) -> None:
        """Stop counting the unacknowledged message `tag` in the prefetch limit.

        Further messages are then delivered while this one waits for its dead letter to be stored.
        """
        virtual.QoS.ack(self.qos, tag)

    def release(self, tag: str) -> None:
        """Acknowledge a message whose dead letter has at last been stored.

        While the dead letter could not be stored, the message waited unacknowledged, and
        `set_aside` had excluded it from the prefetch limit.
        """
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
    """Kombu's record of unacknowledged messages, which works in a full Redis too."""

    channel: Channel
    _is_lost = False
    """True once an acknowledgement or a rejection got no answer from Redis."""

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message. If Redis does not answer, the connection counts as lost.

        Celery logs the error of an acknowledgement and goes on. The message would count as taken
        for good, and a worker that takes one message at a time would never take another.
        """
        with self._losing():
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002
        """Reject a message. If Redis does not answer, the connection counts as lost."""
        with self._losing():
            super().reject(delivery_tag, requeue=requeue)

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except of_broker(self.channel.connection_errors):
            self._is_lost = True
            raise

    def can_consume(self) -> bool:
        """Return True if another message may be taken; raise an error if the connection is lost."""
        if self._is_lost:
            raise ConnectionError("an acknowledgement got no answer from Redis")
        return bool(super().can_consume())

    def append(self, message: Any, delivery_tag: str) -> None:
        """Record that a message was taken from its queue and is not acknowledged yet."""
        try:
            super().append(message, delivery_tag)
        except ResponseError as error:
            if refused(error) is not RedisRefusal.FULL:
                raise
            WRITE_REFUSALS.note(RedisRefusal.FULL)
            names = (self.unacked_index_key, self.unacked_key, NO_KEY)
            keys = [self.channel._key(each) for each in names]  # noqa: SLF001
            info = message.delivery_info
            noted = dumps([message._raw, info["exchange"], info["routing_key"]])  # noqa: SLF001
            with self.channel.conn_or_acquire() as client:
                client.eval(NOTE, len(keys), *keys, delivery_tag, str(time()), noted)
            virtual.QoS.append(self, message, delivery_tag)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Put back messages not acknowledged in time; do nothing while Redis refuses writes."""
        try:
            super().restore_visible(*args, **kwargs)
        except ResponseError as error:
            if (why := refused(error)) is None:
                raise
            WRITE_REFUSALS.note(why)


Channel.QoS = QoS


class Transport(redis.Transport):
    """Kombu's Redis transport, with `Channel` as its channel class, for a process that consumes."""

    Channel = Channel

    def __init__(self, *args: Any, consumption: Consumption | None = None, **options: Any) -> None:
        self.consumption = consumption or Consumption()
        super().__init__(*args, **options)


class SentinelChannel(Channel, redis.SentinelChannel):
    """`Channel` for a connection to the primary that Redis Sentinel names."""

    connection_class = SentinelConnection
    connection_class_ssl = SentinelSSLConnection


class SentinelTransport(Transport, redis.SentinelTransport):
    """`Transport` for a connection through Redis Sentinel."""

    Channel = SentinelChannel


class OrderedQoS(virtual.QoS):
    """Acknowledges a message by removing it from the list of messages that this term has taken."""

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
        """Do nothing at shutdown: the next leader puts back the unacknowledged messages.

        Until then they stay in the list of the messages that this term has taken.
        """

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: an unacknowledged message is not delivered again after a timeout."""


class OrderedChannel(Channel):
    """The sequencer's channel: a taken message is in a Redis list until it is acknowledged.

    Each term has a list of its own. The term's mark (number and id) is part of the list's key. A
    new leader puts the messages of all these lists in Redis back into the assignment queue. It does
    so even for a term that the database does not know, because the database may have been replaced
    by an older copy of itself, such as a restored backup.
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
        """Run `script`, which moves a message from `source` to `target`; return the message.

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
        """Remember a malformed message whose dead letter could not be stored.

        `store_again` tries again to store it. Until then the message stays in this term's list of
        taken messages. If this process ends, the next leader puts the message back into the queue.
        """
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
        """Return the bytes of the message with this delivery tag.

        None if the message is not being handled.
        """
        return self._raw[tag][1] if tag in self._raw else None

    def forget(self, tag: str) -> None:
        """Mark a message as handled, so that it is removed from Redis later.

        It is removed together with the next read from the queue, or when `settle` is called.
        """
        if tag in self._raw:
            self._handled.append(self._raw.pop(tag))

    def settle(self) -> None:
        """Remove the handled messages from Redis now, not with the next read of the queue."""
        while self._handled:
            self._remove(*self._handled[0])
            del self._handled[0]

    def _remove(self, queue: str, item: bytes) -> None:
        with self.conn_or_acquire() as client:
            client.lrem(self._key(self._taken(queue)), 1, item)

    def give_back(self, tag: str) -> None:
        """Return an unhandled message to the queue, as the next to be delivered."""
        if tag not in self._raw:
            return
        queue, item = self._raw.pop(tag)
        keys = self._key(self._taken(queue)), self._key(queue)
        with self.conn_or_acquire() as client:
            client.eval(GIVE_BACK, 2, *keys, item)

    def take_up(self, queue: str) -> str | None:
        """Store this term's mark (number and id) in Redis; return the mark it replaces, or None.

        None if the previous mark is missing, invalid or this term's. The returned mark names the
        last leader's term even if the database has lost that term.
        """
        with self.conn_or_acquire() as client:
            found = client.eval(REPLACE, 1, self._key(f"{queue}.term"), self.consumption.mark)
        last = bytes_to_str(found) if found else None
        if last is None or last == self.consumption.mark or not re.fullmatch(_MARK, last):
            return None
        self.consumption.earlier.add(last)
        return last

    def put_back(self, queue: str, *, own: bool = False, begins: bool = False) -> int:
        """Put messages that were taken but not acknowledged back into `queue`; return their number.

        These messages are the next to be delivered, in their old order.

        By default, only messages that were taken in earlier terms are put back. Messages that were
        taken in a later term are left alone. A later term exists if this process's term is over and
        this process has not noticed yet. With `begins`, which is True at the start of this term,
        the messages of all other terms are put back. With `own`, the messages of this term are put
        back as well. That is correct only while no task runs.

        If a process ended after it had taken a message, the message may be the cause. So with
        `begins` the messages of other terms are marked as suspects. Messages of a silent leader
        that this process replaced (`Consumption.spared`) are not marked, because that leader's
        process had not ended.

        Cost: with `own` or `begins`, a scan of all keys of Redis. Without them, a call scans about
        a thousand keys, and the next call scans the following ones.
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
        """Find the Redis lists of messages of `queue` that earlier leaders took and did not finish.

        The leaders' terms are added to `Consumption.earlier`.

        Scans Redis's keys: all of them with `everywhere`, otherwise about a thousand per call. A
        scan of all keys finds every list that exists from the start of the scan to its end. A scan
        has many short steps, so that it does not block Redis for long.
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
    """The Redis transport of a sequencer process, with `OrderedChannel`."""

    Channel = OrderedChannel


class OrderedSentinelChannel(OrderedChannel, redis.SentinelChannel):
    """`OrderedChannel` for a connection to the primary that Redis Sentinel names."""

    connection_class = SentinelConnection
    connection_class_ssl = SentinelSSLConnection


class OrderedSentinelTransport(Transport, redis.SentinelTransport):
    """The transport of a sequencer process through Redis Sentinel."""

    Channel = OrderedSentinelChannel


class RabbitChannel(pyamqp.Channel):
    """A RabbitMQ channel that limits the wait for answers and decompresses no message.

    A compressed body may expand a thousandfold and then exhaust the memory of the worker. So a
    message with a compressed body is refused.
    """

    def wait(self, *args: Any, **options: Any) -> Any:
        """Wait for RabbitMQ's answer to a command; raise `TimeoutError` after `ANSWER_SECONDS`.

        RabbitMQ does not answer for a replicated queue if the queue's leading replica is on a lost
        node. During the wait, RabbitMQ still sends heartbeats. Each heartbeat starts the time-out
        of the socket again. Therefore, the time-out of the socket alone would never end the wait.
        """
        if self.connection is None:  # closed: super() says so
            return super().wait(*args, **options)
        with self.connection.deadline(ANSWER_SECONDS):
            return super().wait(*args, **options)

    def message_to_python(self, raw_message: Any) -> Any:
        """Decode a message, but do not decompress its body.

        A message with a compressed body gets the header `UNREADABLE`. The value of the header is
        the reason for which the message is refused later.
        """
        headers = raw_message.properties.get("application_headers")
        if isinstance(headers, dict) and headers.pop("compression", None) is not None:
            headers[UNREADABLE] = COMPRESSED
        return super().message_to_python(raw_message)


def _properties(data: bytes, offset: int) -> tuple[dict[str, Any], int]:
    """Decode the properties of an AMQP message in `data` from `offset`.

    Returns the properties and the offset after them. If the properties cannot be decoded, the
    returned ones have only the header `UNREADABLE`, with the reason.
    """
    try:
        found: tuple[dict[str, Any], int] = serialization.decode_properties_basic(data, offset)
    except Exception as error:  # noqa: BLE001 - bytes that are no text, dates, tables without end
        why = f"properties: not readable: {type(error).__name__}"
        return {"application_headers": {UNREADABLE: why}}, len(data)
    return found


class RabbitConnection(pyamqp.Connection):
    """A connection to RabbitMQ with `RabbitChannel` as its class of channels."""

    Channel = RabbitChannel
    _ends: float | None = None
    """The deadline of the present wait for an answer, by the monotonic clock; None: no wait."""

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Set a deadline for all reads within the block: `seconds` after the start of the block.

        A read that is not finished at the deadline raises `TimeoutError`. A block within another
        block has the deadline of the outer one.
        """
        outer = self._ends
        self._ends = monotonic() + seconds if outer is None else outer
        try:
            yield
        finally:
            self._ends = outer

    def blocking_read(self, timeout: float | None = None) -> Any:
        """Read and handle one frame from RabbitMQ; raise `TimeoutError` if it comes too late.

        `timeout`: the maximum wait in seconds; None: no maximum of its own. Within a block of the
        method `deadline`, the wait also ends at the deadline of that block, if this is earlier.
        """
        if self._ends is not None:
            left = self._ends - monotonic()
            if left <= 0:
                raise TimeoutError(f"RabbitMQ did not answer within {ANSWER_SECONDS:g} s")
            timeout = left if timeout is None else min(timeout, left)
        return super().blocking_read(timeout)


class RabbitTransport(pyamqp.Transport):
    """A worker's transport to RabbitMQ, with `RabbitConnection` as its connection class.

    It needs no list of taken messages like that of `OrderedTransport`, because RabbitMQ itself puts
    unacknowledged messages back into the queue.
    """

    Connection = RabbitConnection


class RabbitTLSTransport(pyamqp.SSLTransport):
    """A worker's transport to RabbitMQ with TLS."""

    Connection = RabbitConnection


def install(consumption: Consumption, *, ordered: bool) -> None:
    """Replace kombu's transports for Redis and RabbitMQ by this module's, in the whole process.

    `consumption`: the state that all Redis channels of the process share. `ordered`: True installs
    the Redis transports that keep the order of the messages, as a sequencer's process needs; False
    installs the other ones. The transports for RabbitMQ are the same in both cases. The URL schemes
    stay the same, so TLS and sockets work as usual.
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
    """Return a subclass of the transport class `base` whose channels share `consumption`.

    `consumption`: the state that all Redis channels of the process share. Kombu, which creates the
    transports, does not pass the argument `consumption`. The constructor of the subclass adds it.
    """

    class Sharing(base):  # type: ignore[valid-type,misc] # a class of those above
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, consumption=consumption, **options)

    return Sharing
