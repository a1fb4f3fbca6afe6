"""Weekly ageing: raise the scores of waiting users, so that they are called later.

A user with a higher score is called later. Ageing adds 5 to a score each week while the score is
below 200. It is intended that users who wait longer are called later: the old dialer, which this
project replaces, has the same rule (docs/original-dialer.md, section 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, func, select, update

from assignment_workers.assignment.jobs import Counts, Work
from assignment_workers.policy.outcomes import SCORE_CEILING
from assignment_workers.policy.queues import Policy
from assignment_workers.schema.base import sql_text
from assignment_workers.schema.dialer import UserCallScore

STEP = 5
SINCE = timedelta(days=7)
AT_A_TIME = 1_000
"""Number of users whose scores one transaction raises.

An agent's completion of a call can wait for such a transaction, for milliseconds.
"""


def age_scores(work: Work, day: datetime, policies: Iterable[Policy]) -> Counts:
    """Add 5 to each active score below 200 whose row was created on the weekday of `day`.

    Users with a higher score are called later. It is intended that users who wait longer are called
    later (docs/original-dialer.md, section 4). Only users of dialer queues whose policy has ageing
    are changed, and only those whose score row was created a week before `day` or earlier.

    The job runs once for each day; a day without a run gets its run later. Each transaction handles
    1,000 users (`AT_A_TIME`), in the order of their ids, and stores the progress. So a run after a
    failed one continues, and no score is raised twice for one day. Returns two counts: `aged`, the
    number of users changed in this run, and `through`, the id of the last user. Cost: one pass over
    the score rows by the index on the user.
    """
    through = work.reached("through")
    ageing = [sql_text(policy.queue) for policy in policies if policy.ages]
    counts = {"aged": 0, "through": through}
    while users := _age(work.side_connection, ageing, day, after=counts["through"]):
        counts = {"aged": counts["aged"] + len(users), "through": max(users)}
        work.store_counts(counts)
    return counts


def _age(
    connection: Connection, ageing: Sequence[ColumnElement[str]], day: datetime, *, after: int
) -> list[int]:
    end = day + timedelta(days=1)
    batch = (
        select(UserCallScore.user_id)
        .where(
            UserCallScore.current_queue_type.in_(ageing),
            UserCallScore.is_active,
            UserCallScore.current_score < SCORE_CEILING,
            UserCallScore.created_at < end - SINCE,
            func.extract("isodow", UserCallScore.created_at) == day.isoweekday(),
            UserCallScore.user_id > after,
        )
        .order_by(UserCallScore.user_id)
        .limit(AT_A_TIME)
        .with_for_update()
        .cte("batch")
    )
    return list(
        connection.execute(
            update(UserCallScore)
            .where(UserCallScore.user_id == batch.c.user_id)
            .values(current_score=UserCallScore.current_score + STEP, updated_at=day)
            .returning(UserCallScore.user_id)
        ).scalars()
    )
