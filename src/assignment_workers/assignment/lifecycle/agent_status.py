"""States of agents, and their effect on the agents' assignments.

An offer (an assignment that is not accepted yet) is released at once when its agent goes on break
or offline. An accepted assignment stays with the agent until it is finished or its lease expires;
heartbeats extend the lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import (
    ARRAY,
    Connection,
    Integer,
    Interval,
    Row,
    and_,
    any_,
    bindparam,
    exists,
    false,
    func,
    or_,
    select,
)

from assignment_workers.assignment.active_assignments import ACTIVE
from assignment_workers.assignment.agents.sessions import TEND, state_event
from assignment_workers.assignment.answers import Code, Done, Refused, Stated
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Owner, Release
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.schema.base import Instant, sql_text
from assignment_workers.schema.bulk import insert_rows
from assignment_workers.schema.dialer import Agent
from assignment_workers.schema.tables import (
    AgentSeen,
    AgentSession,
    AgentStatus,
    Assignment,
    Request,
)

STALE = timedelta(minutes=5)
"""Time without a sign of life after which an agent counts as stale.

Signs of life are heartbeats, changes of state and ends of calls. Only an agent who has an open
session and holds no user can be stale.
"""
SESSION_ENDS = timedelta(hours=2)
"""Time without a sign of life of an agent, such as a heartbeat, after which the session ends.

The function `silent` names all signs of life. Source: original-dialer section 5 in docs/.
"""
ENDED_AT_ONCE = 500
"""Maximum number of agents' sessions that one transaction ends."""


class AgentShown(BaseModel):
    """The state, the session and the assignment of an agent.

    `state` None: the agent never stated one, and may make requests. `stale` is True if the agent
    has an open session, holds no user, and showed no heartbeat, change of state or end of a call
    for five minutes.
    """

    agent_id: int
    is_active: bool
    state: str | None
    since: datetime | None
    by: str | None
    why: str | None
    session_began: datetime | None
    calls_in_session: int
    last_call_ended_at: datetime | None
    offers_lapsed: int
    seen_at: datetime | None
    stale: bool
    assignment_id: UUID | None
    accepted_at: datetime | None


def state(
    transaction: FencedTransaction,
    agent: int,
    becomes: AgentStatus,
    *,
    by: str | None = None,
    why: str | None = None,
    sent_by: str | None = None,
) -> Stated | Refused:
    """Set the agent's state to `becomes`; repeating the command changes nothing.

    `by`: the person or job that decided on the new state; None: the agent. `why`: the reason.
    `sent_by`: the name of the API token with which the command was sent, if the token belongs to a
    caller other than the agent. Such a caller may only pass on the agent's own decision. `by` and
    `sent_by` are recorded with the events. A session begins with the first state other than
    offline, and ends with offline. Break and offline release an offer that is not accepted. If the
    agent has accepted an assignment, `available` and `wrap_up` are stored as `on_call`. `available`
    resets the count of lapsed offers. Refused: an unknown agent.
    """
    # otherwise another lane could offer a user to an agent who goes on break
    transaction.require_all_lanes()
    found = transaction.connection.execute(_AS_IT_WAS, {"agents": [agent]}).one_or_none()
    if found is None or not found.known:
        return Refused(code=Code.UNKNOWN_AGENT, reason=f"no agent {agent}")
    if found.accepted_at is not None and becomes in (AgentStatus.AVAILABLE, AgentStatus.WRAP_UP):
        becomes = AgentStatus.ON_CALL
    if found.state == becomes and not (found.offers_lapsed and becomes == AgentStatus.AVAILABLE):
        return Stated(agent_id=agent, state=becomes, since=found.since, replayed=True)
    released = _become(
        transaction, [found], becomes, by=by or f"agent {agent}", why=why, sender=sent_by
    )
    return Stated(
        agent_id=agent,
        state=becomes,
        since=transaction.now,
        released=released[0] if released else None,
    )


