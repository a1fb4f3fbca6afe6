"""Heartbeats: signs of life of agents, stored in batches without the assignment queue.

When the lease of an accepted assignment has ended, the agent's last heartbeat is read and may
extend the lease (`expire`). Heartbeats have a separate table. Therefore, a heartbeat cannot
overwrite an agent's state (hazard E2 in docs/hazards.md), and heartbeats and fenced transactions
(those of the sequencer) never wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, Integer, case, func, literal, select, text
from sqlalchemy.dialects.postgresql import insert

from assignment_workers.assignment.active_assignments import ACTIVE
from assignment_workers.assignment.agents.sessions import lease_of, leases
from assignment_workers.assignment.answers import Code, HeartbeatAnswer, Noted, Refused
from assignment_workers.assignment.settings_versions import current
from assignment_workers.policy.dialer import Dialer
from assignment_workers.schema.base import Instant
from assignment_workers.schema.bulk import rows
from assignment_workers.schema.dialer import Agent
from assignment_workers.schema.tables import AgentSeen, AgentSession, Assignment
from assignment_workers.settings import Settings


def beat(
    connection: Connection,
    beats: Mapping[int, datetime | None],
    *,
    dialer: Dialer,
    settings: Settings,
) -> dict[int, HeartbeatAnswer]:
    """Store a heartbeat for each agent; return each agent's state and assignment, by agent id.

    `beats`: the time of each agent's heartbeat, by agent id; None means now. An earlier heartbeat
    never replaces a later one, and a time in the future counts as now. The answer for an unknown
    agent is `Refused`. The caller commits; the commit does not wait for the disk, because the
    agent's next heartbeat replaces one that a crash loses. `dialer`, `settings`: those of this
    process. Cost: three statements for any number of agents, by primary keys.
    """
    connection.execute(text("SET LOCAL synchronous_commit TO off"))
    given = [{"agent_id": agent, "seen_at": at} for agent, at in sorted(beats.items())]
    connection.execute(_BEAT, {"beats": given})
    own = leases(current(connection, dialer, settings))
    found = connection.execute(_STANDS, {"beats": given, **own})
    answers: dict[int, HeartbeatAnswer] = {row.agent_id: Noted(**row) for row in found.mappings()}
    for agent in beats.keys() - answers.keys():
        answers[agent] = Refused(code=Code.UNKNOWN_AGENT, reason=f"no agent {agent}")
    return answers


_beats = rows("beats", agent_id=Integer(), seen_at=Instant)
_instant = func.least(
    func.coalesce(_beats.c.seen_at, func.clock_timestamp()), func.clock_timestamp()
)
_made = insert(AgentSeen).from_select(
    ["agent_id", "seen_at"],
    # In the order in which every gateway locks them, because two could deadlock otherwise.
    select(_beats.c.agent_id, _instant)
    .join(Agent, Agent.id == _beats.c.agent_id)
    .order_by(_beats.c.agent_id),
)
_BEAT = _made.on_conflict_do_update(
    index_elements=[AgentSeen.agent_id],
    set_={"seen_at": func.greatest(AgentSeen.seen_at, _made.excluded.seen_at)},
)

_alive_until = AgentSeen.seen_at + lease_of(Assignment.__table__.c.queue)
_STANDS = (
    select(
        _beats.c.agent_id,
        AgentSession.state,
        Assignment.id.label("assignment_id"),
        case(
            (
                Assignment.accepted_at.is_not(None),
                func.greatest(Assignment.lease_expires_at, _alive_until),
            ),
            else_=Assignment.lease_expires_at,
        ).label("lease_expires_at"),
        literal("noted").label("outcome"),
    )
    .select_from(_beats)
    .join(Agent, Agent.id == _beats.c.agent_id)
    .join(AgentSeen, AgentSeen.agent_id == _beats.c.agent_id)
    .outerjoin(AgentSession, AgentSession.agent_id == _beats.c.agent_id)
    .outerjoin(
        Assignment, (Assignment.agent_id == _beats.c.agent_id) & (Assignment.state == ACTIVE)
    )
)
