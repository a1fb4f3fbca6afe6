"""Drain a dialer queue: remove its users who are not held, in bounded batches."""

from __future__ import annotations

from sqlalchemy import BigInteger, Connection, bindparam, func, literal_column, null, select, update

from assignment_workers.assignment.answers import Code, Done, Refused
from assignment_workers.assignment.generations.entries import (
    DRAINED_REASON,
    OUT,
    PUBLISHED_STATE,
    READY,
    WAITING,
)
from assignment_workers.assignment.transaction import EventKind, FencedTransaction
from assignment_workers.errors import no_queue
from assignment_workers.schema.base import sql_text
from assignment_workers.schema.tables import DialerQueue, Entry, Generation

DRAINED_AT_MOST = 5_000
"""Maximum number of users whom one transaction removes from a dialer queue: about 50 ms of work."""


def drainable(connection: Connection, queue: str) -> int:
    """Count the users whom a drain of this dialer queue would remove.

    These are all users of the published generation who are claimable, and all who wait. Users whom
    an agent holds are not counted.
    """
    return connection.execute(_COUNT, {"queue": queue}).scalar_one()


def drain(transaction: FencedTransaction, queue: str, *, by: str) -> Done | Refused:
    """Remove users whom no agent holds from the dialer queue, at most `DRAINED_AT_MOST` of them.

    Claimable users are removed, and so are users who wait; users whom an agent holds stay. The
    count `drained` of the answer is the number of removed users; if it equals the limit, more may
    remain. `by`: the operator. The next build of the dialer queue includes all eligible users
    again: pause the queue if it is to stay empty. Refused: an unknown dialer queue.
    """
    known = list(transaction.connection.execute(select(DialerQueue.name)).scalars())
    if queue not in known:
        return Refused(
            code=Code.UNKNOWN_QUEUE,
            reason=no_queue(queue, sorted(known)),
        )
    transaction.require_lanes(queue)
    generation = transaction.connection.execute(_PUBLISHED, {"queue": queue}).scalar_one_or_none()
    users = list(transaction.connection.execute(_DRAIN, {"generation": generation}).scalars())
    transaction.record(
        *(
            {
                "kind": EventKind.TAKEN_OUT,
                "queue": queue,
                "user_id": user,
                "generation_id": generation,
                "details": {"reason": DRAINED_REASON, "by": by},
            }
            for user in users
        )
    )
    return Done(counts={"drained": len(users)})


_PUBLISHED = select(Generation.id).where(
    Generation.queue == bindparam("queue"), Generation.state == PUBLISHED_STATE
)
_UNCLAIMED = Entry.state.in_([READY, WAITING])
_COUNT = (
    select(func.count()).select_from(Entry).where(Entry.generation_id.in_(_PUBLISHED), _UNCLAIMED)
)
_some = (
    select(Entry.user_id)
    .where(Entry.generation_id == bindparam("generation", type_=BigInteger), _UNCLAIMED)
    .limit(literal_column(str(DRAINED_AT_MOST)))
)
_DRAIN = (
    update(Entry)
    .where(
        Entry.generation_id == bindparam("generation", type_=BigInteger),
        Entry.user_id.in_(_some),
    )
    .values(state=OUT, available_from=null(), reason=sql_text(DRAINED_REASON))
    .returning(Entry.user_id)
)
