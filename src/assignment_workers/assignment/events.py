"""Reads of the events in the order of their ids, for programs that follow the events.

The events of one lane commit in the order of their ids, because the transactions of its sequencer
follow one another. Other transactions write events too. So an event may be visible before an event
with a smaller id has committed. A reader that goes on from the larger id would miss the event with
the smaller id.

The function `writers` prevents this: it returns the open transactions that may have written events.
The reader first notes the largest id that it has seen, and then calls `writers`. Then the reader
waits until all transactions that the call returned have ended. From then on, no event can appear
any more with an id below the noted id.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, Connection, Text, any_, bindparam, func, select, text

from assignment_workers.identity import UserId
from assignment_workers.schema.tables import Event

CHANNEL = "assignment_events"
"""PostgreSQL channel that is notified, without payload, by transactions that record events."""


@dataclass(frozen=True)
class StoredEvent:
    """An event, as the table of events has it.

    Texts that people typed, such as a note, are in a table of their own and not part of an event.
    """

    id: int
    at: datetime
    kind: str
    term: int | None
    queue: str | None
    user_id: UserId | None
    agent_id: int | None
    assignment_id: UUID | None
    request_id: str | None
    generation_id: int | None
    details: dict[str, Any]


def between(
    connection: Connection,
    after: int,
    until: int | None = None,
    *,
    limit: int,
    agent_id: int | None = None,
    kinds: Collection[str] | None = None,
) -> Sequence[StoredEvent]:
    """Return at most `limit` events with an id above `after` and up to `until`, ordered by id.

    `until` None: no upper limit. `agent_id`, `kinds`: only events of this agent, and of these
    kinds; None: no restriction. Cost: a read by the primary key.
    """
    wanted = BEYOND
    parameters: dict[str, object] = {"after": after}
    if until is not None:
        wanted = wanted.where(Event.id <= bindparam("until"))
        parameters["until"] = until
    if agent_id is not None:
        wanted = wanted.where(Event.agent_id == bindparam("agent"))
        parameters["agent"] = agent_id
    if kinds is not None:
        wanted = wanted.where(Event.kind == any_(bindparam("kinds", type_=ARRAY(Text))))
        parameters["kinds"] = list(kinds)
    return [StoredEvent(*row) for row in connection.execute(wanted.limit(limit), parameters)]


def bounds(connection: Connection) -> tuple[int, int]:
    """Return the ids of the oldest and the newest event; 0 and 0 without events."""
    row = connection.execute(_BOUNDS).one()
    return row[0] or 0, row[1] or 0


def writers(connection: Connection) -> frozenset[str]:
    """Return the ids of the open transactions that may have written events.

    These are the transactions that hold a lock on the table of events. A transaction takes this
    lock before its first event gets an id, and holds the lock until it ends. Event ids are assigned
    in order, but transactions may commit in another order. So a reader may see an event before one
    with a smaller id. Once all returned transactions have ended, no further event can appear with
    an id below that of an event that was seen before this call.
    """
    return frozenset(connection.execute(_WRITERS).scalars())


BEYOND = (
    select(*(getattr(Event, name) for name in StoredEvent.__dataclass_fields__))
    .where(Event.id > bindparam("after"))
    .order_by(Event.id)
)
ONE_OF = select(*(getattr(Event, name) for name in StoredEvent.__dataclass_fields__)).where(
    Event.id == any_(bindparam("ids", type_=ARRAY(BigInteger)))
)
_BOUNDS = select(
    select(func.min(Event.id)).scalar_subquery(), select(func.max(Event.id)).scalar_subquery()
)
_WRITERS = text(
    "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation'"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND relation = 'assignment.events'::regclass AND mode = 'RowExclusiveLock' AND granted"
)