def end_sessions(
    transaction: FencedTransaction, agents: Sequence[int], *, silent_at: datetime
) -> Done:
    """Set these agents offline, which ends their sessions, unless they are no longer silent.

    `agents`: the result of the function `silent`, called at the time `silent_at`. An agent who has
    sent a request, a heartbeat or a command about an assignment since then keeps the session. The
    count `ended` of the answer is the number of agents set offline.
    """
    transaction.require_all_lanes()
    parameters = {"before": transaction.now - SESSION_ENDS, "asked_since": silent_at}
    among = _SILENT.where(AgentSession.agent_id == any_(bindparam("among", type_=ARRAY(Integer))))
    still = list(
        transaction.connection.execute(among, parameters | {"among": list(agents)}).scalars()
    )
    found = transaction.connection.execute(_AS_IT_WAS, {"agents": still}).all()
    why = f"no sign of life for {SESSION_ENDS}"
    _become(transaction, found, AgentStatus.OFFLINE, by=TEND, why=why)
    return Done(counts={"ended": len(found)})


def silent(connection: Connection, now: datetime) -> list[int]:
    """Return the ids of agents without a sign of life for `SESSION_ENDS`, at most `ENDED_AT_ONCE`.

    Signs of life are heartbeats, requests, changes of state, commands about assignments, and an
    active assignment. Only agents with an open session are returned. Cost: a read of the open
    sessions. If some agents seem silent, the answers to requests in the last `SESSION_ENDS` are
    read too.
    """
    before = now - SESSION_ENDS
    return list(connection.execute(_SILENT, {"before": before, "asked_since": before}).scalars())


def shown(connection: Connection, agent: int) -> AgentShown | None:
    """Return the agent's state, session and assignment; None for an unknown agent."""
    rows = connection.execute(_SHOWN.where(Agent.id == agent), {"stale": STALE}).mappings().all()
    return AgentShown(**rows[0]) if rows else None


def all_shown(connection: Connection, *, limit: int) -> list[AgentShown]:
    """Return agents who have a state, hold a user or sent a heartbeat: at most `limit`, by id."""
    some = _SHOWN.where(
        or_(
            AgentSession.agent_id.is_not(None),
            AgentSeen.agent_id.is_not(None),
            Assignment.id.is_not(None),
        )
    )
    rows = connection.execute(some.order_by(Agent.id).limit(limit), {"stale": STALE}).mappings()
    return [AgentShown(**row) for row in rows]


def _become(
    transaction: FencedTransaction,
    found: Sequence[Row[*tuple[object, ...]]],
    becomes: AgentStatus,
    *,
    by: str,
    why: str | None,
    sender: str | None = None,
) -> list[UUID]:
    """Store the new state of these agents and release their offers if the state requires it.

    Returns the ids of released offers. `found`: the agents' rows as read in this transaction. `by`:
    the person or job that sets the state; `why`: the reason, if any; `sender`: the name of the API
    token with which a caller other than the agent sent the command for the agent, if any.
    """
    rows = [
        {
            "agent_id": row.agent_id,
            "state": becomes,
            "since": transaction.now,
            "by": by,
            "why": why,
            **_session(row, becomes, transaction.now),
        }
        for row in found
    ]
    if not rows:
        return []
    transaction.connection.execute(_BECOME, {"agents": rows})
    transaction.record(*(state_event(row.agent_id, becomes, by, why, sender) for row in found))
    away = becomes in (AgentStatus.BREAK, AgentStatus.OFFLINE)
    offers = [
        Owner(row.assignment_id, row.agent_id, sent_by=sender)
        for row in found
        if away and row.assignment_id is not None and row.accepted_at is None
    ]
    because = f"the agent is {'on break' if becomes == AgentStatus.BREAK else 'offline'}"
    finish(transaction, [Release(owner, by=by, why=because) for owner in offers])
    return [owner.assignment_id for owner in offers]


