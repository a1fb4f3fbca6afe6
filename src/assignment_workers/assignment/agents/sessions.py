"""What an agent's state and session let them have, and what their moves make of both.

States are changed in turns alone. A heartbeat is kept elsewhere (`heartbeats`) and says nothing but
that the agent is there.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    Text,
    Update,
    and_,
    bindparam,
    case,
    func,
    literal,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningInsert

from assignment_workers.assignment.answers import Code, Refused
from assignment_workers.assignment.transaction import EventKind, FencedTransaction
from assignment_workers.schema.base import Instant, sql_text
from assignment_workers.schema.bulk import rows
from assignment_workers.schema.tables import AgentSession, AgentStatus
from assignment_workers.settings import Settings, by_team

AT_WORK = (AgentStatus.AVAILABLE, AgentStatus.ON_CALL, AgentStatus.WRAP_UP)
"""The states that moves lead from one to another. A break and the end of a session stay."""


@dataclass(frozen=True)
class Session:
    """An agent's row of `agents_state`, as far as it decides what they may have."""

    agent_id: int
    state: str | None
    """None: they never stated any, and are served whatever else stands here."""
    why: str | None
    calls: int
    working_since: datetime | None
    last_call_ended_at: datetime | None
    team: str | None


def turned_away(session: Session | None, settings: Settings, now: datetime) -> Refused | None:
    """Why this agent is handed nobody now, and what they can do about it; None: they are.

    The limits of a session are those of the agent's team, else those for all, where any are set.
    """
    if session is None or session.state is None:
        return None
    who, because = f"agent {session.agent_id}", f" ({session.why})" if session.why else ""
    if session.state == AgentStatus.BREAK:
        return Refused(
            code=Code.ON_BREAK, reason=f"{who} is on break{because}; state available to go on"
        )
    if session.state == AgentStatus.OFFLINE:
        return Refused(
            code=Code.OFFLINE, reason=f"{who} is offline{because}; state available to begin"
        )
    calls = _limit(settings.session_calls, session.team)
    if calls is not None and session.calls >= calls:
        return Refused(
            code=Code.SESSION_LIMIT,
            reason=f"{who} has had the {calls} calls of a session; state offline to end it",
        )
    interval = _limit(settings.break_interval, session.team)
    if interval is not None and session.working_since is not None:
        rest_due = session.working_since + timedelta(seconds=interval)
        if rest_due <= now:
            return Refused(
                code=Code.BREAK_DUE,
                reason=f"{who} has worked {interval} s without a break; state break to take it",
            )
    gap = _limit(settings.call_gap, session.team)
    if gap is not None and session.last_call_ended_at is not None:
        left = (session.last_call_ended_at + timedelta(seconds=gap) - now).total_seconds()
        if left > 0:
            return Refused(
                code=Code.CALL_GAP,
                reason=f"{who} ended a call less than {gap} s ago",
                retry_after=round(left, 3),
            )
    return None


def _limit(said: str | None, team: str | None) -> int | None:
    if said is None:
        return None
    limits = by_team(said)
    return limits.get(team, limits.get(None))


