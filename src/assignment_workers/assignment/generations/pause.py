"""Pause and resume a dialer queue for an operator; active assignments stay as they are."""

from __future__ import annotations

from sqlalchemy import select, update

from assignment_workers.assignment.answers import Code, Done, Refused
from assignment_workers.assignment.transaction import EventKind, FencedTransaction
from assignment_workers.errors import no_queue
from assignment_workers.schema.tables import DialerQueue


def pause(
    transaction: FencedTransaction, queue: str, *, by: str | None = None, why: str | None = None
) -> Done | Refused:
    """Stop handing out users of the dialer queue from this commit on, until the queue is resumed.

    `by`: the operator; `why`: the reason. Pausing again changes nothing. Refused: an unknown queue.
    """
    transaction.require_lanes(queue)
    paused = _is_paused(transaction, queue)
    if paused is None:
        return _unknown(transaction, queue)
    if paused:
        return Done(replayed=True)
    transaction.connection.execute(
        update(DialerQueue)
        .where(DialerQueue.name == queue)
        .values(paused_at=transaction.now, paused_by=by)
    )
    transaction.record(
        {"kind": EventKind.QUEUE_PAUSED, "queue": queue, "details": {"by": by, "why": why}}
    )
    return Done()


def resume(
    transaction: FencedTransaction, queue: str, *, by: str | None = None, why: str | None = None
) -> Done | Refused:
    """Hand out users of a paused dialer queue again from this commit on.

    `by`: the operator; `why`: the reason. Resuming again changes nothing. Refused: an unknown
    queue.
    """
    transaction.require_lanes(queue)
    paused = _is_paused(transaction, queue)
    if paused is None:
        return _unknown(transaction, queue)
    if not paused:
        return Done(replayed=True)
    transaction.connection.execute(
        update(DialerQueue).where(DialerQueue.name == queue).values(paused_at=None, paused_by=None)
    )
    transaction.record(
        {"kind": EventKind.QUEUE_RESUMED, "queue": queue, "details": {"by": by, "why": why}}
    )
    return Done()


def _is_paused(transaction: FencedTransaction, queue: str) -> bool | None:
    """Return True if the dialer queue is paused; None if it does not exist."""
    row = transaction.connection.execute(
        select(DialerQueue.paused_at.is_not(None)).where(DialerQueue.name == queue)
    ).first()
    return None if row is None else bool(row[0])


def _unknown(transaction: FencedTransaction, queue: str) -> Refused:
    known = transaction.connection.execute(
        select(DialerQueue.name).order_by(DialerQueue.name)
    ).scalars()
    return Refused(
        code=Code.UNKNOWN_QUEUE,
        reason=no_queue(queue, known),
    )
