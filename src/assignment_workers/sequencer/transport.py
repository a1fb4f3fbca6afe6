"""Transports: what is malformed never reaches Celery; the sequencer's loses and overtakes nothing.

Stock kombu raises for what is not a message of Celery's, and the worker ends. It takes a
message off the queue with BRPOP and writes it down afterwards, so one taken by a process killed in
between is lost; and what it puts back comes after what arrived later. The sequencer's moves a
message by BLMOVE, in one step, from the queue to the list of what this term has taken, and off that
when it is acknowledged. Whoever leads next moves the list back, last taken first, so the order is
what it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from hashlib import blake2b
from queue import Empty
from time import monotonic, sleep, time
from typing import Any, ClassVar

import structlog
from amqp import serialization, spec
from kombu import transport
from kombu.transport import pyamqp, redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps
from redis.exceptions import ConnectionError, ResponseError  # noqa: A004

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
"""Keys that one step of a search for lists of taken messages looks at: a millisecond of Redis."""


def taken_key(queue: str, mark: str) -> str:
    """The list of what the term of this mark has taken from `queue` and not acknowledged."""
    return f"{queue}.taken.{mark}"


def _by_age(mark: str) -> tuple[str, int]:
    """The order in which terms began, by their ids: a database that moved back counts anew.

    Those without an id, of release 0.1, come first.
    """
    number, _, term_id = mark.partition(".")
    return term_id, int(number)


_MARK = r"\d+(?:\.[0-9a-f]{32})?"


def unstored_key(queue: str) -> str:
    """The list of malformed messages of `maintenance` whose dead letters cannot be written yet."""
    return f"{queue}.unstored"


def of_broker(errors: Iterable[type[Exception]]) -> tuple[type[Exception], ...]:
    """Those of kombu's errors that tell of the broker; its KeyError tells of a message."""
    return tuple(each for each in errors if each is not KeyError)


def packed(*words: str | bytes) -> bytes:
    """A command as Redis takes it; redis-py takes ten times as long to write one."""
    said = [each if isinstance(each, bytes) else each.encode() for each in words]
    return b"*%d\r\n" % len(said) + b"".join(b"$%d\r\n%b\r\n" % (len(each), each) for each in said)


class Channel(redis.Channel):
    """A consumer that gives what is malformed to `on_malformed`, and goes on."""

    connection_errors: tuple[type[Exception], ...]
    _queue_cycle: Any
    _flush_brpop_reauth: Callable[[], None]
    sep: str
    on_malformed: ClassVar[list[Callable[[str, bytes, Malformed], None]]] = []
    """Given what is not a message: queue, bytes, and why. Afterwards it is off the queue."""
    largest: ClassVar[int] = 2**30
    """In bytes; a larger message is not read."""

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
        """The next message and its queue; raises `Empty` when there was none in time."""
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
        """Wait a moment where Redis refuses to write, and return why; raise any other error."""
        why = refused(error)
        if why is None:
            raise error
        REFUSING.note(why)
        sleep(PAUSE_SECONDS)
        return why

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Bind a queue, in a Redis that is full too: a binding is small, and made once."""
        bind: Callable[..., None] = super()._queue_bind  # type: ignore[misc] # its types lack it
        try:
            bind(exchange, routing_key, pattern, queue)
        except ResponseError as error:
            if self._refused(error) is not RedisRefusal.FULL:
                # Celery connects again, as often as it takes.
                raise ConnectionError(str(RedisRefusal.UNSAVED)) from error
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
        if answer is None:  # an empty message is one
            raise Empty
        return answer

    def _read(self, queue: str, item: bytes) -> dict[str, Any] | None:
        """The message as kombu wants it; None for what is malformed."""
        try:
            if len(item) > self.largest:
                raise Malformed(f"{len(item)} bytes: a message of at most {self.largest} is read")
            message = envelope_of(item, queue)
        except Malformed as wrong:
            try:
                for refuse in self.on_malformed:
                    refuse(queue, item, wrong)
            except NotStored:
                self._hold(queue, item)
            else:
                self._drop(queue, item)
            return None
        # The sender's tag may be that of another message.
        message["properties"]["delivery_tag"] = self._next_delivery_tag()
        return message

    def _drop(self, queue: str, item: bytes) -> None:
        """A malformed message is stored: it is off the queue already."""

    def _hold(self, queue: str, item: bytes) -> None:
        """A malformed message could not be stored: it stays in Redis, beside the queue."""
        with self.conn_or_acquire() as client:
            client.rpush(unstored_key(queue), item)

    def store_again(self, queue: str) -> None:
        """Store the malformed messages that could not be stored before; until one cannot be."""
        with self.conn_or_acquire() as client:
            while items := client.lrange(unstored_key(queue), 0, 0):
                count = client.llen(unstored_key(queue))
                if self._read(queue, items[0]) is not None:  # this version can read it
                    client.rpush(queue, items[0])
                client.lrem(unstored_key(queue), 1, items[0])
                if client.llen(unstored_key(queue)) >= count:
                    return

    def set_aside(self, tag: str) -> None:
        """The next message may come, though this one is not acknowledged."""
        virtual.QoS.ack(self.qos, tag)

    def release(self, tag: str) -> None:
        """A message that was set aside is acknowledged."""
        qos: Any = self.qos
        qos._remove_from_indices(tag).execute()  # noqa: SLF001

    def _receive_one(self, c: Any) -> Any:
        """One message to every process; one that cannot be read is logged, and is no message."""
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
    """Kombu's own, which can note what it has taken in a Redis that is full, too."""

    channel: Channel

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a message that was taken, or it would be in no place."""
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
        """Put back what nobody acknowledged in time; later, where Redis refuses to write."""
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


class OrderedQoS(virtual.QoS):
    """Acknowledging takes a message off the list of taken ones; nothing else has to be kept."""

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
        """What is not acknowledged stays listed: the next leader puts it back."""

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Nothing becomes visible by the passing of time."""


