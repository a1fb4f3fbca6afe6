"""The database's clock: how far it is ahead of Redis's, which clients can ask, and its steps.

The deadline of a request is judged by the database's clock alone. A client cannot read that one,
and its own host's may be off.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import structlog
from redis import Redis
from redis.exceptions import RedisError

from assignment_workers.assignment.transaction import EventKind
from assignment_workers.clock import DATABASE_AHEAD_KEY

log = structlog.get_logger()

KEPT = timedelta(days=1)
QUICK_SECONDS = 0.1
"""What was read further apart is not told: the next probe, two seconds later, may be quicker."""


STEP = timedelta(seconds=1)
"""A smaller change of the clock is not a step: no deadline or lease is as exact."""


@dataclass(frozen=True)
class Reading:
    """The database's clock said `now` between two instants of this process's steady clock."""

    now: datetime
    after: float
    before: float

    def step_since(self, last: Reading | None) -> timedelta | None:
        """The most that the clock stepped since the last reading; None where it surely did not.

        A reading that took long, behind a lock or in a process that could not run, is of a longer
        span, and no step is made of that.
        """
        if last is None:
            return None
        passed = self.now - last.now
        most = passed - timedelta(seconds=self.after - last.before)
        least = passed - timedelta(seconds=self.before - last.after)
        if least > STEP:
            return most
        return least if most < -STEP else None


def stepped(by: timedelta, lane: str) -> dict[str, Any]:
    """The event of a step, forward or back, which a turn of this lane has met."""
    details = {"seconds": by.total_seconds(), "lane": lane}
    return {"kind": EventKind.CLOCK_STEPPED, "details": details}


def tell_time(redis: Redis, now: datetime, at: float) -> None:
    """Leave in Redis how many seconds the database's clock is ahead.

    It said `now` when this process's monotonic clock said `at`, or just before. What is told comes
    out too small, never too large, so that no deadline is late by it.
    """
    asked_at = monotonic()
    try:
        seconds, microseconds = redis.time()
        if monotonic() - at > QUICK_SECONDS:
            return
        theirs = datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)
        ahead = now + timedelta(seconds=asked_at - at) - theirs
        redis.set(DATABASE_AHEAD_KEY, f"{ahead.total_seconds():.6f}", ex=KEPT)
    except RedisError as error:
        log.warning("time_not_told", error=str(error))
