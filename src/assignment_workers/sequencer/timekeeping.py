"""Tells clients what the database's clock says: how far it is ahead of Redis's, which they can ask.

The deadline of a request is judged by the database's clock alone. A client cannot read that one,
and its own host's may be off.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import monotonic

import structlog
from redis import Redis
from redis.exceptions import RedisError

from assignment_workers.clock import DATABASE_AHEAD_KEY

log = structlog.get_logger()

KEPT = timedelta(days=1)
QUICK_SECONDS = 0.1
"""What was read further apart is not told: the next probe, two seconds later, may be quicker."""


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
