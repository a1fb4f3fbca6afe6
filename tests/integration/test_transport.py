"""The sequencer's transport against a real Valkey: what is taken stays listed until it is handled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Queue

from assignment_workers.client.message import message
from assignment_workers.sequencer.transport import OrderedChannel, OrderedTransport, taken_key

QUEUE = "assignment"


class Line:
    """A consumer of one message at a time, as the sequencer's worker is."""

    def __init__(self, connection: Connection, server: redis.Redis) -> None:
        channel = connection.channel()
        assert isinstance(channel, OrderedChannel)
        self.channel = channel
        self.server = server
        self.taken: list[Any] = []
        self._connection = connection
        queue = Queue(QUEUE, routing_key=QUEUE)
        consumer = Consumer(self.channel, [queue], on_message=self.taken.append)
        consumer.qos(prefetch_count=1)
        consumer.consume()

    def push(self, *names: str) -> None:
        for name in names:
            body = message("t", [], {}, task_id=name, celery_queue=QUEUE, expires=None)
            self.server.lpush(QUEUE, json.dumps(body))

    def take(self) -> Any:
        """The next message."""
        self._connection.drain_events(timeout=5)
        return self.taken[-1]

    def listed(self) -> list[str]:
        """What this term has taken and not handled, as Redis knows it."""
        items: list[bytes] = self.server.lrange(taken_key(QUEUE, 0), 0, -1)  # type: ignore[assignment]
        return [each.decode().split('"id": "')[1].split('"')[0] for each in items]


@pytest.fixture
def line(redis_url: str) -> Iterator[Line]:
    with (
        Connection(
            redis_url, transport=OrderedTransport, transport_options={"priority_steps": [0]}
        ) as connection,
        redis.Redis.from_url(redis_url) as server,
    ):
        yield Line(connection, server)


def test_what_was_handled_leaves_the_list_as_the_next_message_is_asked_for(line: Line) -> None:
    line.push("first", "second", "third")
    for name in ("first", "second", "third"):
        given = line.take()
        assert given.headers["id"] == name
        assert line.listed() == [name]
        given.ack()


def test_what_was_handled_leaves_the_list_at_once_where_no_message_is_asked_for(line: Line) -> None:
    line.push("first", "second")
    line.take().ack()
    line.channel.settle()
    assert line.listed() == []
    line.take()
    line.channel.settle()
    assert line.listed() == ["second"], "this one is not handled"


def test_a_message_that_was_given_back_is_the_next_one_again(line: Line) -> None:
    line.push("first", "second")
    line.take().reject(requeue=True)
    assert line.listed() == []
    again = line.take()
    assert again.headers["id"] == "first"
    again.ack()
    assert line.take().headers["id"] == "second"


def test_put_back_moves_what_was_not_handled_and_nothing_else(line: Line) -> None:
    line.push("first", "second")
    line.take().ack()
    line.take()
    line.channel.settle()
    assert line.channel.put_back(QUEUE, own=True) == 1
    assert line.listed() == []
    assert line.server.llen(QUEUE) == 1
