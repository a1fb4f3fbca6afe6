"""A client's estimate of the database's current time, without a connection to the database.

A client needs this estimate to send a request, because the deadline in the request is a time of the
database's clock.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from assignment_workers.clock import DATABASE_AHEAD_KEY

KNOWN_SECONDS = 5.0
"""Seconds for which a reading of the database's clock is used. A jump of the clock is noticed after
at most this time.
"""
QUICK_SECONDS = 0.1
"""The least seconds that a slow reading takes. A reading that takes less time counts as quick.

A reading asks Redis for its time and for the difference to the database's clock
(`DatabaseClock.read`). A slow reading is less accurate and is used for one message only. A quick
reading is used for several messages.
"""


class DatabaseClock:
    """An estimate of the database's clock, for clients that reach only Redis.

    The estimate is the time of Redis plus the difference between the database's clock and Redis's.
    A sequencer measures this difference and stores it in Redis for a day. If none is stored, for
    example because no sequencer has led for a day, zero is used. Between two readings of Redis, the
    elapsed time is measured with the process's monotonic clock, so the time of day on this host
    does not matter.

    With a correct difference, an estimate is too early by at most the delay of Redis's answer, and
    never too late. A stored difference may be a little too small, which makes the estimate a little
    earlier still. If no difference is stored, or if a clock has jumped since the difference was
    measured, the estimate may be too early or too late.
    """

    def __init__(self, redis: Redis, steady: Callable[[], float]) -> None:
        self._redis = redis
        self._steady = steady
        self._read: datetime | None = None
        self._read_at = 0.0
        self._known_until = 0.0

    async def read(self) -> None:
        """Update the estimate from Redis, unless the last reading is recent enough.

        The estimate is Redis's time plus the difference between the database's clock and Redis's.
        A sequencer stores this difference in Redis. Raises `RedisError` if Redis does not answer.
        """
        began = self._steady()
        if self._read is not None and began < self._known_until:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.execute_command("TIME")
            pipe.execute_command("GET", DATABASE_AHEAD_KEY)
            (seconds, microseconds), ahead = await pipe.execute()
        self._read = datetime.fromtimestamp(seconds, UTC) + timedelta(
            microseconds=microseconds, seconds=_seconds(ahead)
        )
        self._read_at = self._steady()
        quick = self._read_at - began < QUICK_SECONDS
        self._known_until = self._read_at + (KNOWN_SECONDS if quick else 0.0)

    def forget(self) -> None:
        """Make the next `read` ask Redis again, because Redis may now be another server."""
        self._known_until = 0.0

    def reached(self, instant: datetime) -> None:
        """Advance the estimate to `instant`, a time that the database's clock has already reached.

        An estimate that is later than `instant` is not changed.
        """
        now = self._steady()
        if self._read is not None and self.at(now) < instant:
            self._read, self._read_at = instant, now

    def at(self, steady: float) -> datetime:
        """Return the database's time at `steady`, a time of this process's monotonic clock.

        `read` must have been called.
        """
        if self._read is None:
            raise RuntimeError("the database's clock was not read")
        return self._read + timedelta(seconds=steady - self._read_at)


def _seconds(ahead: bytes | None) -> float:
    try:
        return 0.0 if ahead is None else float(ahead)
    except ValueError:
        raise ResponseError(f"{DATABASE_AHEAD_KEY} is {ahead!r}, not a number") from None
