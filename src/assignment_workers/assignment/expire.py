"""Every hold ends: when its lease lapses, its user is claimable again (guarantee 7)."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import ARRAY, Text, all_, bindparam, update

from assignment_workers.assignment import entries
from assignment_workers.assignment.holds import ACTIVE, THIS_TRANSACTION
from assignment_workers.assignment.turn import EventKind, Turn
from assignment_workers.schema.base import Instant, word
from assignment_workers.schema.tables import Assignment, AssignmentState

_EXPIRE = (
    update(Assignment)
    .where(
        Assignment.state == ACTIVE,
        Assignment.lease_expires_at <= bindparam("instant", type_=Instant),
    )
    .values(
        state=word(AssignmentState.EXPIRED),
        version=Assignment.version + 1,
        ended_at=bindparam("instant", type_=Instant),
        ended_xid=THIS_TRANSACTION,
    )
    .returning(
        Assignment.id, Assignment.user_id, Assignment.agent_id, Assignment.queue, Assignment.version
    )
)


_EXPIRE_HERE = _EXPIRE.where(Assignment.queue != all_(bindparam("others", type_=ARRAY(Text))))


def expire(turn: Turn) -> set[UUID]:
    """End every hold whose lease has lapsed; each user keeps their place.

    Of the turn's lane: those of others are their sequencers' to end. Returns the ids of the
    assignments. It runs every 30 s and at the start of every claim, so a
    lapsed hold never stands in the way of one. Cost: that of the holds that lapsed, by the index on
    leases.
    """
    others = turn.elsewhere
    statement = _EXPIRE_HERE if others else _EXPIRE
    rows = turn.connection.execute(statement, {"instant": turn.now, "others": others}).all()
    entries.give_back(turn, [row.user_id for row in rows])
    turn.record(
        *(
            {
                "kind": EventKind.EXPIRED,
                "queue": row.queue,
                "user_id": row.user_id,
                "agent_id": row.agent_id,
                "assignment_id": row.id,
            }
            for row in rows
        )
    )
    return {row.id for row in rows}