def _session(
    row: Row[*tuple[object, ...]], becomes: AgentStatus, now: datetime
) -> dict[str, object]:
    """Return the new values of the columns of an agent's session after a change of state.

    `row`: the agent's present values. `becomes`: the agent's new state.
    """
    kept = {
        name: getattr(row, name)
        for name in (
            "session_began",
            "calls_in_session",
            "working_since",
            "last_call_ended_at",
            "offers_lapsed",
        )
    }
    if becomes == AgentStatus.OFFLINE:
        return kept | {"session_began": None, "working_since": None}
    if row.session_began is None:
        kept |= {"session_began": now, "calls_in_session": 0, "working_since": now}
    if row.state == AgentStatus.BREAK and becomes != AgentStatus.BREAK:
        kept |= {"working_since": now}
    if becomes == AgentStatus.AVAILABLE:
        kept |= {"offers_lapsed": 0}
    return kept


_asked = (
    func.unnest(bindparam("agents", type_=ARRAY(Integer)))
    .table_valued("agent_id")
    .render_derived(name="asked")
)
_AS_IT_WAS = (
    select(
        _asked.c.agent_id,
        Agent.id.is_not(None).label("known"),
        AgentSession.state,
        AgentSession.since,
        AgentSession.session_began,
        func.coalesce(AgentSession.calls_in_session, 0).label("calls_in_session"),
        AgentSession.working_since,
        AgentSession.last_call_ended_at,
        func.coalesce(AgentSession.offers_lapsed, 0).label("offers_lapsed"),
        Assignment.id.label("assignment_id"),
        Assignment.accepted_at,
    )
    .select_from(_asked)
    .outerjoin(Agent, Agent.id == _asked.c.agent_id)
    .outerjoin(AgentSession, AgentSession.agent_id == _asked.c.agent_id)
    .outerjoin(
        Assignment, (Assignment.agent_id == _asked.c.agent_id) & (Assignment.state == ACTIVE)
    )
    .order_by(_asked.c.agent_id)
)

_made = insert_rows(
    AgentSession,
    AgentSession.agent_id,
    AgentSession.state,
    AgentSession.since,
    AgentSession.by,
    AgentSession.why,
    AgentSession.session_began,
    AgentSession.calls_in_session,
    AgentSession.working_since,
    AgentSession.last_call_ended_at,
    AgentSession.offers_lapsed,
    parameter="agents",
)
_BECOME = _made.on_conflict_do_update(
    index_elements=[AgentSession.agent_id],
    set_={column.name: column for column in _made.excluded if column.name != "agent_id"},
)

_before = bindparam("before", type_=Instant)
_open = and_(AgentSession.state.is_not(None), AgentSession.state != sql_text(AgentStatus.OFFLINE))
_last_sign = func.greatest(AgentSession.since, AgentSession.last_call_ended_at, AgentSeen.seen_at)
_holds = exists().where(Assignment.agent_id == AgentSession.agent_id, Assignment.state == ACTIVE)
_SILENT = (
    select(AgentSession.agent_id)
    .outerjoin(AgentSeen, AgentSeen.agent_id == AgentSession.agent_id)
    .where(
        _open,
        _last_sign < _before,
        ~_holds,
        ~exists().where(
            Request.agent_id == AgentSession.agent_id,
            Request.answered_at > bindparam("asked_since", type_=Instant),
        ),
    )
    .order_by(AgentSession.agent_id)
    .limit(ENDED_AT_ONCE)
)

_SHOWN = (
    select(
        Agent.id.label("agent_id"),
        Agent.is_active,
        AgentSession.state,
        AgentSession.since,
        AgentSession.by,
        AgentSession.why,
        AgentSession.session_began,
        func.coalesce(AgentSession.calls_in_session, 0).label("calls_in_session"),
        AgentSession.last_call_ended_at,
        func.coalesce(AgentSession.offers_lapsed, 0).label("offers_lapsed"),
        AgentSeen.seen_at,
        func.coalesce(
            _open
            & Assignment.id.is_(None)
            & (_last_sign < func.statement_timestamp() - bindparam("stale", type_=Interval())),
            false(),
        ).label("stale"),
        Assignment.id.label("assignment_id"),
        Assignment.accepted_at,
    )
    .select_from(Agent)
    .outerjoin(AgentSession, AgentSession.agent_id == Agent.id)
    .outerjoin(AgentSeen, AgentSeen.agent_id == Agent.id)
    .outerjoin(Assignment, (Assignment.agent_id == Agent.id) & (Assignment.state == ACTIVE))
)
