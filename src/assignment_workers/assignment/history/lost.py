"""Find events that were lost in a failover: the old server has them, and the new server lacks them.

A standby that is promoted may lack the last commits of the old primary. A restored backup lacks all
commits since the backup. The system then continues from this earlier state. If the old server can
still be read, its events show which changes were lost, because every change of state is an event.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Connection, func, select

from assignment_workers.errors import UsageError
from assignment_workers.identity import UserId
from assignment_workers.schema.tables import Event

COMPARED = timedelta(hours=1)
"""Default length of the period in which the events of the old and the new server are compared.

The period ends with the old server's last event.
"""


class LostEvent(BaseModel):
    """An event that an old database server has, and the server that took its place has not.

    Such events are lost in a failover to a server that lacks the last commits. `term`: the term of
    the sequencer that made the lost change; None for an event of a background job.
    """

    id: int
    at: datetime
    kind: str
    term: int | None
    queue: str | None
    agent_id: int | None
    user_id: UserId | None
    assignment_id: UUID | None


def lost(old: Connection, new: Connection, *, since: datetime | None = None) -> list[LostEvent]:
    """Return the events that `old` has and `new` lacks, in the order of their ids.

    `old`: a connection to the old server. `new`: a connection to the database that took its place,
    such as a promoted standby. `since`: the time from which on events are compared; None: an hour
    before the last event of `old`.

    Raises `UsageError` if `old` has events since that time and `new` has none of them. There are
    two possible reasons. First, `new` is not a later state of the database `old`, but another
    database. Second, `new` already lacks events from before that time; then call this function with
    an earlier `since`.
    """
    if since is None:
        newest: datetime | None = old.execute(select(func.max(Event.at))).scalar()
        if newest is None:
            return []
        since = newest - COMPARED
    kept = {(row.id, row.at) for row in new.execute(_KEYS.where(Event.at >= since))}
    found = [LostEvent(**row) for row in old.execute(_EVENTS.where(Event.at >= since)).mappings()]
    missing = [each for each in found if (each.id, each.at) not in kept]
    if found and len(missing) == len(found):
        raise UsageError(
            f"no event since {since:%Y-%m-%d %H:%M:%SZ} is in both databases: look further back,"
            " or these are two databases that never were one"
        )
    return missing


_KEYS = select(Event.id, Event.at)
_EVENTS = select(
    Event.id,
    Event.at,
    Event.kind,
    Event.term,
    Event.queue,
    Event.agent_id,
    Event.user_id,
    Event.assignment_id,
).order_by(Event.id)