@dataclass
class Moves:
    """What the moves of one turn make of their agents, for `MOVED`."""

    _by_agent: dict[int, dict[str, Any]]

    @classmethod
    def none(cls) -> Moves:
        """Nobody has moved."""
        return cls({})

    def took_up(self, agent: int) -> None:
        """They accepted an offer: they are on a call."""
        self._add(agent, AgentStatus.ON_CALL)

    def called(self, agent: int) -> None:
        """They completed a call, and write it up until they ask again or state otherwise."""
        self._add(agent, AgentStatus.WRAP_UP, calls=1)

    def let_go(self, agent: int) -> None:
        """Their hold ended without a call: they are available."""
        self._add(agent, AgentStatus.AVAILABLE)

    def _add(self, agent: int, becomes: AgentStatus, *, calls: int = 0) -> None:
        before = self._by_agent.get(agent, {"calls": 0})
        self._by_agent[agent] = {
            "agent_id": agent,
            "becomes": becomes.value,
            "calls": before["calls"] + calls,
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row for each agent, in the order in which every turn locks them."""
        return [self._by_agent[agent] for agent in sorted(self._by_agent)]


_moved = rows("agents", agent_id=Integer(), becomes=Text(), calls=Integer())
_at_work = AgentSession.state.in_([sql_text(state) for state in AT_WORK])
_changes = and_(_at_work, AgentSession.state != _moved.c.becomes)


def _moving() -> Update:
    now = bindparam("moved_at", type_=Instant)
    return (
        update(AgentSession)
        .where(AgentSession.agent_id == _moved.c.agent_id)
        .values(
            state=case((_changes, _moved.c.becomes), else_=AgentSession.state),
            since=case((_changes, now), else_=AgentSession.since),
            by=case((_changes, null()), else_=AgentSession.by),
            why=case((_changes, null()), else_=AgentSession.why),
            calls_in_session=AgentSession.calls_in_session + _moved.c.calls,
            last_call_ended_at=case(
                (_moved.c.calls > 0, now), else_=AgentSession.last_call_ended_at
            ),
            offers_lapsed=0,
        )
    )


MOVED = _moving()
"""Agents who have a row follow their moves; who is on break or offline stays so.

Whoever acts on an offer has not let it lapse. Cost: that of the agents, by the primary key.
"""


def let_lapse(
    transaction: FencedTransaction, agents: Collection[int], *, most: int
) -> dict[int, Session]:
    """These agents let an offer lapse; who did so `most` times in a row is set on break: returned.

    That is told, and lasts until they state `available`. Who is offline stays so. Cost: one
    statement, by the primary key.
    """
    parameters = {"agents": [{"agent_id": agent} for agent in sorted(agents)]}
    found = transaction.connection.execute(
        _LAPSED, parameters | {"most": most, "moved_at": transaction.now}
    )
    on_break = [
        row for row in found if row.state == AgentStatus.BREAK and row.since == transaction.now
    ]
    transaction.record(
        *(state_event(row.agent_id, AgentStatus.BREAK, row.by, row.why) for row in on_break)
    )
    return {
        row.agent_id: Session(row.agent_id, row.state, row.why, 0, None, None, None)
        for row in on_break
    }


def state_event(agent: int, state: str, by: str | None, why: str | None) -> dict[str, Any]:
    """The event of a state that was stated, or set for a reason."""
    details = {"state": str(state), "by": by, "why": why}
    return {"kind": EventKind.AGENT_STATE, "agent_id": agent, "details": details}


_NOW = bindparam("moved_at", type_=Instant)
_most = bindparam("most", type_=Integer)
_lapsed = rows("agents", agent_id=Integer())


def _lapsing() -> ReturningInsert[*tuple[Any, ...]]:
    """The first lapse of an agent without a row makes one; every other adds to it."""
    too_many = _most <= 1
    given = select(
        _lapsed.c.agent_id,
        case((too_many, sql_text(AgentStatus.BREAK))).label("state"),
        *(case((too_many, _NOW)).label(name) for name in ("since", "session_began")),
        case((too_many, sql_text("expire"))).label("by"),
        case((too_many, _why(literal(1, Integer())))).label("why"),
        literal(1, Integer()).label("offers_lapsed"),
    )
    made = insert(AgentSession).from_select(
        [column.name for column in given.selected_columns], given
    )
    count = AgentSession.offers_lapsed + 1
    breaks = and_(
        count >= _most, AgentSession.state.is_distinct_from(sql_text(AgentStatus.OFFLINE))
    )
    becomes = {
        "state": sql_text(AgentStatus.BREAK),
        "since": _NOW,
        "by": sql_text("expire"),
        "why": _why(count),
        "session_began": func.coalesce(AgentSession.session_began, _NOW),
    }
    return made.on_conflict_do_update(
        index_elements=[AgentSession.agent_id],
        set_={
            "offers_lapsed": count,
            **{
                name: case((breaks, value), else_=getattr(AgentSession, name))
                for name, value in becomes.items()
            },
        },
    ).returning(
        AgentSession.agent_id,
        AgentSession.state,
        AgentSession.since,
        AgentSession.by,
        AgentSession.why,
    )


def _why(count: ColumnElement[int]) -> ColumnElement[str]:
    return func.concat(count, literal(" offers in a row lapsed", Text()), type_=Text())


_LAPSED = _lapsing()
