"""Signs of life: written by set, off the assignment queue, and read where a lease has lapsed.

They have a table of their own. So a heartbeat can overwrite no state (hazard E2), and neither waits
for a turn nor keeps one waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, Integer, Interval, bindparam, case, func, literal, select, text
from sqlalchemy.dialects.postgresql import insert

from assignment_workers.assignment.active_assignments import ACTIVE
from assignment_workers.assignment.answers import Code, HeartbeatAnswer, Noted, Refused
from assignment_workers.schema.base import Instant
from assignment_workers.schema.bulk import rows
from assignment_workers.schema.dialer import Agent
from assignment_workers.schema.tables import AgentSeen, AgentSession, Assignment
from assignment_workers.settings import Settings


def beat(
    connection: Connection, beats: Mapping[int, datetime | None], *, settings: Settings
) -> dict[int, HeartbeatAnswer]:
    """By agent, how each stands once it is kept that they were there at that instant; None: now.

    A heartbeat never takes one back that came later, and none is of a time to come. Refused: an
    agent who is unknown. The caller commits, and need not wait for the disk: heartbeats that a
    crash loses come again. Cost: two statements for any number of agents, by primary keys.
    """
    connection.execute(text("SET LOCAL synchronous_commit TO off"))
    given = [{"agent_id": agent, "seen_at": at} for agent, at in sorted(beats.items())]
    connection.execute(_BEAT, {"beats": given})
    found = connection.execute(_STANDS, {"beats": given, "lease": settings.lease})
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
    # In the order in which every gateway locks them, or two could wait for each other.
    select(_beats.c.agent_id, _instant)
    .join(Agent, Agent.id == _beats.c.agent_id)
    .order_by(_beats.c.agent_id),
)
_BEAT = _made.on_conflict_do_update(
    index_elements=[AgentSeen.agent_id],
    set_={"seen_at": func.greatest(AgentSeen.seen_at, _made.excluded.seen_at)},
)

_alive_until = AgentSeen.seen_at + bindparam("lease", type_=Interval())
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
