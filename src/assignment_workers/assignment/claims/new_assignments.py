"""New assignments, with their entries, events and answers, written by one statement.

The value of each column is sent to the database once, though up to three tables store it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Insert, Select, insert, select

from assignment_workers.assignment.answers import Assigned, Held, RequestAnswer
from assignment_workers.assignment.claims import idempotency
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.generations import entries
from assignment_workers.assignment.transaction import EventKind, FencedTransaction, sent_by
from assignment_workers.schema.base import Base, sql_text
from assignment_workers.schema.bulk import rows
from assignment_workers.schema.tables import Assignment, Event
from assignment_workers.schema.tables import Request as Kept


@dataclass(frozen=True)
class NewAssignment:
    """An assignment that a transaction is about to store, with what its event records besides."""

    hold: Held
    score: int
    generation: int | None
    source_id: UUID | None
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further details of the event that records the assignment, besides rank and lease."""


def store(
    transaction: FencedTransaction,
    new_assignments: Mapping[ClaimRequest, NewAssignment],
    said: Mapping[ClaimRequest, RequestAnswer],
) -> None:
    """Store new assignments with their events and answers, and mark the users' entries held.

    An entry is the position of a user in a generation. `new_assignments`: each new assignment, by
    the request that gets it. `said`: the answers to requests that got no new assignment; they are
    stored too. The write is deferred to the commit, so nothing in the rest of the transaction may
    read these rows. Cost: one statement, with some index lookups for each assignment, whatever the
    size of the dialer queue.
    """
    others = idempotency.answered(transaction, said)
    if not new_assignments:
        transaction.defer_write(idempotency.STORE, {"answered": others})
        return
    entries.need_places(transaction, [new.hold.user_number for new in new_assignments.values()])
    granted = [_row(transaction, request, new) for request, new in new_assignments.items()]
    transaction.defer_write(KEEP, {"granted": granted, "answered": others})


def _row(
    transaction: FencedTransaction, request: ClaimRequest, new: NewAssignment
) -> dict[str, Any]:
    hold = new.hold
    return {
        "id": hold.id,
        "user_id": hold.user_id,
        "agent_id": hold.agent_id,
        "queue": hold.queue,
        "source": hold.source,
        "source_id": new.source_id,
        "generation_id": new.generation,
        "rank": hold.rank,
        "score": new.score,
        "reason": hold.reason,
        "term": transaction.term,
        "claimed_at": hold.claimed_at,
        "lease_expires_at": hold.lease_expires_at,
        "details": {
            "rank": hold.rank,
            "lease_expires_at": hold.lease_expires_at,
            **new.details,
            **sent_by(request.sent_by),
        },
        "request_id": request.request_id,
        "asked_queue": request.queue,
        "deadline": request.deadline,
        "received_at": request.sent_at,
        "answer": Assigned(assignment=hold),
    }


_OF_HOLD = (
    Assignment.id,
    Assignment.user_id,
    Assignment.agent_id,
    Assignment.queue,
    Assignment.source,
    Assignment.source_id,
    Assignment.generation_id,
    Assignment.rank,
    Assignment.score,
    Assignment.reason,
    Assignment.term,
    Assignment.claimed_at,
    Assignment.lease_expires_at,
    Assignment.request_id,
)
_ASKED = (Kept.deadline, Kept.received_at, Kept.answer)

_granted = (
    select(
        rows(
            "granted",
            asked_queue=Kept.queue.type,
            details=Event.details.type,
            **{column.key: column.type for column in (*_OF_HOLD, *_ASKED)},
        )
    )
    .cte("granted")
    .prefix_with("MATERIALIZED")
)
_grant = _granted.c
_answered = rows("answered", **{column.key: column.type for column in idempotency.COLUMNS})


def _filled(model: type[Base], values: Select[*tuple[Any, ...]]) -> Insert:
    return insert(model).from_select([column.name for column in values.selected_columns], values)


_holds = _filled(Assignment, select(*(_grant[column.key] for column in _OF_HOLD)))
_events = _filled(
    Event,
    select(
        _grant.claimed_at.label("at"),
        sql_text(EventKind.ASSIGNED).label("kind"),
        _grant.term,
        _grant.queue,
        _grant.user_id,
        _grant.agent_id,
        _grant.id.label("assignment_id"),
        _grant.request_id,
        _grant.generation_id,
        _grant.details,
    ),
)
_answers = select(
    _grant.request_id,
    _grant.agent_id,
    _grant.asked_queue,
    _grant.deadline,
    _grant.received_at,
    sql_text("assigned"),
    _grant.answer,
    _grant.id,
    _grant.term,
    _grant.claimed_at,
).union_all(select(*(_answered.c[column.key] for column in idempotency.COLUMNS)))

ANSWER = insert(Kept).from_select([column.key for column in idempotency.COLUMNS], _answers)
HOLD, PLACE, TELL = (
    _holds.cte("held"),
    entries.holding(_grant.user_id).cte("placed"),
    _events.cte("told"),
)
KEEP = ANSWER.add_cte(HOLD, PLACE, TELL, nest_here=True)
"""One statement that stores new assignments with their events, and all answers.

For each row of the parameter `granted` it inserts an assignment, an event and an answer, and sets
the user's entries (positions) in the published generations to the state `held`. For each row of the
parameter `answered` it inserts an answer.
"""
