"""Functions that read Redis and RabbitMQ: waiting messages, signs of life, the schedule of beat."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from kombu import Connection
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeout

from assignment_workers.health import signs
from assignment_workers.health.readings import (
    NO_ANSWER,
    BrokerFacts,
    NotRead,
    Planned,
    QueuedMessages,
    ResultsFacts,
)
from assignment_workers.health.redis_client import ANSWER_SECONDS, connect

SCHEDULE = "assignment-workers:beat:"
"""The prefix of beat's keys in Redis: `redbeat_key_prefix` of the shipped celeryconfig.py."""
WRITE_TEST_KEY = "assignment-workers:health:written"
"""The Redis key that each health reading writes, to find out whether Redis accepts writes.

A Redis that is full still answers reads, but refuses writes.
"""
WRITE_TEST_SECONDS = 60
UNIX_MILLISECONDS_OF_VERSION = 7
"""The version of UUIDs that begin with their creation time in Unix milliseconds."""


def results_reader(redis_url: str) -> Callable[[], ResultsFacts]:
    """Return a function that reads the processes' signs of life and beat's schedule from Redis.

    This Redis also has the task results. The function tests with a write whether Redis accepts
    writes, and raises `NotRead` if Redis cannot be read.
    """

    def read() -> ResultsFacts:
        with _answering(), closing(connect(redis_url)) as redis:
            pipeline = redis.pipeline(transaction=False)
            pipeline.time()
            pipeline.hgetall(signs.SIGNS)
            pipeline.zrange(signs.SEEN, 0, -1, withscores=True)
            pipeline.zrange(f"{SCHEDULE}:schedule", 0, -1, withscores=True)
            pipeline.set(WRITE_TEST_KEY, b"1", ex=WRITE_TEST_SECONDS)
            *read_values, written = pipeline.execute(raise_on_error=False)
            for each in read_values:
                if isinstance(each, Exception):
                    raise each
            (seconds, microseconds), hashed, seen, planned = read_values
            now = seconds + microseconds / 1_000_000
            return ResultsFacts(
                now=datetime.fromtimestamp(now, UTC),
                signs=signs.parsed(hashed, dict(seen), now),
                schedule=_schedule(redis, planned),
                refuses=_refusal(written),
            )

    return read


def broker_reader(broker_url: str, queues: Sequence[str]) -> Callable[[], BrokerFacts]:
    """Return a function that reads the state of the Celery queues named in `queues`.

    The function reads the number of waiting messages in each queue at the broker. If the broker is
    Redis, the function also reads the next message of each queue, and tests with a write whether
    this Redis accepts messages. If the broker is RabbitMQ, the function reads only the numbers. It
    raises `NotRead` if the broker cannot be read.
    """
    if broker_url.startswith("amqp"):
        return lambda: _read_rabbitmq(broker_url, queues)
    return lambda: _read_redis(broker_url, queues)


def _read_redis(url: str, queues: Sequence[str]) -> BrokerFacts:
    with _answering(), closing(connect(url)) as redis:
        pipeline = redis.pipeline(transaction=False)
        pipeline.set(WRITE_TEST_KEY, b"1", ex=WRITE_TEST_SECONDS)
        for queue in queues:
            pipeline.llen(queue)
            pipeline.lindex(queue, -1)
        written, *rest = pipeline.execute(raise_on_error=False)
        for each in rest:
            if isinstance(each, Exception):
                raise each
        lengths, heads = rest[::2], rest[1::2]
        found = [
            QueuedMessages(queue, length, *_described(head))
            for queue, length, head in zip(queues, lengths, heads, strict=True)
        ]
        return BrokerFacts(found, refuses=_refusal(written))


def _read_rabbitmq(url: str, queues: Sequence[str]) -> BrokerFacts:
    connection = Connection(
        url,
        connect_timeout=ANSWER_SECONDS,
        transport_options={"read_timeout": ANSWER_SECONDS, "write_timeout": ANSWER_SECONDS},
    )
    failures: tuple[type[BaseException], ...] = (
        OSError,
        OperationalError,
        *connection.connection_errors,
    )
    try:
        with connection:
            connection.connect()
            return BrokerFacts([QueuedMessages(each, _depth(connection, each)) for each in queues])
    except failures as error:
        raise NotRead(_connection_trouble(error)) from error


def _depth(connection: Connection, name: str) -> int | None:
    """Return the number of waiting messages in a RabbitMQ queue; None if there is no queue."""
    channel: Any = connection.channel()
    try:
        declared = channel.queue_declare(name, passive=True)
    except connection.channel_errors:
        return None
    channel.close()
    return int(declared.message_count)


