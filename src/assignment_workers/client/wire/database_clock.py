"""The database's clock as a client knows it. A deadline is an instant of this clock."""

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
"""Seconds. A reading of the database's clock that took longer is used for one message only."""


class DatabaseClock:
    """An estimate of the database's clock, for clients that reach only Redis.

    It is the clock of Redis plus the difference that the sequencer measured and stored in Redis.
    While none is stored, as before a sequencer has led, the difference is taken as zero. Between
    two readings the process's monotonic clock counts, so the time of day on this host does not
    matter. An estimate is too early by at most the delay of Redis's answer. It is never too late.
    """

    def __init__(self, redis: Redis, steady: Callable[[], float]) -> None:
        self._redis = redis
        self._steady = steady
        self._read: datetime | None = None
        self._read_at = 0.0
        self._known_until = 0.0

    async def read(self) -> None:
        """Read Redis's clock and the stored difference, unless a recent reading is in use.

        Raises `RedisError` if Redis does not answer.
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
        """Discard the reading, because Redis may now be another server."""
        self._known_until = 0.0

    def reached(self, instant: datetime) -> None:
        """Set the estimate to `instant` if that is later: the database's clock has reached it."""
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
