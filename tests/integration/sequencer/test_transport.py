"""The sequencer's transport against a real Valkey: what is taken stays listed until it is handled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Producer, Queue

from assignment_workers.client.wire.message import message
from assignment_workers.sequencer.transport import (
    OrderedChannel,
    OrderedTransport,
    Transport,
    taken_key,
)

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
        items: list[bytes] = self.server.lrange(taken_key(QUEUE, "0"), 0, -1)  # type: ignore[assignment]
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


OLDEST, OLDER, MINE, LATER = (
    f"{number}.{place:032x}" for place, number in enumerate((2, 9, 9, 10), start=1)
)
"""Marks of terms in the order in which they began; the database moved back before the third."""


@pytest.fixture
def led(line: Line) -> Line:
    """The line under a term of its own."""
    line.channel.consumption.mark = MINE
    for number in range(2_500):
        line.server.set(f"celery-task-meta-{number}", b"a result among others")
    return line


def took(line: Line, mark: str, *names: str) -> None:
    for name in names:
        line.server.lpush(taken_key(QUEUE, mark), name)


def waiting(line: Line) -> list[str]:
    """The queue, its head first."""
    items: list[bytes] = line.server.lrange(QUEUE, 0, -1)  # type: ignore[assignment]
    return [each.decode() for each in items[::-1]]


def test_a_term_that_begins_puts_back_every_list_whatever_its_number(led: Line) -> None:
    line = led
    line.server.lpush(QUEUE, "waits")
    took(line, OLDER, "c", "d")
    took(line, LATER, "e")
    took(line, OLDEST, "a", "b")
    took(line, "1", "of release 0.1")
    others = {f"{QUEUE}.lane.taken.{OLDER}", f"{QUEUE}.taken.taken.{OLDER}", f"{QUEUE}.taken.x"}
    for key in others:
        line.server.lpush(key, "another lane's")
    assert line.channel.put_back(QUEUE, begins=True) == 6
    assert waiting(line) == ["of release 0.1", "a", "b", "c", "d", "e", "waits"]
    assert all(line.server.llen(key) == 1 for key in others)


def test_a_leader_that_may_be_overtaken_leaves_what_later_terms_have_taken(led: Line) -> None:
    line = led
    took(line, LATER, "a successor's")
    took(line, OLDEST, "a")
    took(line, MINE, "b")
    assert line.channel.put_back(QUEUE, own=True) == 2
    assert waiting(line) == ["a", "b"]


def test_what_a_term_takes_that_the_database_has_forgotten_is_found_by_and_by(led: Line) -> None:
    """A leader that wakes takes one more; each sweep looks at a part of all keys."""
    line = led
    assert line.channel.put_back(QUEUE, begins=True) == 0
    took(line, OLDER, "late")
    sweeps = [line.channel.put_back(QUEUE) for _ in range(4)]
    assert sum(sweeps) == 1
    assert waiting(line) == ["late"]


def test_the_last_leader_is_known_from_redis_and_what_it_takes_later_is_found_at_once(
    led: Line,
) -> None:
    line = led
    line.server.set(f"{QUEUE}.term", OLDER)
    assert line.channel.take_up(QUEUE) == OLDER
    assert line.channel.take_up(QUEUE) is None, "its own"
    assert line.server.get(f"{QUEUE}.term") == MINE.encode()
    took(line, OLDER, "late")
    assert line.channel.put_back(QUEUE) == 1


@pytest.mark.parametrize("transport", [Transport, OrderedTransport])
def test_a_channel_whose_connection_was_closed_is_mended_like_a_lost_connection(
    redis_url: str, transport: type[Transport]
) -> None:
    """Seen in the drill: another thread's lost connection had closed the channel of a job's message."""
    with (
        Connection(redis_url, transport=transport) as connection,
        redis.Redis.from_url(redis_url) as server,
    ):
        producer: Any = Producer(connection)
        producer.channel.close()
        for exchange in ("", "celeryev"):
            with pytest.raises(connection.recoverable_connection_errors):
                producer.publish("lost", exchange=exchange, routing_key=QUEUE)
        producer.publish("kept", routing_key=QUEUE, retry=True, retry_policy={"max_retries": 2})
        assert server.llen(QUEUE) == 1