class OrderedChannel(Channel):
    """One consumer of one queue; `mark`, its term's, says where it keeps what it has taken.

    Whatever list of a term is in Redis is put back, because the database may know nothing of it:
    one that has moved back to a copy of its past has lost the terms that began since.
    """

    QoS = OrderedQoS  # type: ignore[assignment]
    mark: ClassVar[str] = "0"
    earlier: ClassVar[set[str]] = set()
    """The marks of this lane's other terms, as far as they are known."""
    spared: ClassVar[str | None] = None
    """The mark of a term that was ended while its process lived: it died of no message."""
    suspects: ClassVar[set[bytes]] = set()
    """What dead terms had taken, by digests: each is delivered as one that was before."""
    _cursor: ClassVar[int] = 0
    """Where the search for others goes on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._raw: dict[str, tuple[str, bytes]] = {}
        self._handled: list[tuple[str, bytes]] = []
        self._unstored: list[tuple[str, bytes]] = []
        super().__init__(*args, **kwargs)

    def _brpop_start(self, timeout: float | None = None) -> None:
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        (self._asked,) = queues
        wait = self.brpop_timeout if timeout is None else timeout
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        source, target = self._key(self._asked), self._key(taken_key(self._asked, self.mark))
        sent = b""
        for queue, item in self._handled:
            # Not answered: were it lost, the message would be put back, and its answer the same.
            sent += packed("CLIENT", "REPLY", "SKIP")
            sent += packed("LREM", self._key(taken_key(queue, self.mark)), "1", item)
        sent += packed("BLMOVE", source, target, "RIGHT", "LEFT", str(wait or 0))
        self.client.connection.send_packed_command([sent])
        self._handled = []

    def _received(self, **options: Any) -> tuple[str, bytes]:
        try:
            return self._asked, self._response("BLMOVE", **options)
        except ResponseError as error:
            item = None
            if self._refused(error) is RedisRefusal.FULL:
                item = self._moved(TAKE, self._asked, taken_key(self._asked, self.mark))
            if item is None:
                raise Empty from error
            return self._asked, item

    def _moved(self, script: str, source: str, target: str) -> bytes | None:
        """The message that a script has moved, in a Redis that is full too; None for none."""
        with self.conn_or_acquire() as client:
            moved: bytes | None = client.eval(script, 2, self._key(source), self._key(target))
        return moved

    def _read(self, queue: str, item: bytes) -> dict[str, Any] | None:
        message = super()._read(queue, item)
        if message is not None:
            self._raw[message["properties"]["delivery_tag"]] = (queue, item)
            if self.suspects and (known := _digest(item)) in self.suspects:
                self.suspects.discard(known)
                message["properties"]["delivery_info"]["redelivered"] = True
        return message

    def _drop(self, queue: str, item: bytes) -> None:
        self._remove(queue, item)

    def _hold(self, queue: str, item: bytes) -> None:
        """It stays in the list of what was taken, which a successor puts back."""
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
        """The message as it stands in Redis; None for one that is not in hand."""
        return self._raw[tag][1] if tag in self._raw else None

    def forget(self, tag: str) -> None:
        """The message was handled: it leaves the list with the next asking, or by `settle`."""
        if tag in self._raw:
            self._handled.append(self._raw.pop(tag))

    def settle(self) -> None:
        """What was handled leaves the list now: no next message is asked for."""
        while self._handled:
            self._remove(*self._handled[0])
            del self._handled[0]

    def _remove(self, queue: str, item: bytes) -> None:
        with self.conn_or_acquire() as client:
            client.lrem(self._key(taken_key(queue, self.mark)), 1, item)

    def give_back(self, tag: str) -> None:
        """The message was not handled: it is the next one again."""
        if tag not in self._raw:
            return
        queue, item = self._raw.pop(tag)
        keys = self._key(taken_key(queue, self.mark)), self._key(queue)
        with self.conn_or_acquire() as client:
            client.eval(GIVE_BACK, 2, *keys, item)

    def take_up(self, queue: str) -> str | None:
        """Leave the mark of this term in Redis; the one that stood there, if another's.

        It names the last leader even where the database has forgotten its term.
        """
        with self.conn_or_acquire() as client:
            found = client.eval(REPLACE, 1, self._key(f"{queue}.term"), self.mark)
        last = bytes_to_str(found) if found else None
        if last is None or last == self.mark or not re.fullmatch(_MARK, last):
            return None
        self.earlier.add(last)
        return last

    def put_back(self, queue: str, *, own: bool = False, begins: bool = False) -> int:
        """Move what other terms had taken, and with `own` this one, to the head of the queue.

        In the order in which it was taken; returns how many. `own` only while nothing runs. A term
        that `begins` takes from every other one; later on from earlier ones alone, because it may
        be over without knowing. With either, all keys are searched for lists, else a thousand.
        What a dead term had taken may be why its process died, and is delivered as a suspect.
        """
        self.settle()
        count = 0
        with self.conn_or_acquire() as client:
            self._search(client, queue, everywhere=own or begins)
            mine = _by_age(self.mark)
            others = {each for each in self.earlier if begins or _by_age(each) < mine}
            marks = sorted(others | ({self.mark} if own else set()), key=_by_age, reverse=True)
            keys = [self._key(taken_key(queue, each)) for each in marks]
            found = client.exists(*keys) if keys else 0
        for mark in marks if found else ():
            while (item := self._moved(PUT_BACK, taken_key(queue, mark), queue)) is not None:
                count += 1
                if begins and mark not in {self.mark, self.spared}:
                    self.suspects.add(_digest(item))
        return count

    def _search(self, client: Any, queue: str, *, everywhere: bool) -> None:
        """Learn the marks of lists that are there, a part of all keys at a time.

        A scan of Redis shows what is there for as long as it lasts; each step is short for others.
        """
        prefix = self._key(taken_key(queue, ""))
        pattern = re.sub(r"([\\\[\]*?^-])", r"\\\1", prefix) + "*"
        cls = type(self)
        if everywhere:
            cls._cursor = 0
        while True:
            cls._cursor, found = client.scan(cls._cursor, pattern, SCANNED_AT_ONCE, "LIST")
            marks = {bytes_to_str(each)[len(prefix) :] for each in found}
            cls.earlier |= {each for each in marks if re.fullmatch(_MARK, each)} - {self.mark}
            if not everywhere or cls._cursor == 0:
                return


def _digest(item: bytes) -> bytes:
    return blake2b(item, digest_size=16).digest()


class OrderedTransport(redis.Transport):
    """The Redis transport of a sequencer's process."""

    Channel = OrderedChannel


