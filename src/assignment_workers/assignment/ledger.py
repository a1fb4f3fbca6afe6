"""The requests table: one request id, one answer, however often it is asked (guarantee 5)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import ARRAY, RowMapping, Text, any_, bindparam, select

from assignment_workers.assignment.answers import (
    Assigned,
    Code,
    Refused,
    RequestAnswer,
    from_json,
    to_json,
)
from assignment_workers.assignment.holds import HELD_COLUMNS, held
from assignment_workers.assignment.request import Request
from assignment_workers.assignment.turn import Turn
from assignment_workers.schema import tables
from assignment_workers.schema.bulk import insert_rows
from assignment_workers.schema.tables import Assignment

_FIND = (
    select(
        tables.Request.request_id,
        tables.Request.agent_id.label("asked_by"),
        tables.Request.answer,
        *(column.label(f"held_{column.key}") for column in HELD_COLUMNS),
    )
    .outerjoin(Assignment, Assignment.id == tables.Request.assignment_id)
    .where(tables.Request.request_id == any_(bindparam("ids", type_=ARRAY(Text))))
)

_STORE = insert_rows(
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
)


def replays(turn: Turn, requests: Collection[Request]) -> dict[str, RequestAnswer]:
    """The answers of those request ids that were answered before.

    An assignment is shown as it stands now: `state` says whether its hold has ended since. A
    request id that another agent used is refused.
    """
    asked = {request.request_id: request for request in requests}
    found = turn.connection.execute(_FIND, {"ids": list(asked)}).mappings()
    return {row["request_id"]: _again(row, asked[row["request_id"]]) for row in found}


def _again(row: RowMapping, request: Request) -> RequestAnswer:
    if row["asked_by"] != request.agent_id:
        return Refused(
            code=Code.REQUEST_ID_TAKEN,
            reason=f"request id {request.request_id} was used by another agent; use a new one",
        )
    if row["held_id"] is None:
        stored: RequestAnswer = from_json(row["answer"])  # type: ignore[assignment]
        return stored
    shown = {name.removeprefix("held_"): value for name, value in row.items()}
    return Assigned(assignment=held(shown), replayed=True)


def store(turn: Turn, answers: Sequence[tuple[Request, RequestAnswer]]) -> None:
    """Keep each answer, in the transaction that made it true."""
    if not answers:
        return
    given = [
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
        for request, answer in answers
    ]
    turn.connection.execute(_STORE, {"rows": given})
