"""Count each dialer queue's claimable users, because a queue with few of them is rebuilt early.

Every dialer queue is rebuilt once an hour. A queue with few claimable users is rebuilt before that,
so that it does not run out of users.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, bindparam, func, select

from assignment_workers.assignment.generations.entries import PUBLISHED_STATE, READY
from assignment_workers.schema.tables import Entry, Generation
from assignment_workers.settings import Settings


def claimable(connection: Connection, queue: str, *, at_most: int) -> int | None:
    """Count the claimable users of a dialer queue, at most `at_most`.

    Returns None if the dialer queue has no published generation.
    """
    generation = connection.execute(
        select(Generation.id).where(Generation.queue == queue, Generation.state == PUBLISHED_STATE)
    ).scalar_one_or_none()
    if generation is None:
        return None
    some = (
        select(Entry.user_id)
        .where(Entry.generation_id == bindparam("generation"), Entry.state == READY)
        .limit(at_most)
        .subquery()
    )
    return connection.execute(
        select(func.count()).select_from(some), {"generation": generation}
    ).scalar_one()


def low(connection: Connection, queues: Collection[str], *, settings: Settings) -> list[str]:
    """Return those of `queues` that need a new generation: few claimable users and no recent build.

    The limits are `level_minimum` and `level_interval` of each dialer queue's settings. A dialer
    queue that was never built needs a generation. All is read from the database, so a restart of
    the process changes nothing. An error while counting is raised, because an unknown count is not
    zero (hazard A7 in docs/hazards.md).
    """
    return [
        queue
        for queue in queues
        if _is_low(connection, queue, settings.of(queue).level_minimum)
        and not _built_lately(connection, queue, settings.of(queue))
    ]


def _is_low(connection: Connection, queue: str, least: int) -> bool:
    count = claimable(connection, queue, at_most=least)
    return count is None or count < least


def _built_lately(connection: Connection, queue: str, settings: Settings) -> bool:
    return connection.execute(
        select(
            func.coalesce(
                func.max(Generation.built_at) > func.now() - settings.level_interval, False
            )
        ).where(Generation.queue == queue)
    ).scalar_one()


def unpublished(connection: Connection) -> dict[int, str]:
    """Return the dialer queues of generations that are built, but not published.

    The keys are the generations' numbers, the oldest first. The caller sends a publish command for
    each again, because Redis may have lost the first one.
    """
    rows = connection.execute(
        select(Generation.id, Generation.queue)
        .where(Generation.state == "building", Generation.built_at.is_not(None))
        .order_by(Generation.id)
    )
    return {row.id: row.queue for row in rows}