class RabbitChannel(pyamqp.Channel):
    """A channel that unpacks nothing: what is compressed may be a thousand times its size."""

    def message_to_python(self, raw_message: Any) -> Any:
        """The message; a compressed one as it is, with a header that says so."""
        headers = raw_message.properties.get("application_headers")
        if isinstance(headers, dict) and headers.pop("compression", None) is not None:
            headers[UNREADABLE] = COMPRESSED
        return super().message_to_python(raw_message)


def _properties(data: bytes, offset: int) -> tuple[dict[str, Any], int]:
    """The properties of a message; py-amqp's own reader ends the connection's for some."""
    try:
        found: tuple[dict[str, Any], int] = serialization.decode_properties_basic(data, offset)
    except Exception as error:  # noqa: BLE001 - bytes that are no text, dates, tables without end
        why = f"properties: not readable: {type(error).__name__}"
        return {"application_headers": {UNREADABLE: why}}, len(data)
    return found


class RabbitConnection(pyamqp.Connection):
    """A connection to RabbitMQ with such channels."""

    Channel = RabbitChannel


class RabbitTransport(pyamqp.Transport):
    """The transport of a worker's process to RabbitMQ, which itself puts back what was taken."""

    Connection = RabbitConnection


class RabbitTLSTransport(pyamqp.SSLTransport):
    """The same with TLS."""

    Connection = RabbitConnection


def install(
    *, ordered: bool, on_malformed: Callable[[str, bytes, Malformed], None], largest: int
) -> None:
    """Every connection that kombu makes in this process goes through such a transport.

    By its addresses' own schemes, so that TLS and sockets work as they do elsewhere.
    """
    Channel.on_malformed.append(on_malformed)
    Channel.largest = largest
    readers: dict[int, Any] = serialization.PROPERTY_CLASSES
    readers[spec.Basic.CLASS_ID] = _properties
    redis_transport = OrderedTransport if ordered else Transport
    for scheme, made in {
        "redis": redis_transport,
        "rediss": redis_transport,
        "amqp": RabbitTransport,
        "amqps": RabbitTLSTransport,
    }.items():
        transport.TRANSPORT_ALIASES[scheme] = f"{__name__}:{made.__name__}"
