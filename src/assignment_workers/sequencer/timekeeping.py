"""Measure the database's clock: its difference to Redis's clock, and sudden changes.

A request's deadline is compared with the database's clock alone. A client cannot read that clock,
and the clock of its own host may be wrong. So a client reads Redis's clock and adds the difference
that is measured here.
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
"""The most seconds between the arrival of the database's time and the arrival of Redis's time.

If more seconds pass, the difference of the two clocks is too inexact, and it is not published for
clients. The next probe, two seconds later, reads both clocks again.
"""


STEP = timedelta(seconds=1)
"""The size that a jump of the database's clock must exceed to be reported.

A smaller jump does not matter: it shifts deadlines and the ends of leases by at most a second.
"""


@dataclass(frozen=True)
class Reading:
    """A reading of the database's clock, with the time of the reading by the monotonic clock.

    The database's clock showed `now`. At that moment, this process's monotonic clock showed more
    than `after` and less than `before`, both in seconds.
    """

    now: datetime
    after: float
    before: float

    def step_since(self, last: Reading | None) -> timedelta | None:
        """Return the jump of the database's clock since the reading `last`; None for no jump.

        The jump is negative if the clock went back. It is found by a comparison of the time that
        has passed by the database's clock and by this process's monotonic clock. If a reading took
        long, because of a lock or a stopped process, the comparison is less exact; a jump is then
        returned only if it is certain.
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
    """Return the event of a jump of the database's clock, seen by a transaction of `lane`.

    `by` is the size of the jump, negative if the clock went back.
    """
    details = {"seconds": by.total_seconds(), "lane": lane}
    return {"kind": EventKind.CLOCK_STEPPED, "details": details}


def tell_time(redis: Redis, now: datetime, at: float) -> None:
    """Store in Redis how many seconds the database's clock is ahead of the Redis clock.

    `now`: the time that the database's clock showed when it was read. `at`: the time that this
    process's monotonic clock showed when `now` had arrived, in seconds.

    The stored value is the database's time minus Redis's time. Redis's time is asked for here. The
    database's time is computed: it is `now`, plus the time that has passed between `at` and the
    moment of the question to Redis.

    This sum leaves out two short times that this process cannot measure. One is the time that `now`
    took to arrive. The other is the time that the question took to reach Redis. Each of them makes
    the stored value a little too small; the value is never too large. So a deadline that a client
    computes from the value may be a little too early, but is never too late.

    Nothing is stored if Redis's time arrives more than `QUICK_SECONDS` after `at`.
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
