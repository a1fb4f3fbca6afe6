"""Move messages within a Redis that answers but refuses writes.

At `maxmemory` Redis refuses every command that may grow, including BLMOVE, SADD and SET, and
accepts the others. A script may continue once it has written something that cannot grow. So a
script that takes a message out of one list and puts it into another is carried out: the memory
stays the same. While Redis cannot save to its disk (MISCONF), or has fewer replicas than
`min-replicas-to-write` (NOREPLICAS), it refuses every write, and all that is left is to wait.
"""

from __future__ import annotations

from enum import StrEnum
from time import monotonic

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import OutOfMemoryError, ResponseError

log = structlog.get_logger()


class RedisRefusal(StrEnum):
    """The reason why Redis refuses writes, as shown to people."""

    FULL = "Redis is full (maxmemory): it takes no new messages; those that wait are served"
    UNSAVED = "Redis cannot save to its disk (MISCONF): it takes no writes at all"
    LONELY = "Redis has too few replicas (NOREPLICAS): it takes no writes at all"


TAKE = """
local message = redis.call('RPOP', KEYS[1])
if message then redis.call('LPUSH', KEYS[2], message) end
return message
"""
"""Script: move the oldest message of a queue to the head of the list of taken messages.

Returns the message, or false if the queue is empty.
"""
PUT_BACK = """
local message = redis.call('LPOP', KEYS[1])
if message then redis.call('RPUSH', KEYS[2], message) end
return message
"""
"""Script: move the newest message of the list of taken messages back to its queue, as the next.

Returns the message, or false if the list is empty.
"""
GIVE_BACK = """
redis.call('LREM', KEYS[1], 1, ARGV[1])
redis.call('RPUSH', KEYS[2], ARGV[1])
"""
REPLACE = """
local before = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1])
return before
"""
"""Script: replace a small value, also in a full Redis; returns the previous value."""
NOTE = """
redis.call('DEL', KEYS[3])
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
"""
"""Script: record a message that has left its queue as not acknowledged, also in a full Redis.

KEYS[3] is a key that does not exist.
"""
BIND = """
redis.call('DEL', KEYS[2])
redis.call('SADD', KEYS[1], ARGV[1])
"""
"""Script: bind a queue to its exchange. KEYS[2] is a key that does not exist."""
EXCUSE = """
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], '1', 'EX', ARGV[1])
"""
"""Script: set a small value that expires after ARGV[1] seconds, also in a full Redis."""
NO_KEY = "assignment-workers:none"

SAID_EVERY_SECONDS = 10.0
PAUSE_SECONDS = 0.05
"""The interval between two checks of a queue that cannot be waited on."""


def refused(error: BaseException) -> RedisRefusal | None:
    """Return the reason if `error`, or what kombu wrapped in it, is a write that Redis refused.

    None for any other error.
    """
    if isinstance(error, OperationalError) and error.__cause__ is not None:
        return refused(error.__cause__)
    if isinstance(error, OutOfMemoryError):
        return RedisRefusal.FULL
    if isinstance(error, ResponseError) and "MISCONF" in str(error):
        return RedisRefusal.UNSAVED
    if isinstance(error, ResponseError) and "NOREPLICAS" in str(error):
        return RedisRefusal.LONELY
    return None


class Refusing:
    """The last write that this process's Redis broker refused. Refusals are logged at intervals."""

    def __init__(self) -> None:
        self._at = float("-inf")
        self._said = float("-inf")

    def note(self, why: RedisRefusal) -> None:
        """Record that Redis refused a write now, for the reason `why`."""
        self._at = monotonic()
        if self._at >= self._said + SAID_EVERY_SECONDS:
            self._said = self._at
            log.error("broker_refuses", reason=why.value)

    def within(self, seconds: float) -> bool:
        """Return True if a write was refused in the last `seconds`."""
        return monotonic() - self._at <= seconds


REFUSING = Refusing()
"""The refused writes of this process's broker; one object for the whole process."""
