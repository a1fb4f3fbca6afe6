"""A Redis within the process, and ways to make it fail that a real one hardly shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fakeredis
from kombu import Connection

from assignment_workers.errors import Malformed
from assignment_workers.sequencer.transport import (
    Channel,
    Consumption,
    OrderedChannel,
    OrderedTransport,
    Transport,
    packed,
    with_consumption,
)

SKIP = packed("CLIENT", "REPLY", "SKIP")


class Wire:
    """A channel's connection, which fails as a test says, and lets answers be skipped.

    fakeredis does not know CLIENT REPLY: the answers to skip are read here.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.fails: list[Exception] = []
        """Raised one after the other instead of an answer."""
        self.disconnected = 0

    def send_packed_command(self, command: list[bytes]) -> None:
        (said,) = command
        self._connection.send_packed_command([said.replace(SKIP, b"")])
        for _ in range(said.count(SKIP)):
            self._connection.read_response()

    def read_response(self, *args: Any, **options: Any) -> Any:
        answer = self._connection.read_response(*args, **options)
        if self.fails:
            raise self.fails.pop(0)
        return answer

    def disconnect(self) -> None:
        self.disconnected += 1

    def send_command(self, *words: Any) -> None:
        self._connection.send_command(*words)


class Consumed:
    """A channel that consumes one queue of a Redis within the process."""

    def __init__(self, ordered: bool, *queues: str, prefix: str = "") -> None:
        self.server = fakeredis.FakeServer(version=(7,))
        self.redis = fakeredis.FakeRedis(server=self.server, protocol=2)
        self.refused: list[tuple[str, bytes, str]] = []
        self.got: list[Any] = []
        transport = OrderedTransport if ordered else Transport
        shared = Consumption(on_malformed=self._refuse)
        connection = Connection("redis://", transport=with_consumption(transport, shared))
        channel: Any = OrderedChannel if ordered else Channel
        pool = self.redis.connection_pool
        of_server = {"_get_pool": lambda *_, **__: pool, "global_keyprefix": prefix}
        made: Any = type("Faked", (channel,), of_server)
        self.channel: Any = made(connection.transport)
        self.wire = Wire(pool.get_connection())
        self.channel.client.connection = self.wire
        self.channel.connection._deliver = lambda message, _: self.got.append(message)
        for queue in queues:
            self.channel._queue_cycle.update([*self.channel.active_queues, queue])
            self.channel.active_fanout_queues = set()
            self.channel._active_queues.append(queue)

    def _refuse(self, queue: str, item: bytes, why: Malformed) -> None:
        self.refused.append((queue, item, str(why)))

    def take(self) -> Any:
        """The next message, as kombu's poller asks for it and reads it."""
        self.channel._brpop_start(timeout=0.01)
        self.channel._brpop_read()
        return self.got[-1]


@contextmanager
def consumed(*queues: str, ordered: bool = True, prefix: str = "") -> Iterator[Consumed]:
    """A channel on a Redis of its own; `prefix` comes before each of its keys."""
    yield Consumed(ordered, *queues, prefix=prefix)
