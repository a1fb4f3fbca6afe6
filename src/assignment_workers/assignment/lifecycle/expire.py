"""Expire assignments: when a lease ends, the user is claimable again (guarantee 7).

Heartbeats extend the lease of an accepted assignment: the lease is counted from the agent's last
heartbeat. They do not extend an offer (an assignment that its agent has not accepted).
docs/how-it-works.md has the list of guarantees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import ARRAY, Text, all_, bindparam, case, null, select, update

from assignment_workers.assignment.active_assignments import ACTIVE, THIS_TRANSACTION
from assignment_workers.assignment.agents import sessions
from assignment_workers.assignment.answers import Held
from assignment_workers.assignment.generations import entries
from assignment_workers.assignment.transaction import EventKind, FencedTransaction
from assignment_workers.schema.base import Instant, sql_text
from assignment_workers.schema.tables import AgentSeen, Assignment, AssignmentState, EndedHow
from assignment_workers.settings import Settings


@dataclass
class Lapsed:
    """The result of `expire`: the assignments that it ended or extended.

    `ended`: the ids of the assignments that expired.
    """

    ended: set[UUID] = field(default_factory=set)
    kept: dict[UUID, datetime] = field(default_factory=dict)
    """The new end of each lease that a heartbeat extended, by the id of the assignment."""
    on_break: dict[int, sessions.Session] = field(default_factory=dict)
    """The session of each agent who was set on break for not accepting offers in time, by agent."""

    def still(self, hold: Held) -> Held | None:
        """Return the assignment with its present lease, or None if the assignment has expired."""
        if hold.id in self.ended:
            return None
        until = self.kept.get(hold.id, hold.lease_expires_at)
        return hold.model_copy(update={"lease_expires_at": until})


_NOW = bindparam("instant", type_=Instant)
_alive_until = AgentSeen.seen_at + sessions.lease_of(Assignment.__table__.c.queue)
_lapsed = (
    select(
        Assignment.id,
        case(
            (
                Assignment.accepted_at.is_not(None)
                & (AgentSeen.seen_at > Assignment.accepted_at)
                & (_alive_until > _NOW),
                _alive_until,
            )
        ).label("until"),
    )
    .outerjoin(AgentSeen, AgentSeen.agent_id == Assignment.agent_id)
    .where(
        Assignment.state == ACTIVE,
        Assignment.lease_expires_at <= _NOW,
        Assignment.queue != all_(bindparam("others", type_=ARRAY(Text))),
    )
    .order_by(Assignment.id)
    .with_for_update(of=Assignment)
    .cte("lapsed")
)
_ends = _lapsed.c.until.is_(None)
_EXPIRE = (
    update(Assignment)
    .where(Assignment.id == _lapsed.c.id)
    .values(
        state=case((_ends, sql_text(AssignmentState.EXPIRED)), else_=ACTIVE),
        version=Assignment.version + case((_ends, 1), else_=0),
        lease_expires_at=case((_ends, Assignment.lease_expires_at), else_=_lapsed.c.until),
        ended_at=case((_ends, _NOW)),
        ended_xid=case((_ends, THIS_TRANSACTION)),
        ended_how=case(
            (_ends & Assignment.accepted_at.is_(None), sql_text(EndedHow.OFFER_LAPSED)),
            else_=null(),
        ),
    )
    .returning(
        Assignment.id,
        Assignment.user_id,
        Assignment.agent_id,
        Assignment.queue,
        Assignment.state,
        Assignment.ended_how,
        Assignment.lease_expires_at,
    )
)
"""Expire assignments whose lease has ended, or extend the lease if the agent sent a heartbeat.

A heartbeat extends only accepted assignments. The same statement reads the heartbeats and writes
the assignments, so it counts all heartbeats that were committed before it began.
"""


def expire(transaction: FencedTransaction, *, settings: Settings) -> Lapsed:
    """Expire every assignment whose lease has ended, unless a heartbeat extends the lease.

    A heartbeat extends the lease only if the agent sent it after accepting the assignment. The new
    end of the lease is one lease after the heartbeat. If that time has passed too, the assignment
    expires. The users of expired assignments keep their positions in the dialer queue. Only
    assignments of the lanes that this transaction has locked are handled.

    This function runs every 30 s. It also runs at the start of a claim if the lease of some
    assignment has ended. The reason: as long as such an assignment is active, the claim can neither
    assign its user nor give its agent another user.

    An agent who lets too many offers in a row lapse is set on break; the setting `offers_lapsed` is
    the number that is too many. Cost: grows with the number of assignments whose lease has ended,
    which are found by the index on leases.
    """
    parameters = {
        "instant": transaction.now,
        **sessions.leases(settings),
        "others": transaction.queues_of_other_lanes,
    }
    found = transaction.connection.execute(_EXPIRE, parameters).all()
    ended = [row for row in found if row.state == AssignmentState.EXPIRED]
    offers = {row.agent_id for row in ended if row.ended_how == EndedHow.OFFER_LAPSED}
    work = {row.agent_id for row in ended} - offers
    entries.give_back(transaction, [row.user_id for row in ended])
    transaction.record(
        *(
            {
                "kind": _KINDS.get((row.state, row.ended_how), EventKind.EXPIRED),
                "queue": row.queue,
                "user_id": row.user_id,
                "agent_id": row.agent_id,
                "assignment_id": row.id,
                "details": {"lease_expires_at": row.lease_expires_at, "by": "heartbeat"}
                if row.state == AssignmentState.ACTIVE
                else {},
            }
            for row in found
        )
    )
    if work:
        moves = sessions.Moves.none()
        for agent in work:
            moves.let_go(agent)
        given_up = {"agents": moves.rows(), "moved_at": transaction.now}
        transaction.connection.execute(sessions.MOVED, given_up)
    return Lapsed(
        {row.id for row in ended},
        {row.id: row.lease_expires_at for row in found if row.state == AssignmentState.ACTIVE},
        sessions.let_lapse(transaction, offers, most=settings.offers_lapsed) if offers else {},
    )


_KINDS = {
    (AssignmentState.ACTIVE, None): EventKind.RENEWED,
    (AssignmentState.EXPIRED, EndedHow.OFFER_LAPSED): EventKind.OFFER_LAPSED,
}
