"""The requests table: one request id, one answer, however often it is asked (guarantee 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ARRAY,
    FromClause,
    Integer,
    Row,
    Select,
    Text,
    any_,
    bindparam,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.orm import aliased

from assignment_workers.assignment.answers import (
    Assigned,
    Code,
    Held,
    Refused,
    RequestAnswer,
    from_json,
    to_json,
)
from assignment_workers.assignment.holds import ACTIVE, HELD_COLUMNS, held_by
from assignment_workers.assignment.request import Request
from assignment_workers.assignment.sessions import Session
from assignment_workers.assignment.turn import Turn
from assignment_workers.schema import tables
from assignment_workers.schema.base import Instant, word
from assignment_workers.schema.bulk import insert_rows
from assignment_workers.schema.dialer import Agent
from assignment_workers.schema.tables import AgentState, Assignment, AssignmentState
from assignment_workers.schema.trips import Ask, Rows
from assignment_workers.settings import Settings


@dataclass(frozen=True)
class Asker:
    """The agent of a request, as this turn finds them."""

    known: bool
    is_active: bool
    allowed: object
    """`allowed_queues` as the dialer wrote it: a list of names, if all is well."""
    hold: Held | None
    skipped: frozenset[int]
    """Whom they skipped lately: not offered to them again."""
    session: Session | None = None
    """What they stated, if ever."""


def look_up(
    turn: Turn, requests: Sequence[Request], settings: Settings
) -> dict[str, RequestAnswer | Asker]:
    """By request id: its answer, if it was answered before; else who asks.

    An assignment is shown as it stands now: `state` says whether its hold has ended since. A
    request id that another agent used is refused. An assignment's request id is known for as long
    as the assignment is kept, even when the answer was pruned. That an active one is given again is
    kept: somebody knows of it. Cost: one statement, some index probes for each request; one more
    where some are given again.
    """
    (found,) = turn.run(asking(turn, requests, settings))
    return understood(turn, requests, found)


def asking(turn: Turn, requests: Sequence[Request], settings: Settings) -> Ask:
    """What `look_up` asks the database, for whoever asks more in the same trip."""
    since = {"since": turn.now - settings.skip_agent}
    if len(requests) == 1:
        (request,) = requests
        one = {"id": request.request_id, "agent": request.agent_id}
        return Ask(_LOOK_UP_ONE, since | one)
    many = {
        "ids": [request.request_id for request in requests],
        "agents": [request.agent_id for request in requests],
    }
    return Ask(_LOOK_UP, since | many)


def understood(
    turn: Turn, requests: Sequence[Request], found: Rows
) -> dict[str, RequestAnswer | Asker]:
    """What `look_up` makes of the rows."""
    read = {
        request.request_id: _read(row, request)
        for request, row in zip(requests, found, strict=True)
    }
    again = [name for name, each in read.items() if _is_active(each)]
    if again:
        turn.connection.execute(_ASKED_AGAIN, {"ids": again, "instant": turn.now})
    return read


def _is_active(answer: RequestAnswer | Asker) -> bool:
    return isinstance(answer, Assigned) and answer.assignment.state == AssignmentState.ACTIVE


def _read(row: Row[*tuple[Any, ...]], request: Request) -> RequestAnswer | Asker:
    given, hold = row[_FIXED : _FIXED + _WIDTH], row[_FIXED + _WIDTH :]
    if row.asked_by is None:
        return Asker(
            known=row.agent is not None,
            is_active=bool(row.is_active),
            allowed=row.allowed_queues,
            hold=_held(hold),
            skipped=frozenset(row.skipped),
            session=None
            if row.stated is None
            else Session(
                request.agent_id,
                row.stated,
                row.why,
                row.calls_in_session,
                row.working_since,
                row.last_call_ended_at,
                row.team,
            ),
        )
    if row.asked_by != request.agent_id:
        return Refused(
            code=Code.REQUEST_ID_TAKEN,
            reason=f"request id {request.request_id} was used by another agent; use a new one",
        )
    shown = _held(given)
    if shown is not None:
        return Assigned(assignment=shown, replayed=True)
    stored: RequestAnswer = from_json(row.answer)  # type: ignore[assignment]
    return stored


def _held(values: Sequence[Any]) -> Held | None:
    return None if values[0] is None else held_by(values)


def answered(turn: Turn, answers: Mapping[Request, RequestAnswer]) -> list[dict[str, Any]]:
    """The rows that keep these answers, for `STORE`."""
    return [
        {
            "request_id": request.request_id,
            "agent_id": request.agent_id,
            "queue": request.queue,
            "deadline": request.deadline,
            "received_at": request.sent_at,
            "outcome": answer.outcome,
            "answer": to_json(answer),
            "assignment_id": answer.assignment.id if isinstance(answer, Assigned) else None,
            "term": turn.term,
            "answered_at": turn.now,
        }
        for request, answer in answers.items()
    ]


STORE = insert_rows(
    tables.Request,
    tables.Request.request_id,
    tables.Request.agent_id,
    tables.Request.queue,
    tables.Request.deadline,
    tables.Request.received_at,
    tables.Request.outcome,
    tables.Request.answer,
    tables.Request.assignment_id,
    tables.Request.term,
    tables.Request.answered_at,
    parameter="answered",
)
"""Keep each answer, in the transaction that made it true."""

_ASKED_AGAIN = (
    update(tables.Request)
    .where(tables.Request.request_id == any_(bindparam("ids", type_=ARRAY(Text))))
    .values(asked_again_at=bindparam("instant", type_=Instant))
)

_given = aliased(Assignment, name="given")
_hold = aliased(Assignment, name="hold")
_WIDTH = len(HELD_COLUMNS)
_FIXED = 12


def _looking_up(asked: FromClause) -> Select[*tuple[Any, ...]]:
    """For each request that is `asked`: what is known of it, and of its agent."""
    own = (
        select(Assignment.id)
        .where(Assignment.request_id == asked.c.request_id)
        .correlate(asked)
        .scalar_subquery()
    )
    skips = (
        select(Assignment.user_id)
        .where(
            Assignment.state == word(AssignmentState.SKIPPED),
            Assignment.ended_how.is_(None),
            Assignment.agent_id == asked.c.agent_id,
            Assignment.ended_at > bindparam("since", type_=Instant),
        )
        .correlate(asked)
    )
    fixed = (
        func.coalesce(tables.Request.agent_id, _given.agent_id).label("asked_by"),
        tables.Request.answer,
        Agent.id.label("agent"),
        Agent.is_active,
        Agent.allowed_queues,
        func.array(skips.scalar_subquery(), type_=ARRAY(Integer)).label("skipped"),
        AgentState.state.label("stated"),
        AgentState.why,
        AgentState.calls_in_session,
        AgentState.working_since,
        AgentState.last_call_ended_at,
        Agent.team,
    )
    return (
        select(
            *fixed,
            *(getattr(_given, column.key) for column in HELD_COLUMNS),
            *(getattr(_hold, column.key) for column in HELD_COLUMNS),
        )
        .select_from(asked)
        .outerjoin(tables.Request, tables.Request.request_id == asked.c.request_id)
        .outerjoin(_given, _given.id == func.coalesce(tables.Request.assignment_id, own))
        .outerjoin(Agent, Agent.id == asked.c.agent_id)
        .outerjoin(AgentState, AgentState.agent_id == asked.c.agent_id)
        .outerjoin(_hold, (_hold.agent_id == asked.c.agent_id) & (_hold.state == ACTIVE))
        .order_by(asked.c.position)
    )


_LOOK_UP = _looking_up(
    func.unnest(bindparam("ids", type_=ARRAY(Text)), bindparam("agents", type_=ARRAY(Integer)))
    .table_valued("request_id", "agent_id", with_ordinality="position")
    .render_derived(name="asked")
)
# PostgreSQL plans anew for each array, since it may be long: a quarter of a millisecond. A lone
# request has a statement that is planned once.
_LOOK_UP_ONE = _looking_up(
    select(
        bindparam("id", type_=Text).label("request_id"),
        bindparam("agent", type_=Integer).label("agent_id"),
        literal_column("1").label("position"),
    ).subquery("asked")
)
