"""Move messages within a Redis that answers but refuses writes.

At `maxmemory` Redis refuses every command that may need more memory, including BLMOVE, SADD and
SET, and accepts the others. For a script, the first write decides. If the first write needs no
additional memory, Redis accepts it, and then also accepts all later commands of the script. So a
script that takes a message out of one list and then puts it into another is carried out, and the
memory in use stays the same.

While Redis cannot save to its disk (MISCONF), or has fewer replicas than `min-replicas-to-write`
(NOREPLICAS), it refuses every write. No script helps then; a process can only wait until Redis
accepts writes again.
"""

from __future__ import annotations

from enum import StrEnum
from time import monotonic

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import OutOfMemoryError, ResponseError

log = structlog.get_logger()


class RedisRefusal(StrEnum):
    """The reason for which Redis refuses writes, as a text for people."""

    FULL = "Redis is full (maxmemory): it takes no new messages; those that wait are served"
    UNSAVED = "Redis cannot save to its disk (MISCONF): it takes no writes at all"
    LONELY = "Redis has too few replicas (NOREPLICAS): it takes no writes at all"


TAKE = """
local message = redis.call('RPOP', KEYS[1])
if message then redis.call('LPUSH', KEYS[2], message) end
return message
"""
"""Script: move the oldest message of the queue KEYS[1] to the head of KEYS[2].

KEYS[2] is the list of messages that a sequencer has taken. Returns the message, or false if the
queue is empty.
"""
PUT_BACK = """
local message = redis.call('LPOP', KEYS[1])
if message then redis.call('RPUSH', KEYS[2], message) end
return message
"""
"""Script: move the newest message of KEYS[1] back to its queue KEYS[2], as the next to be
delivered.

KEYS[1] is the list of messages that a sequencer has taken. Returns the message, or false if the
list is empty.
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
"""Script: replace the small value of KEYS[1] by ARGV[1], even if Redis is full.

A new leader stores its term in this way. The script returns the previous value, which names the
term of the leader before.
"""
NOTE = """
redis.call('DEL', KEYS[3])
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
"""
"""Script: record in kombu's index that a message, which has left its queue, is not acknowledged.

KEYS[3] is a key that does not exist. Its deletion makes the script work in a full Redis, which
accepts every command of a script after a first write that needs no memory.
"""
BIND = """
redis.call('DEL', KEYS[2])
redis.call('SADD', KEYS[1], ARGV[1])
"""
"""Script: add the queue's binding ARGV[1] to KEYS[1], kombu's table of an exchange.

KEYS[2] is a key that does not exist. Its deletion makes the script work in a full Redis, which
accepts every command of a script after a first write that needs no memory.
"""
LOCK = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""
"""Script: take a lock for some seconds, even if Redis is full; return 1 if taken, otherwise 0.

KEYS[1]: the key of the lock. ARGV[1]: the owner, who is stored there. ARGV[2]: the seconds after
which the lock ends by itself. KEYS[2]: a key that does not exist. The script deletes it first,
because a full Redis accepts all later commands of a script after such a write, which needs no
memory.
"""
UNLOCK = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""
"""Script: give up the lock KEYS[1], unless another owner than ARGV[1] has it by now."""
EXCUSE = """
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], '1', 'EX', ARGV[1])
"""
"""Script: set KEYS[1] to '1' for ARGV[1] seconds, even if Redis is full.

The key records that a certain message did not cause the end of the process that handled it.
"""
NO_KEY = "assignment-workers:none"

SAID_EVERY_SECONDS = 10.0
PAUSE_SECONDS = 0.05
"""Seconds between two attempts to read a queue while Redis refuses the blocking read."""


def refused(error: BaseException) -> RedisRefusal | None:
    """Return the reason for which Redis refused a write; None if `error` has another cause.

    Also examines the cause of an error of kombu, because kombu wraps Redis's errors in its own.
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


class WriteRefusals:
    """Records when Redis last refused a write of this process, and logs refusals at intervals."""

    def __init__(self) -> None:
        self._at = float("-inf")
        self._said = float("-inf")

    def note(self, why: RedisRefusal) -> None:
        """Record that Redis has just refused a write for the reason `why`."""
        self._at = monotonic()
        if self._at >= self._said + SAID_EVERY_SECONDS:
            self._said = self._at
            log.error("broker_refuses", reason=why.value)

    def within(self, seconds: float) -> bool:
        """Return True if a write was refused in the last `seconds`."""
        return monotonic() - self._at <= seconds


WRITE_REFUSALS = WriteRefusals()
"""This process's record of the last write that Redis refused."""
