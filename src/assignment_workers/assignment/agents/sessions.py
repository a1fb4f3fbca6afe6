"""The sessions of agents: their limits, and the effect of agents' commands on them.

A session lasts from an agent's start of work to its end. Only fenced transactions, those of the
sequencer, change an agent's state. Heartbeats have a separate table (`heartbeats`) and change no
state.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    Interval,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.sql.dml import ReturningInsert

from assignment_workers.assignment.answers import Code, Refused
from assignment_workers.assignment.transaction import EventKind, FencedTransaction, sent_by
from assignment_workers.schema.base import Instant, sql_text
from assignment_workers.schema.bulk import rows
from assignment_workers.schema.tables import AgentSession, AgentStatus
from assignment_workers.settings import Settings, by_team

AT_WORK = (AgentStatus.AVAILABLE, AgentStatus.ON_CALL, AgentStatus.WRAP_UP)
"""The states of an agent who is at work.

If an assignment is accepted, renewed or ended, the agent's state changes only if that state is one
of these. An agent who is on break or offline stays so.
"""

EXPIRE, TEND = "expire", "agent.tend"
"""The values of `AgentSession.by` for states that the system set, not a person.

`EXPIRE`: the agent was set on break, because of several lapsed offers (not accepted in time).
`TEND`: the agent was set offline, which ends the session, because there was no sign of life.
"""


@dataclass(frozen=True)
class Session:
    """Data about an agent, by which `turned_away` decides if the agent may be assigned a user.

    `why`: the reason of the agent's state, if the system set the state. If a person set the state,
    `why` is None, even if that person typed a reason: the refusal includes `why`, and not everybody
    who gets the refusal may read texts that people typed. `calls`: the number of calls completed in
    the present session. `working_since`: the beginning of the work since the last break. `team`:
    the agent's team, which may have limits of its own.
    """

    agent_id: int
    state: str | None
    """The agent's state; None: no state was ever set for the agent.

    An agent without a state has begun no session. The limits of a session, such as the maximum
    number of calls, do not apply to the agent. So the agent's requests are refused neither because
    of a state nor because of such a limit.
    """
    why: str | None
    calls: int
    working_since: datetime | None
    last_call_ended_at: datetime | None
    team: str | None


def untyped_reason() -> ColumnElement[str | None]:
    """Return a SQL expression: the reason of an agent's state; null if a person typed the reason.

    If a request is refused because of the agent's state, the refusal includes this reason. Some
    callers who get the refusal may not read texts that people typed. Therefore, a reason that a
    person typed is not included.
    """
    ours = or_(*(AgentSession.by == literal(each, Text()) for each in (EXPIRE, TEND)))
    return case((ours, AgentSession.why))


def lease_of(queue: ColumnElement[str]) -> ColumnElement[timedelta]:
    """Return a SQL expression: the lease of an accepted assignment of the dialer queue `queue`.

    SQL parameters: those that the function `leases` returns.
    """
    own = cast(bindparam("leases", type_=JSONB).op("->>")(queue), Interval())
    return func.coalesce(own, bindparam("lease", type_=Interval()))


def leases(settings: Settings) -> dict[str, Any]:
    """Return the SQL parameters of the expression `lease_of`: the leases in these settings."""
    own = {queue: each.lease for queue, each in settings.of_queues.items()}
    return {
        "lease": settings.lease,
        "leases": {queue: f"{each.total_seconds()} s" for queue, each in own.items()},
    }


def turned_away(session: Session | None, settings: Settings, now: datetime) -> Refused | None:
    """Return the refusal for an agent who may not be assigned a user now; None if the agent may.

    Reasons are the agent's state (break, offline) and the limits of a session. The limits are those
    of the agent's team, else the general ones, if any are set. The refusal says what the agent can
    do.
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
    """The changes of agents' states that one transaction has to store.

    An agent's command about an assignment changes the agent's state: for example, an agent who
    accepts an offer is `on_call`. For each command, one of the methods adds the change. `rows`
    returns the changes, one for each agent, for the statement `MOVED`.
    """

    _by_agent: dict[int, dict[str, Any]]

    @classmethod
    def none(cls) -> Moves:
        """Return an empty collection of changes."""
        return cls({})

    def took_up(self, agent: int) -> None:
        """Collect the new state `on_call` for an agent who accepted or renewed an assignment."""
        self._add(agent, AgentStatus.ON_CALL)

    def called(self, agent: int) -> None:
        """Collect the new state `wrap_up` for an agent who completed a call, and count the call."""
        self._add(agent, AgentStatus.WRAP_UP, calls=1)

    def let_go(self, agent: int) -> None:
        """Collect the new state `available` for an agent whose assignment ended without a call."""
        self._add(agent, AgentStatus.AVAILABLE)

    def _add(self, agent: int, becomes: AgentStatus, *, calls: int = 0) -> None:
        before = self._by_agent.get(agent, {"calls": 0})
        self._by_agent[agent] = {
            "agent_id": agent,
            "becomes": becomes.value,
            "calls": before["calls"] + calls,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each agent with an added change, for the statement `MOVED`.

        A row has the agent's id, the new state, and the number of calls that the agent completed in
        this transaction. The rows are ordered by agent id, to avoid deadlocks.
        """
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
"""Update the states of agents after their moves, such as accepting or completing an assignment.

An agent who is on break or offline stays so. The agent's count of lapsed offers (not accepted in
time) is reset, because a move shows that the agent is present. An agent who has no row in the table
of sessions gets none. Cost: one lookup by the primary key for each agent.
"""


def let_lapse(
    transaction: FencedTransaction, agents: Collection[int], *, most: int
) -> dict[int, Session]:
    """Count a lapsed offer for each agent, and set agents with too many lapsed offers on break.

    Returns the sessions of the agents that were set on break, by agent id. A lapsed offer is an
    assignment that the agent did not accept in time. An agent is set on break after `most` lapsed
    offers in a row. An event records the break, which lasts until the agent states `available`. An
    offline agent stays offline. Cost: one statement, by the primary key.
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


def state_event(
    agent: int, state: str, by: str | None, why: str | None, sender: str | None = None
) -> dict[str, Any]:
    """Return the event that records an agent's new state.

    `by`: the agent, another person or the job that set the state. `why`: the reason; None: there is
    none. `sender`: the name of an API token, if a caller other than the agent set the state for the
    agent. The token is the one with which that caller sent the command. None: the agent's own token
    was used, or no token, or a job set the state.
    """
    details = {"state": str(state), "by": by, "why": why, **sent_by(sender)}
    return {"kind": EventKind.AGENT_STATE, "agent_id": agent, "details": details}


_NOW = bindparam("moved_at", type_=Instant)
_most = bindparam("most", type_=Integer)
_lapsed = rows("agents", agent_id=Integer())


def _lapsing() -> ReturningInsert[*tuple[Any, ...]]:
    """Build the statement that adds 1 to the counts of lapsed offers of some agents.

    The SQL parameter `agents` has the agents. A lapsed offer is an assignment that the agent did
    not accept in time. For an agent without a row, a row with the count 1 is inserted. An agent
    whose count reaches the SQL parameter `most` is set on break, except an offline agent.
    """
    too_many = _most <= 1
    given = select(
        _lapsed.c.agent_id,
        case((too_many, sql_text(AgentStatus.BREAK))).label("state"),
        *(case((too_many, _NOW)).label(name) for name in ("since", "session_began")),
        case((too_many, sql_text(EXPIRE))).label("by"),
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
        "by": sql_text(EXPIRE),
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
