"""A Redis that answers and refuses to write: what may be moved within it is moved all the same.

At `maxmemory` it refuses each command that may grow, BLMOVE, SADD and SET among them, and answers
those that cannot. A script may go on once it has written something that cannot grow, so one that
takes a message out of one list and puts it into another is carried out: the memory stays the same.
While it cannot save to its disk (MISCONF) it refuses every write, and all that can be done is wait.
"""

from __future__ import annotations

from enum import StrEnum
from time import monotonic

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import OutOfMemoryError, ResponseError

log = structlog.get_logger()


class RedisRefusal(StrEnum):
    """Why Redis refuses writes, as it is said to people."""

    FULL = "Redis is full (maxmemory): it takes no new messages; those that wait are served"
    UNSAVED = "Redis cannot save to its disk (MISCONF): it takes no writes at all"


TAKE = """
local message = redis.call('RPOP', KEYS[1])
if message then redis.call('LPUSH', KEYS[2], message) end
return message
"""
"""The oldest message of a queue, now the newest of those that were taken; false for none."""
PUT_BACK = """
local message = redis.call('LPOP', KEYS[1])
if message then redis.call('RPUSH', KEYS[2], message) end
return message
"""
"""The newest of those that were taken is the next of its queue again; false for none."""
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
"""A small value in place of the one that is returned."""
NOTE = """
redis.call('DEL', KEYS[3])
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
"""
"""Note a message that has left its queue as not acknowledged: KEYS[3] does not exist."""
BIND = """
redis.call('DEL', KEYS[2])
redis.call('SADD', KEYS[1], ARGV[1])
"""
"""KEYS[2] does not exist."""
EXCUSE = """
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], '1', 'EX', ARGV[1])
"""
"""A small value, for some seconds."""
NO_KEY = "assignment-workers:none"

SAID_EVERY_SECONDS = 10.0
PAUSE_SECONDS = 0.05
"""Between two looks at a queue that cannot be waited on."""


def refused(error: BaseException) -> RedisRefusal | None:
    """Why Redis refused a write, by its error or by kombu's for it; None for any other."""
    if isinstance(error, OperationalError) and error.__cause__ is not None:
        return refused(error.__cause__)
    if isinstance(error, OutOfMemoryError):
        return RedisRefusal.FULL
    if isinstance(error, ResponseError) and "MISCONF" in str(error):
        return RedisRefusal.UNSAVED
    return None


class Refusing:
    """Whether the broker of this process refuses writes: said in the log while it does."""

    def __init__(self) -> None:
        self._at = float("-inf")
        self._said = float("-inf")

    def note(self, why: RedisRefusal) -> None:
        """It has refused a write, now."""
        self._at = monotonic()
        if self._at >= self._said + SAID_EVERY_SECONDS:
            self._said = self._at
            log.error("broker_refuses", reason=why.value)

    def within(self, seconds: float) -> bool:
        """Whether it has refused a write in the last seconds."""
        return monotonic() - self._at <= seconds


REFUSING = Refusing()
"""Of this process's broker."""