class _answering:  # noqa: N801 - a context manager, used as a function
    """A context manager that converts errors of Redis to `NotRead`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, RedisTimeout):
            raise NotRead(NO_ANSWER) from error
        if isinstance(error, BusyLoadingError):
            raise NotRead("is loading its data") from error
        if isinstance(error, AuthenticationError):
            raise NotRead("refuses our login") from error
        if isinstance(error, ConnectionError | OSError):
            raise NotRead(_connection_trouble(error)) from error
        if isinstance(error, RedisError):
            raise NotRead(f"answers with an error ({str(error).partition(' ')[0]})") from error


def _connection_trouble(error: BaseException) -> str:
    said = str(error).lower()
    if "replica" in said:
        return "is a replica, which takes no messages"
    if "refused" in said or isinstance(error, ConnectionRefusedError):
        return "takes no connections: it does not run, or not at this address"
    if "name or service" in said or "not known" in said:
        return "is not found at its address"
    if "access_refused" in said or "auth" in said:
        return "refuses our login"
    return NO_ANSWER


def _refusal(answer: object) -> str | None:
    """Return the reason for which Redis refused a write, given its `answer`; None if it did not."""
    if not isinstance(answer, ResponseError):
        return None
    said = str(answer)
    if said.startswith(("OOM", "command not allowed when used memory")):
        return "is full: it takes no messages until it has room again"
    if "MISCONF" in said:
        return "cannot save to its disk: it takes no messages"
    if "READONLY" in said or "read only replica" in said:
        return "is a replica, which takes no messages"
    return f"refuses to write ({said.partition(' ')[0]})"


def _described(head: bytes | None) -> tuple[str | None, str | None, datetime | None]:
    """Return three facts about a Celery message: its task's name, its id and its sending time.

    `head`: the message at the head of a queue. If the queue is empty, `head` is None, and so are
    all three facts. If the message cannot be parsed, the task's name is `a malformed message`, and
    the other two facts are None. A sending time that is not known is None.
    """
    if head is None:
        return None, None, None
    try:
        said = json.loads(head)
        task, name = said["headers"]["task"], said["headers"]["id"]
    except (ValueError, KeyError, TypeError):
        return "a malformed message", None, None
    return str(task), str(name), _sent_at(str(name), str(said.get("body", "")))


def _sent_at(name: str, body: str) -> datetime | None:
    """Return the time at which a message was sent; None if it is not known.

    The time is read from the message's id (`name`) if the id is a UUID that begins with a time.
    Otherwise it is read from `body`, if the first argument of the task is a time. The argument of a
    probe is its sending time. A probe is a message of the task `assignment.probe`, which a
    sequencer sends to itself to prove that it still leads.
    """
    try:
        made = UUID(name)
        if made.version == UNIX_MILLISECONDS_OF_VERSION:
            return datetime.fromtimestamp((made.int >> 80) / 1000, UTC)
        at = datetime.fromisoformat(json.loads(base64.b64decode(body))[0][0])
    except (ValueError, IndexError, KeyError, TypeError):
        return None
    return at if at.tzinfo else None


def _schedule(redis: Redis, entries: list[tuple[bytes, float]]) -> list[Planned]:
    pipeline = redis.pipeline(transaction=False)
    for key, _ in entries:
        pipeline.hmget(key, "definition", "meta")
    found: list[Planned] = []
    stored = cast(list[list[bytes | None]], pipeline.execute())
    for (_, score), (definition, meta) in zip(entries, stored, strict=True):
        if definition is None or score < 0:
            continue
        task = str(json.loads(definition)["task"])
        sent = json.loads(meta) if meta else {}
        # Before the first sending, beat stores the time at which it read the schedule.
        asked = _instant(sent.get("last_run_at")) if sent.get("total_run_count") else None
        found.append(Planned(task, asked, datetime.fromtimestamp(score, UTC)))
    return found


def _instant(said: object) -> datetime | None:
    """Convert a time in RedBeat's JSON form to a datetime; None if it is not of that form.

    RedBeat's own parser is not used, because its import would double the time that the command
    `assignment-workers status` takes.
    """
    if not isinstance(said, dict) or said.get("__type__") != "datetime":
        return None
    zone = said.get("timezone", "UTC")
    year, month, day, hour, minute, second, micro = (int(said[part]) for part in _PARTS)
    tz = ZoneInfo(zone) if isinstance(zone, str) else timezone(timedelta(seconds=zone))
    return datetime(year, month, day, hour, minute, second, micro, tzinfo=tz)


_PARTS = ("year", "month", "day", "hour", "minute", "second", "microsecond")
