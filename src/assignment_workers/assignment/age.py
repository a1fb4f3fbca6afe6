"""Weekly ageing: who waits longer is called later (original-dialer section 4)."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, func, update

from assignment_workers.policy.outcomes import SCORE_CEILING
from assignment_workers.policy.queues import UNSIGNED_USERS
from assignment_workers.schema.base import word
from assignment_workers.schema.dialer import UserCallScore

STEP = 5
SINCE = timedelta(days=7)


def age_scores(connection: Connection, day: datetime) -> int:
    """Add 5 to active unsigned users under 200, created on this weekday a week ago or more.

    One statement, one atomic increment a user. It is to run once for each day, whenever that is:
    the day is the slot of its job, done once by constraint, so running it again ages nobody twice,
    and a day that was missed is made up for (original-dialer section 5). Returns how many were
    aged.
    """
    end = day + timedelta(days=1)
    return connection.execute(
        update(UserCallScore)
        .where(
            UserCallScore.current_queue_type == word(UNSIGNED_USERS.queue),
            UserCallScore.is_active,
            UserCallScore.current_score < SCORE_CEILING,
            UserCallScore.created_at < end - SINCE,
            func.extract("isodow", UserCallScore.created_at) == day.isoweekday(),
        )
        .values(current_score=UserCallScore.current_score + STEP, updated_at=day)
    ).rowcount
