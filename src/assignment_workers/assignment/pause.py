"""An operator stops handing out a dialer queue's users, and starts again; holds are left alone."""

from __future__ import annotations

from sqlalchemy import select, update

from assignment_workers.assignment.answers import Code, Done, Refused
from assignment_workers.assignment.turn import EventKind, Turn
from assignment_workers.schema.tables import DialerQueue


def pause(
    turn: Turn, queue: str, *, by: str | None = None, why: str | None = None
) -> Done | Refused:
    """From this commit on nobody is handed out from `queue`. Saying it again changes nothing."""
    turn.need(queue)
    paused = _is_paused(turn, queue)
    if paused is None:
        return _unknown(turn, queue)
    if paused:
        return Done(replayed=True)
    turn.connection.execute(
        update(DialerQueue)
        .where(DialerQueue.name == queue)
        .values(paused_at=turn.now, paused_by=by)
    )
    turn.record({"kind": EventKind.QUEUE_PAUSED, "queue": queue, "details": {"by": by, "why": why}})
    return Done()


def resume(
    turn: Turn, queue: str, *, by: str | None = None, why: str | None = None
) -> Done | Refused:
    """From this commit on `queue` hands out users again. Saying it again changes nothing."""
    turn.need(queue)
    paused = _is_paused(turn, queue)
    if paused is None:
        return _unknown(turn, queue)
    if not paused:
        return Done(replayed=True)
    turn.connection.execute(
        update(DialerQueue).where(DialerQueue.name == queue).values(paused_at=None, paused_by=None)
    )
    turn.record(
        {"kind": EventKind.QUEUE_RESUMED, "queue": queue, "details": {"by": by, "why": why}}
    )
    return Done()


def _is_paused(turn: Turn, queue: str) -> bool | None:
    """None for a dialer queue that does not exist."""
    row = turn.connection.execute(
        select(DialerQueue.paused_at.is_not(None)).where(DialerQueue.name == queue)
    ).first()
    return None if row is None else bool(row[0])


def _unknown(turn: Turn, queue: str) -> Refused:
    known = turn.connection.execute(select(DialerQueue.name).order_by(DialerQueue.name)).scalars()
    return Refused(
        code=Code.UNKNOWN_QUEUE,
        reason=f"no dialer queue {queue!r}; there are {', '.join(known)}",
    )
